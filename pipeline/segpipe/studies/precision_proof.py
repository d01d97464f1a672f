"""Does a bundle give the same label maps with bfloat16: its left-out cases, predicted both ways and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle import Bundle, open_bundle
from segpipe.common.console import some_of
from segpipe.common.files import require_writable, write_json
from segpipe.common.partial import Partial
from segpipe.common.provenance import cpu_kind
from segpipe.data import Manifest, load_manifest
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.evaluation import CaseResult, Evaluation, evaluate, part_of_training
from segpipe.inference import bfloat16_faults
from segpipe.prediction import predict

SCHEMA_VERSION = 1
TYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class _Pair:
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


def prove_precision(
    bundle: str | Path | Bundle,
    manifest: str | Path,
    out: str | Path,
    *,
    split: str = "validation",
    fold: int | None = None,
    data: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Predict left-out cases in float32 and in bfloat16, compare the label maps, and write the figures.

    Args:
        bundle: opened, or its path.
        manifest: of the cases, with their truth.
        out: file of the figures, which `segpipe.export` takes as ``precision``.
        split: ``validation`` with a fold, or another one that holds no test case.
        fold: that the training left out.
        data: folder of the manifest's files, where it is not its own.
        options: of `segpipe.predict`, such as ``runtime`` and ``mirror``, of which the proof is then; and the terms on
            which the bundle is opened.

    Returns:
        The document that was written.

    Raises:
        UsageError: no such split or fold, or the file cannot be written.
        DataError: a case could not be predicted or measured.
        RefusedError: the cases are test cases, or the bundle was trained on them; or as `segpipe.predict`.
    """
    out, dataset = Path(out), load_manifest(manifest)
    _refuse_test_cases(dataset, split, fold)
    require_writable(out.absolute().parent)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, **_trust(options))
    where: dict[str, Any] = {"split": split, "fold": fold, "data": data}
    evaluations = []
    with Partial(out.absolute().parent) as partial:
        for precision in TYPES:
            into = partial.folder / precision
            batch = predict(opened, manifest, into, precision=precision, overlay=False, **where, **options)
            failed = [f"{case.id}: {case.reason}" for case in batch.outcomes if case.status not in ("done", "skipped")]
            if failed:
                raise DataError("cases could not be predicted", found=some_of(failed), hint="mend or leave them out")
            evaluations.append(evaluate(manifest, into, figures=False, **where))
    document = compare_precisions(*evaluations)
    write_json(out, document)
    return document


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


def compare_precisions(float32: Evaluation, bfloat16: Evaluation) -> dict[str, Any]:
    """Return the figures of a proof.

    Args:
        float32: of the label maps that are right.
        bfloat16: of the same cases.

    Raises:
        UsageError: they are of other cases, or it is not known what made them.
        DataError: a case could not be measured.
        RefusedError: the model was trained on a case.
    """
    for evaluation in (float32, bfloat16):
        if evaluation.failed:
            reasons = [f"{case.id}: {case.failure}" for case in evaluation.failed]
            raise DataError("cases could not be measured", found=some_of(reasons))
    made_by, untied = float32.predictions["made_by"], float32.predictions["untied"]
    if made_by is None or [case.id for case in float32.cases] != [case.id for case in bfloat16.cases]:
        raise UsageError(
            "these are not the same cases, predicted by one bundle",
            found=some_of(f"{case_id}: {reason}" for case_id, reason in untied.items()) or None,
            expected="two folders of `segpipe predict`, of one bundle and split",
        )
    _refuse_trained(float32.cases, float32.settings["manifest_sha256"])
    pairs = [
        _Pair(
            case.id,
            one.name,
            (1.0 if one.dice is None else one.dice, 1.0 if other.dice is None else other.dice),
            (one.prediction_ml or 0.0, other.prediction_ml or 0.0),
        )
        for case, again in zip(float32.cases, bfloat16.cases, strict=True)
        for one, other in zip(case.measures, again.measures, strict=True)
    ]
    means = {"float32": float32.mean_dice.mean or 0.0, "bfloat16": bfloat16.mean_dice.mean or 0.0}
    worst, changed = max(pairs, key=lambda pair: pair.dice_lost), max(pairs, key=lambda pair: pair.volume_changed)
    figures = {
        "cases": len(float32.cases),
        "mean_dice": {name: round(value, 6) for name, value in means.items()},
        "mean_dice_lost": round(means["float32"] - means["bfloat16"], 6),
        "case_dice_lost": round(worst.dice_lost, 6),
        "labels_lost": sum(pair.is_lost for pair in pairs),
        "volume_changed": round(changed.volume_changed, 6),
    }
    used = bfloat16.predictions["made_by"]
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": made_by["bundle"],
        "files": made_by["files"],
        "manifest_sha256": float32.settings["manifest_sha256"],
        "split": float32.settings["split"],
        "fold": float32.settings["fold"],
        "runtime": used["runtime"],
        "mirror": used["mirror"],
        "processor": cpu_kind(),
        **figures,
        "worst": {
            "dice": {"case": worst.case_id, "label": worst.label},
            "volume": {"case": changed.case_id, "label": changed.label},
        },
        "faults": bfloat16_faults(figures),
    }


def _refuse_trained(cases: Sequence[CaseResult], manifest_sha256: str) -> None:
    trained = [case.id for case in cases if part_of_training(case.origin, manifest_sha256) == "training"]
    if trained:
        raise RefusedError(
            "cases that the model was trained on prove nothing of its precision",
            found=f"{len(trained)} of {len(cases)}: {some_of(trained)}",
            expected="cases that it left out",
            hint="name the fold of its validation: --split validation --fold K",
        )
