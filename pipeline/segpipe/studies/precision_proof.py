"""Does a bundle give the same label maps with bfloat16: its left-out cases, predicted both ways and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from segpipe.bundle import WEIGHTS, Bundle, open_bundle, weights_files
from segpipe.common.console import some_of
from segpipe.common.files import require_writable, write_json
from segpipe.common.partial import Partial
from segpipe.common.provenance import cpu_kind
from segpipe.data import Manifest, load_manifest
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.evaluation import CaseResult, Evaluation, evaluate, part_of_training
from segpipe.inference import bfloat16_faults
from segpipe.prediction import predict
from segpipe.training import CROSS_VALIDATION, fold_models

SCHEMA_VERSION = 1
TYPES = ("float32", "bfloat16")
Pair: TypeAlias = tuple[Evaluation, Evaluation]  # of the same cases, in float32 and in bfloat16


@dataclass(frozen=True)
class _Label:
    """One label of one case, predicted both ways: Dice, where absent and not predicted counts 1, and volume."""

    case_id: str
    label: str
    dice: tuple[float, float]
    volume_ml: tuple[float, float]

    @property
    def dice_lost(self) -> float:
        return self.dice[0] - self.dice[1]

    @property
    def is_lost(self) -> bool:
        return self.volume_ml[0] > 0 and self.volume_ml[1] == 0

    @property
    def volume_changed(self) -> float:
        """As a share of what float32 gives; 1 where that is nothing and bfloat16 finds something."""
        before, after = self.volume_ml
        return abs(after - before) / before if before else float(after > 0)


@dataclass(frozen=True)
class _Part:
    """A model, and cases that it left out."""

    bundle: str | Path | Bundle
    manifest: str | Path
    split: str
    fold: int | None
    data: str | Path | None


def prove_precision(
    model: str | Path | Bundle,
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    split: str = "validation",
    fold: int | None = None,
    data: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Predict left-out cases in float32 and in bfloat16, compare the label maps, and write the figures.

    Args:
        model: a bundle, opened or its path, with a manifest; or the folder of a cross-validation, whose fold models
            stand for their ensemble, each on its own cases.
        out: file of the figures, which `segpipe.export` takes as ``precision``.
        manifest: of a bundle's cases, with their truth.
        split: ``validation`` with a fold, or another one that holds no test case.
        fold: that the training of a bundle left out.
        data: folder of the files, where it is not that of the manifest or of the training.
        options: of `segpipe.predict`, such as ``runtime`` and ``mirror``, of which the proof is then; and the terms on
            which the bundle is opened.

    Returns:
        The document that was written.

    Raises:
        UsageError: no such split or fold, a bundle without a manifest, or the file cannot be written.
        DataError: a case could not be predicted or measured.
        RefusedError: the cases are test cases, or the bundle was trained on them; or as `segpipe.predict`.
    """
    out = Path(out)
    parts = _parts(model, manifest, split, fold, data)
    for part in parts:
        _refuse_test_cases(load_manifest(part.manifest), part.split, part.fold)
    require_writable(out.absolute().parent)
    trust = _trust(options)
    pairs = []
    with Partial(out.absolute().parent) as partial:
        for number, part in enumerate(parts):
            opened = part.bundle if isinstance(part.bundle, Bundle) else open_bundle(part.bundle, **trust)
            pairs.append(_predicted(opened, part, partial.folder / str(number), options))
    document = compare_precisions(pairs)
    write_json(out, document)
    return document


def _parts(
    model: str | Path | Bundle, manifest: str | Path | None, split: str, fold: int | None, data: str | Path | None
) -> list[_Part]:
    is_cross_validation = not isinstance(model, Bundle) and (Path(model) / CROSS_VALIDATION).is_file()
    if is_cross_validation != (manifest is None):
        raise UsageError(
            "a cross-validation brings its own manifest" if is_cross_validation else "a bundle needs a manifest",
            expected="segpipe bundle precision RUN, or segpipe bundle precision BUNDLE MANIFEST --fold K",
        )
    if manifest is not None:
        return [_Part(model, manifest, split, fold, data)]
    return [
        _Part(each.bundle, each.manifest, "validation", each.fold, data or each.data)
        for each in fold_models(Path(str(model)))
    ]


def _predicted(bundle: Bundle, part: _Part, folder: Path, options: Mapping[str, Any]) -> Pair:
    """Predict the cases both ways, and measure them."""
    where: dict[str, Any] = {"split": part.split, "fold": part.fold, "data": part.data}
    evaluations = []
    for precision in TYPES:
        batch = predict(
            bundle, part.manifest, folder / precision, precision=precision, overlay=False, **where, **options
        )
        failed = [f"{case.id}: {case.reason}" for case in batch.outcomes if case.status not in ("done", "skipped")]
        if failed:
            raise DataError("cases could not be predicted", found=some_of(failed), hint="mend or leave them out")
        evaluations.append(evaluate(part.manifest, folder / precision, figures=False, **where))
    return evaluations[0], evaluations[1]


