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

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.bundle import export
from segpipe.common.console import quoted
from segpipe.common.files import cannot_write, read_json, write_json
from segpipe.data import (
    FINGERPRINT,
    Fingerprint,
    Manifest,
    check_dataset,
    data_root,
    draw_split,
    import_dataset,
    load_manifest,
    patients_note,
    read_fingerprint,
    save_fingerprint,
    save_manifest,
    take_fingerprint,
)
from segpipe.errors import DataError, UsageError
from segpipe.studies.auto_page import write_auto_page
from segpipe.studies.search import Candidate, Found, Question, search
from segpipe.training import duration, startup_seconds

STATE, PAGE, MANIFEST, BUNDLE = "auto.json", "auto.html", "manifest.json", "bundle"
SCHEMA_VERSION = 1
STEPS = ("import", "check", "split", "fingerprint", "search", "export")
NETWORKS = ("unet", "unet_fine")  # the first is the cheaper; see docs/reference/networks.md
SECONDS_A_FOLD, FEWEST_FOLDS, MOST_FOLDS = 120.0, 2, 5  # of the budget: with less a fold, fewer folds
EXPORT_STARTS = 2.5  # as long as starting so many trainings takes the export: networks, golden case, checks
SAVED_EVERY_S = 2.0  # a killed run knows its time to this
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Asked:
    """What `segpipe auto` is asked for.

    Attributes:
        source: folder of a data set in a layout that `segpipe import` knows, or a manifest.
        out: folder for all that is made.
        seconds: the budget.
        data: folder that a manifest's paths start from, where it is not its own.
        candidates: trainings that are compared, of which the first is taken where there is no time for it; none: ours.
        folds: to draw where the manifest has none; None: by the budget.
        patient_rule, modality, label_names: of the import.
        device, memory_bytes, seed: of the trainings.
        name: of the bundle; None: that of the data set.
    """

    source: Path
    out: Path
    seconds: float
    data: Path | None = None
    candidates: tuple[Candidate, ...] = ()
    folds: int | None = None
    patient_rule: str = "none"
    modality: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    device: str = "cpu"
    memory_bytes: int = 8 * 10**9
    seed: int = 0
    name: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share; no path is among them."""
        values = {
            name: value for name, value in asdict(self).items() if name not in ("source", "out", "data", "seconds")
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | {
            "budget_seconds": self.seconds
        }


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
    with _locked(asked.out):
        state = State(asked, progress)
        with state.step("import"):
            manifest, root = _imported(asked, state)
        with state.step("check"):
            _check(manifest, root, state)
        with state.step("split"):
            manifest = _split(asked, manifest, state)
        with state.step("fingerprint"):
            fingerprint = _fingerprint(asked.out / FINGERPRINT, manifest, root)
        with state.step("search"):
            found = _search(asked, manifest, fingerprint, root, state)
        with state.step("export"):
            _export(asked, manifest, found, state)
        return state.end(found)


class State:
    """``auto.json``: written when a step ends, and while one lasts every few seconds.

    Args:
        asked: what is asked for.
        progress: where lines go.
    """

    def __init__(self, asked: Asked, progress: Progress) -> None:
        self.out, self._progress = asked.out, progress
        self.document = _read_state(asked)
        self._step: str | None = None
        self._saved = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps so far."""
        return float(sum(step["seconds"] for step in self.document["steps"].values()))

    @property
    def left(self) -> float:
        """Return the seconds that are left of the budget; negative where it is over."""
        return float(self.document["settings"]["budget_seconds"]) - self.seconds

    def decide(self, **facts: Any) -> None:
        """Record what the step decided."""
        self._entry()["decided"].update(facts)

    def decided(self, step: str) -> dict[str, Any]:
        """Return what a step decided."""
        return dict(self.document["steps"].get(step, {}).get("decided", {}))

    def say(self, line: str) -> None:
        """Hand a line on, with the time that is left."""
        self._tick()
        left = self.left
        self._progress(
            f"{line}  [{duration(left)} left]" if left > 0 else f"{line}  [{duration(-left)} over the budget]"
        )

    def is_finished(self, step: str) -> bool:
        """Return whether the step was finished, by this process or one before."""
        return bool(self.document["steps"].get(step, {}).get("status") == "finished")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step, and record that it is finished."""
        self._step = name
        self.document["steps"].setdefault(name, {"status": "running", "seconds": 0.0, "decided": {}})
        self._mark = time.monotonic()
        if not self.is_finished(name):
            self.say(name)
        try:
            yield
            self._entry()["status"] = "finished"
        finally:
            self._tick(save=True)
            self._step = None

    def end(self, found: Found) -> dict[str, Any]:
        """Write the outcome and the page."""
        figure = found.out_of_fold["figure"]
        self.document["result"] = {
            "bundle": BUNDLE,
            "chosen": found.chosen.name,
            "figure": {name: figure[name] for name in ("measure", "raw", "corrected")},
            "of": found.out_of_fold["of"],
            "seconds": round(self.seconds, 1),
        }
        self.document["status"] = "finished"
        self.write()
        write_auto_page(self.out / PAGE, self.document, found.document, found.out_of_fold)
        return self.document

    def write(self) -> None:
        """Bring the document to disk."""
        write_json(self.out / STATE, self.document)

    def _entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.document["steps"][self._step]
        return entry

    def _tick(self, save: bool = False) -> None:
        now = time.monotonic()
        if self._step is not None:
            self._entry()["seconds"] = round(self._entry()["seconds"] + now - self._mark, 2)
            self._mark = now
        if save or now - self._saved > SAVED_EVERY_S:
            self._saved = now
            self.write()


def _read_state(asked: Asked) -> dict[str, Any]:
    path, record = asked.out / STATE, asked.record()
    if not path.is_file():
        if any(not entry.name.startswith(".") for entry in asked.out.iterdir()):
            raise UsageError("the folder holds something that is not of `segpipe auto`", path=asked.out)
        head = {"schema_version": SCHEMA_VERSION, "command": "auto", "status": "running"}
        return {**head, "settings": record, "steps": {}, "notes": [], "result": None}
    document = read_json(path, "state of `segpipe auto`")
    if not isinstance(document, dict) or not {"settings", "steps", "notes"} <= set(document):
        raise DataError("this is not the state of `segpipe auto`", path=path, hint="name another -o")
    recorded = document["settings"]
    differing = [name for name in record if recorded.get(name) != record[name]]
    if differing:
        raise UsageError(
            "the folder was begun with other settings",
            path=asked.out,
            found="; ".join(f"{name}: {record[name]}" for name in differing),
            expected="; ".join(f"{name}: {recorded.get(name)}" for name in differing),
            hint="give the same command to go on, or another -o",
        )
    return document


def _imported(asked: Asked, state: State) -> tuple[Manifest, Path]:
    """Return the manifest in the folder, made or copied where it is not there yet, and where its data lies."""
    path = asked.out / MANIFEST
    given = asked.source if asked.source.suffix == ".json" else asked.source / MANIFEST
    if given.is_file() and _is_manifest(given):
        if not path.is_file():
            save_manifest(load_manifest(given), path)
        root = data_root(given, asked.data)
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
            hashes=False,
            overwrite=True,
            note=state.say,
        )
        root = imported.root
        state.decide(data=os.path.relpath(root.resolve(), asked.out.resolve()))
        state.document["notes"] += imported.notes
    manifest = load_manifest(path)
    state.decide(
        dataset=manifest.name,
        cases=len(manifest.training),
        labels=list(manifest.foreground.values()),
        channels=manifest.channels,
        patients=len({case.group for case in manifest.training}) if manifest.knows_patients else None,
    )
    return manifest, root


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
        by_time = int(asked.seconds / SECONDS_A_FOLD)
        folds = asked.folds or min(max(FEWEST_FOLDS, min(MOST_FOLDS, by_time)), patients)
        manifest = draw_split(manifest, None, folds, asked.seed)
        save_manifest(manifest, asked.out / MANIFEST)
    elif asked.folds is not None and asked.folds != len(manifest.folds()):
        raise UsageError("the manifest has its folds already", found=len(manifest.folds()), hint="leave --folds out")
    doubt = patients_note(manifest)
    if doubt and doubt not in state.document["notes"]:
        state.document["notes"].append(doubt)
        state.say(doubt if manifest.knows_patients else f"{doubt}; name the rule with --patient-rule")
    state.decide(folds=manifest.fold_sizes(), rule=manifest.split_rule)
    return manifest


def _fingerprint(path: Path, manifest: Manifest, root: Path) -> Fingerprint:
    fingerprint = read_fingerprint(path)
    if fingerprint is None:
        fingerprint = take_fingerprint(manifest, root)
        save_fingerprint(fingerprint, path)
    return fingerprint


def _search(asked: Asked, manifest: Manifest, fingerprint: Fingerprint, root: Path, state: State) -> Found:
    seconds = state.decided("search").get("seconds")
    if seconds is None:
        seconds = round(max(1.0, state.left - EXPORT_STARTS * startup_seconds()), 1)
        state.decide(seconds=seconds)
        state.write()
    path = asked.out / MANIFEST
    candidates = asked.candidates or usual_candidates(manifest)
    question = Question(path, manifest, fingerprint, root, candidates, seconds)
    question = replace(question, memory_bytes=asked.memory_bytes, device=asked.device, seed=asked.seed)
    found = search(question, asked.out / "search", state.say)
    state.decide(chosen=found.chosen.name)
    return found


def usual_candidates(manifest: Manifest) -> tuple[Candidate, ...]:
    """Return what is compared by default; patches are drawn label by label where there are several."""
    augment = "by_class" if len(manifest.foreground) > 1 else "light"
    return tuple(Candidate(network, augment) for network in NETWORKS)


def _export(asked: Asked, manifest: Manifest, found: Found, state: State) -> None:
    if not state.is_finished("export"):
        export(found.run, asked.out / BUNDLE, name=asked.name or BUNDLE, overwrite=True)
    state.decide(folder=BUNDLE, members=len(manifest.folds()))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / ".lock").open("w")
    except OSError as error:
        raise cannot_write(out, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                "another process works in this folder", path=out, hint="wait, or name another -o"
            ) from error
        yield
