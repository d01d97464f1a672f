"""Figures of a model card: read from an evaluation, and refused where they are not tied to what the card is of.

A card says how good these weights are, on which cases. So the label maps that were measured must be those that these
weights made, with this config and post-processing, of cases that the training did not see.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.card_figures import METRICS, OVERALL
from segpipe.bundle.exporting.estimate import estimate_sha256
from segpipe.bundle.exporting.markdown import figure
from segpipe.bundle.exporting.run_record import PROVENANCE, Run
from segpipe.bundle.supported_subset import read_inference, read_members
from segpipe.bundle.vet import FIRST_STAGE, METADATA, Check, Finding, is_ours, shown
from segpipe.common.console import some_of
from segpipe.common.files import json_text, read_json, sha256_of
from segpipe.errors import DataError, RefusedError, SegpipeError
from segpipe.evaluation import seal

INFERENCE, CARD = "configs/inference.json", "docs/README.md"
IN_SHORT, CELLS = re.compile(r"Dice \(overlap, 1 at best\) (\S+(?: \[[^\]]*\])?)"), re.compile(r"(?<!\\)\|")
AGAIN = "export without --evaluation, let that bundle predict, evaluate what it wrote, and export again with that"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and of what.

    Attributes:
        results: ``metrics`` (measure to label to ``value``, ``low``, ``high``, ``median`` and ``n``), ``dataset``,
            ``split``, ``cases``, ``patients``, ``missing`` and ``failed`` cases, ``interval`` in words,
            ``tolerance_mm`` of the surface Dice, ``test_readings`` where a ledger counts them.
        dice: case id to its mean Dice over the labels; None where no label counts.
        labels: value to name of what was measured.
        made_by: the model that made all label maps, as metrics.json names it; None where that is not known.
        untied: why not, by case.
        images: SHA-256 of the image files that were segmented.
        sha256: of metrics.json.
    """

    results: dict[str, Any]
    dice: Mapping[str, float | None]
    labels: Mapping[int, str]
    made_by: Mapping[str, Any] | None
    untied: Mapping[str, str]
    images: frozenset[str]
    sha256: str

    def record(self) -> dict[str, Any]:
        """Return what ties the figures to the bundle, for ``provenance.json``."""
        known = {name: self.results[name] for name in ("manifest_sha256", "split", "fold")}
        tie = {"metrics_sha256": self.sha256, "results_sha256": _hash_of(self.results)}
        return {**tie, **known, "cases": sorted(self.dice), "made_by": self.made_by}


def read_evaluation(folder: Path) -> Evaluation:
    """Read the few figures of a ``metrics.json`` that a model card shows, and what they were measured on.

    Raises:
        UsageError: no such file.
        DataError: not what `segpipe evaluate` writes.
        RefusedError: it was changed since, or does not say which model made the label maps.
    """
    path = folder / "metrics.json"
    document = read_json(path, "evaluation")
    try:
        summary = document["summary"]
        parts = {part["name"]: part for part in summary["labels"].values()} | {OVERALL: summary["overall"]}
        counts, bootstrap = summary["overall"]["counts"], document["bootstrap"]
        results = {
            "dataset": document.get("dataset"),
            "split": document["split"],
            "fold": document.get("fold"),
            **{name: counts[name] for name in ("cases", "patients", "missing", "failed")},
            "interval": f"the {bootstrap['level']:.0%} bootstrap interval over {bootstrap['unit']}s",
            "tolerance_mm": document["tolerance_mm"],
            "manifest_sha256": document["manifest_sha256"],
            **_read_so_far(document.get("test_readings") or {}),
            "metrics": {
                metric: {name: _estimate(part["metrics"][metric]) for name, part in parts.items()} for metric in METRICS
            },
        }
        _require_sealed(path, document)
        return Evaluation(
            results,
            {str(case["id"]): case["mean_dice"] for case in document["cases"]},
            {int(value): str(part["name"]) for value, part in summary["labels"].items()},
            document["predictions"]["made_by"],
            document["predictions"]["untied"],
            frozenset(image for case in document["cases"] for image in case["image_sha256"]),
            sha256_of(path),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            "not an evaluation",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="the metrics.json that `segpipe evaluate` writes",
        ) from error


def _read_so_far(readings: Mapping[str, Any]) -> dict[str, int]:
    """Return how many models were measured on the test set, as far as a ledger counts them."""
    return {} if readings.get("count") is None else {"test_readings": int(readings["count"])}


def _estimate(estimate: Mapping[str, Any]) -> dict[str, float | int | None]:
    named = {"value": "mean", "low": "low", "high": "high", "median": "median"}
    figures = {to: None if estimate.get(name) is None else float(estimate[name]) for to, name in named.items()}
    rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
    return {**rounded, "n": int(estimate["n"])}