def _trust(options: dict[str, Any]) -> dict[str, Any]:
    """Take the terms on which a bundle is opened out of the options of a prediction."""
    names = {"allow": "allow", "run_unvetted_code": "run_unvetted_code", "allow_unisolated": "allow_unisolated"}
    return {to: options.pop(name) for name, to in names.items() if name in options}


def _refuse_test_cases(manifest: Manifest, split: str, fold: int | None) -> None:
    test = {case.id for case in manifest.test}
    if any(case.id in test for case in manifest.select(split, fold)):
        raise RefusedError(
            "the precision is never chosen on test cases",
            found=f"--split {split}",
            hint="take the fold that the training left out: --split validation --fold K",
        )


def compare_precisions(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the figures of a proof.

    Args:
        pairs: of each model its cases, in float32 and in bfloat16.

    Raises:
        UsageError: the two are of other cases, or it is not known what made them.
        DataError: a case could not be measured.
        RefusedError: the model was trained on a case.
    """
    made_by = [_made_by(*pair) for pair in pairs]
    labels = [label for pair in pairs for label in _labels(*pair)]
    first, (one, _) = made_by[0], pairs[0]
    single = len(pairs) == 1
    means = {name: _mean([pair[number] for pair in pairs]) for number, name in enumerate(TYPES)}
    worst, changed = max(labels, key=lambda each: each.dice_lost), max(labels, key=lambda each: each.volume_changed)
    figures = {
        "cases": sum(len(float32.cases) for float32, _ in pairs),
        "mean_dice": {name: round(value, 6) for name, value in means.items()},
        "mean_dice_lost": round(means["float32"] - means["bfloat16"], 6),
        "case_dice_lost": round(worst.dice_lost, 6),
        "labels_lost": sum(each.is_lost for each in labels),
        "volume_changed": round(changed.volume_changed, 6),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": first["bundle"] if single else None,
        "files": first["files"] if single else _members([made["files"] for made in made_by]),
        "manifest_sha256": one.settings["manifest_sha256"],
        "split": one.settings["split"] if single else "out_of_fold",
        "fold": one.settings["fold"] if single else None,
        "runtime": sorted({runtime for made in made_by for runtime in made["runtime"]}),
        "mirror": first["mirror"],
        "processor": cpu_kind(),
        **figures,
        "worst": {
            "dice": {"case": worst.case_id, "label": worst.label},
            "volume": {"case": changed.case_id, "label": changed.label},
        },
        "faults": bfloat16_faults(figures),
    }


def _members(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the weights of fold models under the names that they have in their ensemble, whose config is its own."""
    return {member: each[WEIGHTS] for member, each in zip(weights_files(len(files)), files, strict=True)}


def _mean(evaluations: Sequence[Evaluation]) -> float:
    """Return the mean Dice over all cases that have one."""
    estimates = [evaluation.mean_dice for evaluation in evaluations]
    counted = sum(estimate.n for estimate in estimates)
    return sum((estimate.mean or 0.0) * estimate.n for estimate in estimates) / counted if counted else 0.0


def _made_by(float32: Evaluation, bfloat16: Evaluation) -> dict[str, Any]:
    """Return what made both, which differ in their precision alone."""
    for evaluation in (float32, bfloat16):
        if evaluation.failed:
            reasons = [f"{case.id}: {case.failure}" for case in evaluation.failed]
            raise DataError("cases could not be measured", found=some_of(reasons))
    made, other = float32.predictions["made_by"], bfloat16.predictions["made_by"]
    alone = [{name: value for name, value in each.items() if name != "precision"} for each in (made, other) if each]
    used = [each["precision"] for each in (made, other) if each]
    if used != [["float32"], ["bfloat16"]] or alone[0] != alone[1]:
        untied = {**float32.predictions["untied"], **bfloat16.predictions["untied"]}
        raise UsageError(
            "these are not the same cases, predicted by one bundle both ways",
            found=some_of(f"{case_id}: {reason}" for case_id, reason in untied.items()) or None,
            expected="two folders of `segpipe predict`, of one bundle and split, in float32 and in bfloat16",
        )
    _refuse_trained(float32.cases, float32.settings["manifest_sha256"])
    return dict(made)


def _labels(float32: Evaluation, bfloat16: Evaluation) -> list[_Label]:
    return [
        _Label(
            case.id,
            one.name,
            (1.0 if one.dice is None else one.dice, 1.0 if other.dice is None else other.dice),
            (one.prediction_ml or 0.0, other.prediction_ml or 0.0),
        )
        for case, again in zip(float32.cases, bfloat16.cases, strict=True)
        for one, other in zip(case.measures, again.measures, strict=True)
    ]


def _refuse_trained(cases: Sequence[CaseResult], manifest_sha256: str) -> None:
    trained = [case.id for case in cases if part_of_training(case.origin, manifest_sha256) == "training"]
    if trained:
        raise RefusedError(
            "cases that the model was trained on prove nothing of its precision",
            found=f"{len(trained)} of {len(cases)}: {some_of(trained)}",
            expected="cases that it left out",
            hint="name the fold of its validation: --split validation --fold K",
        )
