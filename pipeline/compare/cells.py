"""One cell, by the ordinary commands: train, export, predict, evaluate. What is finished is not done again."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.children import Ended, Listener, Run
from pipeline.compare.budget import validation_interval
from pipeline.compare.variants import Cell, Settings, Variant
from pipeline.errors import OK, SOME_FAILED, SegpipeError
from pipeline.files import cannot_write, read_json
from pipeline.report.curves import read_history


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Attributes:
        manifest: path of the manifest.
        data: folder that its paths start from.
        out: folder of the comparison.
    """

    manifest: Path
    data: Path
    out: Path

    def cell(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return self.out / "runs" / cell.variant.name / cell.place


class CellFailed(Exception):  # noqa: N818 - it is the outcome of a cell, not a fault
    """A cell that cannot be finished, and why."""


def train_cell(
    cell: Cell, settings: Settings, place: Place, epochs: int, run: Run, on_line: Listener
) -> float | None:
    """Train, or go on where an earlier start was stopped.

    Args:
        cell: which.
        settings: of the comparison.
        place: where.
        epochs: of the training.
        run: runs a command.
        on_line: called with each line that the training says.

    Returns:
        The peak memory in MB; None where nothing was left to do.

    Raises:
        CellFailed: with the reason.
    """
    folder = place.cell(cell) / "run"
    if _is_finished(folder):
        return None
    _show_in_tensorboard(cell, place)
    if (folder / "run.json").is_file():
        words = ["train", "--resume", str(folder), "--data", str(place.data), "--json"]
    else:
        words = train_words(settings, place, cell.variant, cell.fold, cell.seed, epochs)
        words = [*words, "--out", str(folder)]
    memory = _done("training", run(words, on_line)).peak_memory_mb
    return None if memory is None else round(memory, 1)


def measure_cell(cell: Cell, settings: Settings, place: Place, run: Run) -> int:
    """Export, predict and evaluate what was trained; returns how many cases failed.

    Raises:
        CellFailed: with the reason.
    """
    folder = place.cell(cell)
    which = ["--split", settings.split]
    if settings.split == "validation":
        which += ["--fold", str(cell.fold)]
    data = ["--data", str(place.data), "--json"]
    bundle, predictions, metrics = (str(folder / name) for name in ("bundle", "predictions", "metrics"))
    if not (folder / "bundle").exists():
        _done("export", _silently(run, ["export", str(folder / "run"), bundle, "--json"]))
    if not (folder / "metrics" / "metrics.json").exists():
        threads = ["--threads", str(settings.threads)] if settings.threads else []
        words = ["predict", bundle, str(place.manifest), predictions, *which, *threads, *data]
        _done("prediction", _silently(run, words), OK, SOME_FAILED)
        words = ["evaluate", str(place.manifest), predictions, "--out", metrics, *which, *data]
        _done("evaluation", _silently(run, words), OK, SOME_FAILED)
    cases = read_json(folder / "metrics" / "metrics.json", "evaluation")["cases"]
    return sum(case["failure"] is not None for case in cases)


def train_words(
    settings: Settings, place: Place, variant: Variant, fold: int, seed: int, epochs: int
) -> list[str]:
    """The words of ``segpipe train`` but for --out."""
    words = ["train", str(place.manifest), "--data", str(place.data)]
    for kind, fragment in settings.fragments(variant).items():
        words += [f"--{kind}", fragment]
    words += ["--fold", str(fold), "--seed", str(seed), "--epochs", str(epochs)]
    for option, value in (("--threads", settings.threads), ("--workers", settings.workers)):
        words += [option, str(value)] if value is not None else []
    if not any(override.startswith("val_interval=") for override in settings.overrides):
        words += ["--set", f"val_interval={validation_interval(epochs)}"]
    for override in settings.overrides:
        words += ["--set", override]
    return [*words, "--json"]


def run_facts(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself: epochs, best epoch, seconds in all, and of training alone."""
    record = read_json(folder / "run.json", "run record")
    trained = [float(row["train_seconds"]) for row in read_history(folder) if row.get("train_seconds")]
    return {
        "epochs": record["epochs"],
        "best": record.get("best"),
        "seconds": round(sum(session.get("seconds", 0) for session in record["sessions"]), 1),
        "epoch_seconds": round(statistics.median(trained), 3) if trained else None,
    }


def _silently(run: Run, words: Sequence[str]) -> Ended:
    return run(words, lambda line: None)


def _done(what: str, ended: Ended, *accepted: int) -> Ended:
    if ended.code not in (accepted or (OK,)):
        raise CellFailed(f"{what}: {ended.reason}")
    return ended


def _is_finished(folder: Path) -> bool:
    try:
        return bool(read_json(folder / "run.json", "run record")["status"] == "finished")
    except SegpipeError:
        return False


def _show_in_tensorboard(cell: Cell, place: Place) -> None:
    """A link to the run's own files, relative so that the folder can be moved."""
    link = place.out / "tensorboard" / cell.variant.name / cell.place
    target = place.cell(cell) / "run" / "tensorboard"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            shutil.rmtree(link)
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    except OSError as error:
        raise cannot_write(link, error) from error