def _require_sealed(path: Path, document: Mapping[str, Any]) -> None:
    if "content_sha256" not in document or "predictions" not in document:
        raise RefusedError(
            "the evaluation does not say which model made its predictions",
            path=path,
            expected="a metrics.json of this version of segpipe",
            hint=AGAIN,
        )
    if document["content_sha256"] != seal(document):
        raise RefusedError(
            "the evaluation was changed after `segpipe evaluate` wrote it",
            path=path,
            found=seal(document),
            expected=document["content_sha256"],
            hint="run `segpipe evaluate` again",
        )


def tied(measured: Evaluation, run: Run, weights: Mapping[str, bytes], inference: str, manifest: str) -> Evaluation:
    """Return an evaluation that fits the bundle that is about to be written.

    Args:
        measured: as it was read.
        run: what was trained.
        weights: content of the files of weights, by name; they and the next decide on a label map.
        inference, manifest: what the bundle's files will hold.

    Raises:
        RefusedError: it is of other label maps, weights, settings, labels or cases.
    """
    model = {INFERENCE: _sha256(inference.encode()), **{file: _sha256(each) for file, each in weights.items()}}
    _require_same_model(measured, model, read_inference(json.loads(inference))[0].get("cleanup", ()))
    if dict(measured.labels) != run.manifest.targets:
        raise RefusedError(
            "the evaluation is of other labels than the bundle's",
            found=_named(measured.labels),
            expected=_named(run.manifest.targets),
            hint="evaluate with the manifest of the training, or one with the same labels",
        )
    own = (run.record.get("manifest_sha256"), _sha256(manifest.encode()))
    is_own = measured.results["manifest_sha256"] in own
    _require_unseen(measured, run, is_own)
    if not is_own or own[0] is None:
        return measured
    return replace(measured, results={**measured.results, "manifest_sha256": own[0]})


def _require_same_model(measured: Evaluation, model: Mapping[str, str], cleanup: Sequence[Mapping[str, Any]]) -> None:
    if measured.made_by is None:
        reasons = [f"{case_id}: {reason}" for case_id, reason in measured.untied.items()]
        raise RefusedError(
            "which model made the label maps that were measured is not known",
            found=some_of(reasons) if reasons else "no label map",
            expected="label maps as `segpipe predict` wrote them with this bundle, each beside its result.json",
            hint=AGAIN,
        )
    made_by = measured.made_by
    files = made_by["files"]
    other = next((file for file in model if file != INFERENCE and files.get(file) != model[file]), None)
    if other is not None:
        what, found, expected = "weights", files.get(other), model[other]
    elif list(made_by["postprocessing"]) != list(cleanup):
        what, found, expected = "post-processing", _words(made_by["postprocessing"]), _words(cleanup)
    elif files != model:
        what, found, expected = "settings", files.get(INFERENCE), model[INFERENCE]
    elif made_by["ensemble"]:
        what, found, expected = "models together", f"{1 + len(made_by['ensemble'])} bundles", "this bundle alone"
    elif made_by["mirror"]:
        what, found, expected = "options", f"--mirror {','.join(made_by['mirror'])}", "the bundle as it is"
    else:
        return
    raise RefusedError(
        f"the evaluation is of other {what} than the bundle's", found=found, expected=expected, hint=AGAIN
    )


def _require_unseen(measured: Evaluation, run: Run, is_own: bool) -> None:
    """Refuse figures on what was trained on, or on a choice of a split's cases.

    Of another manifest nothing may be a case of this one's training or validation, by its id or by its image.
    """
    manifest, results = run.manifest, measured.results
    training = run.cases.get("training") or [case.id for case in manifest.select("training", run.record.get("fold"))]
    trained = set(training) | ({*run.cases.get("validation", [])} if not is_own else set())
    cases = [case for case in manifest.cases() if case.id in trained]
    images = {case.sha256[path] for case in cases for path in case.images if case.sha256 and path in case.sha256}
    groups = {case.group for case in cases}
    known = {case.id: case for case in manifest.cases()} if is_own else {}
    seen = sorted(
        case_id
        for case_id in measured.dice
        if case_id in trained or (case_id in known and known[case_id].group in groups)
    )
    if seen or images & measured.images:
        raise RefusedError(
            "the evaluation is not of cases that the training left out",
            found=some_of(seen) if seen else f"{len(images & measured.images)} images of the training",
            expected="cases, and patients, that were not trained on",
            hint="evaluate the test cases: `segpipe predict` and `segpipe evaluate` with --split test",
        )
    split = (results["split"], results["fold"]) if is_own else ("test", None)
    expected = {case.id for case in manifest.select(*split) if case.label is not None}
    found = measured.dice.keys() & expected
    if found != expected and (is_own or found):  # another manifest may have none of them, but not a choice
        raise RefusedError(
            "the evaluation is not of all cases of its split",
            found=f"{len(found)} cases",
            expected=f"{len(expected)} labelled cases of {results['split']}",
            hint="evaluate with the manifest of the training",
        )


