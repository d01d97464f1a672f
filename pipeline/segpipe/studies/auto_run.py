"""From a folder of scans with labels to an ensemble bundle within a time: what `segpipe auto` does, step by step.

    OUT/auto.json              what was asked for, what each step decided, seconds foreseen and real
    OUT/manifest.json          of `import`, or a copy of the one that was given, with folds of `split`
    OUT/fingerprint.json       of the training cases, read once
    OUT/search/                of `segpipe.studies.search`: plans, candidates, the cross-validation that was chosen
    OUT/bundle/                the ensemble of its fold models
    OUT/auto.html              the page that explains each choice

Each step is kept when it is finished, so the same command goes on where it was stopped, also when it was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from segpipe.bundle import export
from segpipe.common.console import quoted, some_of
from segpipe.common.files import read_json, sha256_of
from segpipe.common.folder_lock import locked
from segpipe.common.processes import usable_cores
from segpipe.data import (
    FINGERPRINT,
    Fingerprint,
    Manifest,
    add_hashes,
    carry_readings,
    check_dataset,
    data_root,
    draw_split,
    import_dataset,
    load_manifest,
    patients_note,
    read_fingerprint,
    require_apart,
    save_fingerprint,
    save_manifest,
    take_fingerprint,
)
from segpipe.errors import DataError, UsageError
from segpipe.studies.auto_state import BUNDLE, SEARCH, Asked, Progress, State
from segpipe.studies.candidates import Candidate
from segpipe.studies.search import Found, Question, most_candidates, search
from segpipe.training import has_thick_slices, startup_seconds

MANIFEST = "manifest.json"
NETWORKS = ("unet", "dynunet")  # the first is the cheaper; see docs/results/hippocampus.md
OF_SLICES = "unet_2d"
SECONDS_A_FOLD, FEWEST_FOLDS, MOST_FOLDS = 120.0, 2, 5  # of the budget: with less a fold, fewer folds
EXPORT_STARTS = 2.5  # as long as starting so many trainings takes the export: networks, golden case, checks


def run_auto(asked: Asked, progress: Progress) -> dict[str, Any]:
    """Go the whole way, or what is left of it.

    Args:
        asked: what is asked for.
        progress: called with a line for each step and epoch, with the time that is left of the budget.

    Returns:
        The content of ``auto.json``.

    Raises:
        UsageError: the folder was begun with something else, another process works there, or a training cannot be run.
        DataError: the data set cannot be used; the error names the case.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    busy = UsageError("another process works in this folder", path=asked.out, hint="wait, or name another -o")
    with locked(asked.out, busy):
        state = State(asked, progress)
        with state.step("import"):
            manifest, root = _imported(asked, state)
        with state.step("check"):
            _check(manifest, root, state)
        with state.step("split"):
            manifest = _split(asked, manifest, state)
        with state.step("fingerprint"):
            fingerprint = _fingerprint(asked.out / FINGERPRINT, manifest, root, state)
        with state.step("search"):
            found = _search(asked, manifest, fingerprint, root, state)
        with state.step("export"):
            _export(asked, manifest, found, state)
        return state.end(found)


def _imported(asked: Asked, state: State) -> tuple[Manifest, Path]:
    """Return the manifest in the folder, made or copied where it is not there yet, and where its data lies."""
    path = asked.out / MANIFEST
    given = asked.source if asked.source.suffix == ".json" else asked.source / MANIFEST
    if given.is_file() and _is_manifest(given):
        _require_unused(asked, given)
        if not (path.is_file() and state.is_finished("import")):
            carry_readings(given, path)
            save_manifest(load_manifest(given), path)
        root = data_root(given, asked.data)
    elif asked.data is not None:
        raise UsageError("--data goes with a manifest", found=asked.source, hint="leave it out: the scans lie there")
    elif path.is_file() and state.is_finished("import"):
        root = asked.out / state.decided("import")["data"]
    else:
        imported = import_dataset(
            asked.source,
            output=path,
            modality=asked.modality,
            label_names=asked.label_names,
            patient_rule=asked.patient_rule,
            converted=asked.out / "nifti",
            hashes=False,  # below, of what is trained on alone
            overwrite=True,
            note=state.say,
        )
        root = imported.root
        state.decide(data=os.path.relpath(root.resolve(), asked.out.resolve()))
        state.document["notes"] += imported.notes
    manifest = load_manifest(path)
    require_apart(manifest)
    if not state.is_finished("import"):
        _hash_training(manifest, root, path)
    _require_unchanged(manifest, root, state)
    state.decide(
        dataset=manifest.name,
        cases=len(manifest.training),
        labels=list(manifest.targets.values()),
        channels=manifest.channels,
        patients=len({case.group for case in manifest.training}) if manifest.knows_patients else None,
    )
    return manifest, root


def _require_unused(asked: Asked, given: Path) -> None:
    """Refuse what says how to import, where nothing is imported."""
    says = {
        "--patient-rule": asked.patient_rule != "none",
        "--modality": asked.modality,
        "--label-name": asked.label_names,
    }
    if others := [option for option, is_given in says.items() if is_given]:
        raise UsageError(
            "there is a manifest, and these say how to make one",
            path=given,
            found=", ".join(others),
            hint="leave them out; or make the manifest anew: segpipe import ... --overwrite, with them",
        )


def _hash_training(manifest: Manifest, root: Path, path: Path) -> None:
    """Let the bundle know again what it was trained on."""
    unhashed = [case for case in manifest.training if not case.is_hashed]
    if unhashed:
        add_hashes(manifest.model_copy(update={"training": unhashed, "test": []}), root)
        save_manifest(manifest, path)


