"""One training with several seeds, and how far apart they end.

    OUT/seed0, OUT/seed1, ...   ordinary run folders, named by the seed
    OUT/seeds.json              how each stands, and mean and spread of their best validation Dice

Each seed is trained by `segpipe.train` in a process of its own: the run that it would be alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segpipe.common.console import Console
from segpipe.common.files import read_json, write_json
from segpipe.errors import DataError
from segpipe.training.run_folder import SEEDS
from segpipe.training.several_runs import Progress, Series, Sources, sources_of, train_series

SCHEMA_VERSION = 1


def train_seeds(
    sources: Sources, out: Path, count: int, jobs: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Train with the config's seed and the ones that follow it; a run that is finished is kept as it is.

    Seeds that were begun there belong to it as well: to leave one out after it was seen would be a choice.

    Args:
        sources: config of the first of them, and the data set.
        out: folder of the runs.
        count: how many.
        jobs: runs at the same time.
        progress: called with a line for each seed and epoch; None writes them to standard error.

    Returns:
        The content of ``seeds.json``.

    Raises:
        UsageError: the folder holds a single run, or one of a seed has another config; nothing is trained then.
        SegpipeError: a training failed; with its exit code.
        KeyboardInterrupt: it was interrupted; `resume_seeds` goes on.
    """
    first = int(sources.composed.config["seed"])
    asked = range(first, first + count)
    listed = _series(out, [row["seed"] for row in read_seeds(out)["seeds"]] if (out / SEEDS).is_file() else [])
    begun = {seed for seed in listed.values if listed.is_begun(seed)}
    if more := sorted(begun - {*asked}):
        words = f"seeds that were begun here before belong to the spread as well: {', '.join(map(str, more))}"
        (progress or Console("train").note)(words)
    return _train(_series(out, sorted({*begun, *asked})), sources, jobs, progress)


def resume_seeds(
    out: Path, data: Path | None = None, jobs: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Go on where `train_seeds` stopped: what is finished is kept, what is not is resumed or begun.

    Raises:
        UsageError: nothing was begun there; else as of `train_seeds`.
        DataError: ``seeds.json`` cannot be read.
    """
    series = _series(out, [row["seed"] for row in read_seeds(out)["seeds"]])
    return _train(series, sources_of(series, data), jobs, progress)


def read_seeds(out: Path) -> dict[str, Any]:
    """Return the content of ``seeds.json``.

    Raises:
        UsageError: there is none.
        DataError: it is something else.
    """
    document = read_json(out / SEEDS, "record of several seeds")
    try:
        seeds = [int(row["seed"]) for row in document["seeds"]]
        whole = bool(seeds) and seeds == sorted(set(seeds)) and "val_mean_dice" in document
    except (KeyError, TypeError, ValueError, IndexError):
        whole = False
    if not whole:
        raise DataError(f"not a {SEEDS} of `segpipe train --seeds`", path=out / SEEDS)
    return dict(document)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, sample standard deviation (of n - 1), smallest and largest; None where there are too few."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "n": len(values),
    }


def _series(out: Path, seeds: Sequence[int]) -> Series:
    return Series("seed", tuple(seeds), out, "seed{}")


def _train(series: Series, sources: Sources, jobs: int, progress: Progress | None) -> dict[str, Any]:
    train_series(series, sources, lambda: _write(series), jobs, progress)
    return _write(series)


def _write(series: Series) -> dict[str, Any]:
    rows = series.rows("status", "epochs", "best")
    best = [row["best"]["val_mean_dice"] for row in rows if row["status"] == "finished" and row["best"]]
    document = {"schema_version": SCHEMA_VERSION, "seeds": rows, "val_mean_dice": spread(best)}
    write_json(series.out / SEEDS, document)
    return document
