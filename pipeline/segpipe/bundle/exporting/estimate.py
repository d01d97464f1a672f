"""What is known of a model that no case was left out for: the out-of-fold figures of models of the same training.

An ensemble of all folds, and a model of all cases, saw every case: no figure on these is theirs. The models of the
folds are measured on what each left out (``out_of_fold.json``), and a card may show that, with whose figures they
are.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.members import CROSS_VALIDATION, Members, differing_settings, read_members
from segpipe.bundle.exporting.run_record import weights_of
from segpipe.common.console import quoted
from segpipe.common.files import json_text, read_json, sha256_of
from segpipe.errors import DataError, RefusedError, UsageError

OUT_OF_FOLD = "out_of_fold.json"
# a model of all cases may be trained longer, on another machine, and has nothing to validate
OF_A_LENGTH = {"max_epochs", "steps_per_epoch", "warmup_epochs", "val_interval", "threads", "num_workers"}
DIGITS = 6  # a card shows three: of a number that is rounded twice the last one can be wrong


def read_estimate(members: Members, run: Path, estimated_by: Path | None) -> dict[str, Any] | None:
    """Return the out-of-fold figures that stand for a bundle without figures of its own, for ``metadata.json``.

    Args:
        members: what becomes the bundle.
        run: the folder that they were read from.
        estimated_by: folder of the cross-validation that stands for a model of all cases; of an ensemble it is its own.

    Returns:
        None where there are none.

    Raises:
        UsageError: the run left cases out itself, or the folder is no measured cross-validation.
        DataError: ``out_of_fold.json`` cannot be read.
        RefusedError: it is of other data, other settings or other weights.
    """
    if len(members) > 1:
        if estimated_by is not None and estimated_by.resolve() != run.resolve():
            raise UsageError(
                "an ensemble is estimated by its own folds",
                path=estimated_by,
                expected=str(run),
                hint="leave out --estimated-by",
            )
        return _figures(members, run) if (run / OUT_OF_FOLD).is_file() else None
    if estimated_by is None:
        return None
    own = members.runs[0]
    if own.cases.get("validation") or own.record.get("fold") is not None:
        raise UsageError(
            "the run left cases out, and has figures of its own",
            path=run,
            found=f"fold {own.record.get('fold')}",
            expected="a run of `segpipe train --fold none`",
            hint="leave out --estimated-by",
        )
    if not (estimated_by / CROSS_VALIDATION).is_file() or not (estimated_by / OUT_OF_FOLD).is_file():
        missing = next(name for name in (CROSS_VALIDATION, OUT_OF_FOLD) if not (estimated_by / name).is_file())
        raise UsageError(
            "not a measured cross-validation",
            path=estimated_by,
            found=f"no {missing}",
            expected="a folder of `segpipe train --folds all`",
            hint=f"make it with `segpipe train MANIFEST --folds all --out {quoted(estimated_by)}`",
        )
    folds = read_members(estimated_by)
    theirs = folds.runs[0]
    differing = differing_settings(own, theirs, OF_A_LENGTH)
    if differing:
        raise RefusedError(
            "the cross-validation is of another training, and says nothing of this model",
            path=estimated_by,
            found=f"other: {', '.join(differing)}",
            expected="the same data and settings",
            hint="train the folds with the settings of this model, or leave out --estimated-by",
        )
    other_length = any(own.config.get(key) != theirs.config.get(key) for key in ("max_epochs", "steps_per_epoch"))
    return _figures(folds, estimated_by, other_length)


def _figures(folds: Members, folder: Path, other_length: bool = False) -> dict[str, Any]:
    document = read_json(folder / OUT_OF_FOLD, "out-of-fold figures")
    try:
        rows, figure = document["folds"], document["figure"]
        measured = {str(row["folder"]): str(row["weights"]["sha256"]) for row in rows}
        estimate = {
            "of": str(document["of"]),
            "measure": str(figure["measure"]),
            "folds": len(rows),
            "cases": sum(int(row["cases"]) for row in rows),
            "patients": sum(int(row["patients"]) for row in rows),
            "raw": _rounded(figure["raw"]),
            "corrected": _rounded(figure["corrected"]),
            "candidates": int(figure["candidates"]),
            "method": str(figure["method"]),
            "selected": [_selected(choice) for choice in document["selected"]],
            "with_postprocessing": {
                name: None if value is None else round(float(value), DIGITS)
                for name in ("raw", "corrected")
                for value in [document["postprocessing"][name]]
            },
            "other_length": other_length,
            "note": document["patients"]["note"],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_figures(folder, error) from error
    _require_of_its_cases(document, folder)
    weights = {each.name: sha256_of(weights_of(each)) for each in folds.folders}
    if measured != weights:
        other = next(name for name in sorted({*measured, *weights}) if measured.get(name) != weights.get(name))
        raise RefusedError(
            "the out-of-fold figures are not of the weights that the folds have now",
            path=folder / OUT_OF_FOLD,
            found=f"other weights, or none, of {other}",
            hint=f"measure them anew: `segpipe train --resume {quoted(folder)}`",
        )
    return estimate


def _not_figures(folder: Path, error: Exception) -> DataError:
    return DataError(
        "not the figures of a cross-validation",
        path=folder / OUT_OF_FOLD,
        found=f"{type(error).__name__}: {error}",
        expected="what `segpipe train --folds` writes",
    )


def _require_of_its_cases(document: Mapping[str, Any], folder: Path) -> None:
    """Refuse a figure that is not the mean of the cases beside it.

    Raises:
        DataError: the cases cannot be read.
        RefusedError: it is another number.
    """
    try:
        scores = [float(case["mean_dice"]) for case in document["cases"] if case["mean_dice"] is not None]
        mean = document["figure"]["raw"]["mean"]
    except (KeyError, TypeError, ValueError) as error:
        raise _not_figures(folder, error) from error
    expected = statistics.fmean(scores) if scores else None
    if expected is None or mean is None:
        same = expected == mean
    else:
        same = math.isclose(float(mean), expected, abs_tol=1e-9)
    if not same:
        raise RefusedError(
            "the out-of-fold figure is not the mean of its cases",
            path=folder / OUT_OF_FOLD,
            found=str(mean),
            expected=str(expected),
            hint=f"remove the file, and measure them anew: `segpipe train --resume {quoted(folder)}`",
        )


def _rounded(figure: Mapping[str, Any]) -> dict[str, float | None]:
    named = {"value": "mean", "low": "low", "high": "high"}
    return {to: None if figure[name] is None else round(float(figure[name]), DIGITS) for to, name in named.items()}


def _selected(choice: Mapping[str, Any]) -> dict[str, Any]:
    candidates = choice["candidates"]
    count = len(candidates) if isinstance(candidates, Sequence) else int(candidates)
    return {"what": str(choice["what"]), "chosen": str(choice["chosen"]), "candidates": count}


def estimate_record(folder: Path, estimate: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ties an estimate to where it is from, for ``provenance.json``."""
    document = read_json(folder / OUT_OF_FOLD, "out-of-fold figures")
    return {
        "out_of_fold_sha256": sha256_of(folder / OUT_OF_FOLD),
        "estimate_sha256": estimate_sha256(estimate),
        "folds": [
            {"fold": row["fold"], "epochs": row["epochs"], "weights_sha256": row["weights"]["sha256"]}
            for row in document["folds"]
        ],
    }


def estimate_sha256(estimate: Mapping[str, Any]) -> str:
    """Return the hash by which an estimate is known again."""
    return hashlib.sha256(json_text(estimate).encode()).hexdigest()