def _dice_on(card: Path) -> set[str]:
    """Return each mean Dice that stands on a card of ours, with its interval; none of a card that somebody wrote."""
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    in_short = (match[1] for line in lines for match in IN_SHORT.finditer(line))
    cells = (CELLS.split(line) for line in lines if line.startswith("| Dice | "))
    return {*in_short, *(row[3].strip() for row in cells if len(row) > 4)}


def _named(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())


def _words(cleanup: Sequence[Mapping[str, Any]]) -> str:
    """Name transforms in short, such as ``KeepLargestConnectedComponentd``."""
    return ", ".join(str(step.get("_target_")).rpartition(".")[2] for step in cleanup) or "none"


def _hash_of(results: Mapping[str, Any]) -> str:
    return _sha256(json_text(results).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_members(root: Path, metadata: Mapping[str, Any]) -> Check | None:
    """Return which members are not the files that the metadata names with their folds; else None."""
    members = metadata.get("members")
    if not members or not is_ours(metadata):  # of ours the schema has been checked, so no path leaves the bundle
        return None
    findings = []
    files = [member["file"] for member in members]
    loaded = list(read_members(read_json(root / INFERENCE)))
    if loaded and files != loaded:
        findings.append(Finding(METADATA, "members", shown(files), f"they are not those that {INFERENCE} loads"))
    for index, member in enumerate(members):
        path = root / member["file"]  # as its schema says: models/member_K.pt
        if not path.is_file() or sha256_of(path) != member["sha256"]:
            reason = "the member is not there" if not path.is_file() else "the member is another file than is recorded"
            findings.append(Finding(METADATA, f"members::{index}", shown(member["file"]), reason))
    return Check.of("figures", "", findings) if findings else None


def _check_estimate(root: Path, metadata: Mapping[str, Any]) -> Check | None:
    """Return what speaks against the figures of fold models, that they are not those that were recorded; else None."""
    estimate = metadata.get("estimate")
    if estimate is None:
        return None
    try:
        recorded = read_json(root / PROVENANCE)["estimate"]["estimate_sha256"]
        reason = None if recorded == estimate_sha256(estimate) else "it is not the estimate that was recorded"
    except (SegpipeError, AttributeError, KeyError, TypeError) as error:
        reason = f"what the estimate is of cannot be read ({type(error).__name__})"
    if reason is None:
        return None
    return Check.of("figures", "", [Finding(PROVENANCE, "estimate", shown(estimate), reason)])


def _deciding(root: Path) -> list[str]:
    """Return the files that decide on a label map: config and weights that provenance names, of each stage."""
    document = read_json(root / PROVENANCE)
    weights = [part["weights"]["file"] for part in document.get("members") or [document]]
    before = _deciding(root / FIRST_STAGE) if (root / FIRST_STAGE).is_dir() else []
    return [INFERENCE, *weights, *(f"{FIRST_STAGE}/{file}" for file in before)]


def check_figures(root: Path, metadata: Mapping[str, Any]) -> Check:
    """Check that the figures of a bundle's metadata are those that its provenance ties to its files.

    Args:
        root: a bundle whose static checks passed.
        metadata: its ``configs/metadata.json``.
    """
    results = metadata.get("results")
    if (broken := _check_members(root, metadata) or _check_estimate(root, metadata)) is not None:
        return broken
    if not isinstance(results, Mapping):
        return Check("figures", "absent", "its metadata has no figures of its own")
    try:
        tie = read_json(root / PROVENANCE).get("evaluation")
        if tie is None:
            old = "nothing ties its figures to its weights: believe them as far as you believe its author"
            return Check("figures", "absent", old)
        seen = set(read_json(root / PROVENANCE)["split"]["training"]) & set(tie["cases"])
        files = tie["made_by"]["files"]
        faults = [
            (f"evaluation.made_by.files.{name}", "the figures are of another file than the bundle's")
            for name in _deciding(root)
            if files.get(name) != sha256_of(root / name)
        ]
        faults += [("evaluation.results_sha256", "the figures are not those that were tied")] * (
            tie["results_sha256"] != _hash_of(results)
        )
        faults += [("evaluation.cases", "the figures are of cases that were trained on")] * bool(seen)
        means = {figure(entry) for entry in results["metrics"]["dice"].values()}
        faults += [("results", "the card shows another Dice than the results")] * (not _dice_on(root / CARD) <= means)
        stated = results["metrics"]["dice"][OVERALL]["value"]
        headline = metadata.get("eval_metrics", {}).get(f"{results['split']}_mean_dice", stated)
        faults += [("eval_metrics", "it states another figure than the results")] * (headline != stated)
    except (SegpipeError, OSError, AttributeError, KeyError, TypeError) as error:
        faults = [("evaluation", f"what ties the figures cannot be read ({type(error).__name__})")]
    findings = [Finding(PROVENANCE, place, shown(place), reason) for place, reason in faults]
    return Check.of("figures", "they are of these weights and configs, on cases that were left out", findings)