def _require_unchanged(manifest: Manifest, root: Path, state: State) -> None:
    """Refuse to go on with other bytes than what is finished was trained on; files with new times are hashed again.

    Raises:
        UsageError: naming the cases.
    """
    before = state.decided("import").get("files")
    files = [root / path for case in manifest.training for path in case.paths]
    try:
        stats = [path.stat() for path in files]
        now = hashlib.sha256(json.dumps([(each.st_size, each.st_mtime_ns) for each in stats]).encode()).hexdigest()
        known = [
            (case.id, root / path, sha256) for case in manifest.training for path, sha256 in (case.sha256 or {}).items()
        ]
        changed = (
            [case_id for case_id, path, sha256 in known if sha256_of(path) != sha256]
            if before not in (None, now)
            else []
        )
    except OSError as error:
        raise UsageError("a scan or label map cannot be read", path=error.filename, found=error.strerror) from error
    if changed:
        raise UsageError(
            "scans or label maps are others than when the folder was begun",
            path=state.out,
            found=some_of(list(dict.fromkeys(changed))),
            expected="the files that it was begun with",
            hint="put them back, or begin anew with another -o",
        )
    state.decide(files=now)


def _is_manifest(path: Path) -> bool:
    """Return whether a JSON file is a manifest of ours; the Decathlon's dataset.json is none."""
    document = read_json(path, "manifest")
    return isinstance(document, dict) and "schema_version" in document


def _check(manifest: Manifest, root: Path, state: State) -> None:
    if state.is_finished("check"):
        return
    report = check_dataset(manifest.model_copy(update={"test": []}), data=root)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        raise DataError(
            "the data set has errors",
            case_id=errors[0].case_id,
            found=f"{len(errors)}, first: {errors[0].kind}, {errors[0].found}",
            hint=f"see all of them: segpipe check {quoted(state.out / MANIFEST)} --data {quoted(root)}",
        )
    state.decide(warnings=len(report.findings), kinds=sorted({finding.kind for finding in report.findings}))


def _split(asked: Asked, manifest: Manifest, state: State) -> Manifest:
    if not manifest.folds():
        patients = len({case.group for case in manifest.training})
        if patients < FEWEST_FOLDS:
            raise DataError(
                "cross-validation needs cases of two patients or more",
                found=f"{patients} by the rule {manifest.patient_rule}",
                hint="check the rule: segpipe auto --help",
            )
        by_time = int(asked.seconds / SECONDS_A_FOLD)
        folds = asked.folds or min(max(FEWEST_FOLDS, min(MOST_FOLDS, by_time)), patients)
        manifest = draw_split(manifest, None, folds, asked.seed)
        save_manifest(manifest, asked.out / MANIFEST)
    elif asked.folds is not None and asked.folds != len(manifest.folds()):
        raise UsageError("the manifest has its folds already", found=len(manifest.folds()), hint="leave --folds out")
    doubt = patients_note(manifest)
    if doubt and doubt not in state.document["notes"]:
        state.document["notes"].append(doubt)
        imported = "data" in state.decided("import")
        rule = "--patient-rule" if imported else "`segpipe import --patient-rule`, which makes the manifest"
        state.say(doubt if manifest.knows_patients else f"{doubt}; name the rule with {rule}")
    state.decide(folds=manifest.fold_sizes(), rule=manifest.split_rule)
    return manifest


def _fingerprint(path: Path, manifest: Manifest, root: Path, state: State) -> Fingerprint:
    try:
        fingerprint = read_fingerprint(path) if state.is_finished("fingerprint") else None
    except DataError:  # damaged: it is taken from the cases again
        fingerprint = None
    if fingerprint is None:
        fingerprint = take_fingerprint(manifest, root)
        save_fingerprint(fingerprint, path)
    return fingerprint


def _search(asked: Asked, manifest: Manifest, fingerprint: Fingerprint, root: Path, state: State) -> Found:
    seconds, jobs = (state.decided("search").get(name) for name in ("seconds", "jobs"))
    if jobs is None:
        at_once = asked.jobs or (usable_cores() if asked.device == "cpu" else 1)
        jobs = 1 if seconds else min(at_once, len(manifest.folds()))  # begun when it could not be more
    if seconds is None:
        seconds = round(max(1.0, state.left - EXPORT_STARTS * startup_seconds()), 1)
        state.decide(seconds=seconds)
    path = asked.out / MANIFEST
    candidates = asked.candidates or usual_candidates(manifest, fingerprint)
    question = Question(path, manifest, fingerprint, root, candidates, seconds)
    state.decide(jobs=jobs)
    state.write()
    question = replace(question, memory_bytes=asked.memory_bytes, device=asked.device, jobs=jobs, seed=asked.seed)
    found = search(question, asked.out / SEARCH, state.say)
    state.decide(chosen=found.chosen.name)
    return found


def usual_candidates(manifest: Manifest, fingerprint: Fingerprint) -> tuple[Candidate, ...]:
    """Return what is compared by default; patches are drawn label by label where there are several.

    Where slices are thick, a network of single slices is the second; as many are compared as the folds halve to one.
    """
    augment = "by_class" if len(manifest.foreground) > 1 else "light"
    first, *others = NETWORKS
    networks = [first, *([OF_SLICES] if has_thick_slices(fingerprint) else []), *others]
    return tuple(Candidate(network, augment) for network in networks[: most_candidates(len(manifest.folds()))])


def _export(asked: Asked, manifest: Manifest, found: Found, state: State) -> None:
    if not (state.is_finished("export") and (asked.out / BUNDLE).is_dir()):
        export(found.run, asked.out / BUNDLE, name=asked.name or BUNDLE, overwrite=True)
    state.decide(folder=BUNDLE, members=len(manifest.folds()))
