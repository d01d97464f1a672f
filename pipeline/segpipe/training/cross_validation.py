"""One training on every fold: each case is left out by exactly one model.

    OUT/fold_0, OUT/fold_1, ...   ordinary run folders, named by the fold that they leave out
    OUT/cross_validation.json     how each stands
    OUT/out_of_fold/, OUT/out_of_fold.json   of `segpipe.training.out_of_fold`

Each model has the weights of its last epoch, and the number of epochs is fixed: to keep the best by the validation of
the very fold that is reported would choose on the cases that the figure is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segpipe.common.console import quoted
from segpipe.common.files import read_json, write_json
from segpipe.errors import DataError
from segpipe.training.run_folder import CROSS_VALIDATION
from segpipe.training.several_runs import Progress, Series, Sources, sources_of, train_series

SCHEMA_VERSION = 1


def train_folds(
    sources: Sources, out: Path, folds: Sequence[int], jobs: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Train a model a fold; one that is finished is kept as it is.

    Args:
        sources: config of one of them, and the data set.
        out: folder of the runs.
        folds: which; those that were begun there belong to it as well.
        jobs: folds at the same time.
        progress: called with a line for each fold and epoch; None writes them to standard error.

    Returns:
        The content of ``cross_validation.json``.

    Raises:
        UsageError: the folder holds a single run, or a fold has another config; nothing is trained then.
        SegpipeError: a training failed; with its exit code.
        KeyboardInterrupt: it was interrupted; `resume_folds` goes on.
    """
    begun = read_cross_validation(out)["folds"] if (out / CROSS_VALIDATION).is_file() else []
    return _train(series_of(out, {*folds, *(row["fold"] for row in begun)}), sources, jobs, progress)


def resume_folds(
    out: Path, data: Path | None = None, jobs: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Go on where `train_folds` stopped: what is finished is kept, what is not is resumed or begun.

    Raises:
        UsageError: nothing was begun there; else as of `train_folds`.
        DataError: ``cross_validation.json`` cannot be read.
    """
    series = series_of(out, [row["fold"] for row in read_cross_validation(out)["folds"]])
    return _train(series, sources_of(series, data), jobs, progress)


def read_cross_validation(out: Path) -> dict[str, Any]:
    """Return the content of ``cross_validation.json``.

    Raises:
        UsageError: there is none.
        DataError: it is something else.
    """
    hint = f"remove it and give the first command again, with --out {quoted(out)}: what is finished is kept"
    document = read_json(out / CROSS_VALIDATION, "record of a cross-validation", hint)
    try:
        folds = [int(row["fold"]) for row in document["folds"]]
        whole = bool(folds) and folds == sorted(set(folds)) and all(row["status"] for row in document["folds"])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DataError(f"not a {CROSS_VALIDATION} of `segpipe train --folds`", path=out / CROSS_VALIDATION, hint=hint)
    return dict(document)


def series_of(out: Path, folds: Iterable[int]) -> Series:
    """Return the runs of a cross-validation."""
    return Series("fold", tuple(sorted(folds)), out, "fold_{}")


def _train(series: Series, sources: Sources, jobs: int, progress: Progress | None) -> dict[str, Any]:
    train_series(series, sources, lambda: _write(series), jobs, progress)
    return _write(series)


def _write(series: Series) -> dict[str, Any]:
    document = {"schema_version": SCHEMA_VERSION, "folds": series.rows("status", "epochs")}
    write_json(series.out / CROSS_VALIDATION, document)
    return document
