"""One cell, by the ordinary commands: train, export, predict, evaluate. What is finished is not done again.

All variants under the same data, folds, seeds and budget: checked first, then run cell by cell.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.files import cannot_write, read_json
from segpipe.common.subprocesses import Ended, Listener
from segpipe.data import Manifest
from segpipe.errors import OK, SOME_FAILED, SegpipeError, UsageError
from segpipe.reporting import read_history
from segpipe.studies.compare.progress import Progress, State
from segpipe.studies.compare.variants import (
    Cell,
    Settings,
    Variant,
    check_sense,
    epochs_for_minutes,
    epochs_for_steps,
    fragment_name,
    validation_interval,
)
from segpipe.training import Composed, compose_config

Run = Callable[[Sequence[str], Listener], Ended]


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


def train_cell(cell: Cell, settings: Settings, place: Place, epochs: int, run: Run, on_line: Listener) -> float | None:
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


def train_words(settings: Settings, place: Place, variant: Variant, fold: int, seed: int, epochs: int) -> list[str]:
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


def check_settings(settings: Settings, manifest: Manifest) -> dict[str, Composed]:
    """What can be refused without starting a process: names, folds, and every composition.

    Returns:
        Variant name to its composed config.

    Raises:
        UsageError: naming the variant.
    """
    check_sense(settings)
    for fold in settings.folds:
        manifest.select("validation", fold)
    if settings.split == "test" and not any(case.label for case in manifest.test):
        raise UsageError("the manifest has no labelled test case", hint="compare on --split validation")
    composed = {}
    for variant in settings.variants():
        try:
            values = {"fold": (settings.folds[0], "--folds")}
            composed[variant.name] = compose_config(settings.fragments(variant), settings.overrides, values)
        except UsageError as error:
            error.message = f"{variant.name}: {error.message}"
            raise
    return composed


def prepare(state: State, settings: Settings, manifest: Manifest, place: Place, progress: Progress, run: Run) -> None:
    """Check every variant by a dry run, and record its epochs; nothing is written before all have passed.

    Raises:
        UsageError: one cannot be trained; the message names it.
    """
    if state.variants:
        return
    composed = check_settings(settings, manifest)
    for variant in settings.variants():
        progress.say(f"checking {variant.name}")
        words = train_words(settings, place, variant, settings.folds[0], settings.seeds[0], 1)
        ended = run([*words, "--dry-run"], lambda line: None)
        if ended.code != OK:
            refused = UsageError(
                f"{variant.name} cannot be trained",
                found=ended.reason,
                hint=ended.document.get("error", {}).get("hint", "nothing was started"),
            )
            refused.exit_code = ended.code if ended.code > 0 else refused.exit_code
            raise refused
        config = composed[variant.name].config
        facts = ended.document["dry_run"]
        state.variants[variant.name] = {
            "network": fragment_name(variant.network),
            "loss": fragment_name(variant.loss),
            "parameters": facts["parameters"],
            "patch_size": config["patch_size"],
            "steps_per_epoch": _steps_per_epoch(settings, manifest, config["batch_size"]),
            "first_step_seconds": facts["seconds_per_step"],
            "notes": composed[variant.name].notes,
        }
        _set_epochs(state.variants[variant.name], settings, manifest, facts)
    state.write()


def run_all(
    state: State, settings: Settings, place: Place, progress: Progress, jobs: int, run: Run, stop: Callable[[], None]
) -> None:
    """Run every cell that is not finished; a cell that fails is recorded and the others go on.

    Args:
        state: of the comparison, prepared.
        settings: of the comparison.
        place: where everything is.
        progress: told what goes on.
        jobs: cells at the same time.
        run: runs a command.
        stop: interrupts the commands that run.

    Raises:
        KeyboardInterrupt: after what ran has been stopped; the next start goes on from there.
    """
    cells = [cell for cell in settings.cells() if not state.finished(cell.key)]
    progress.begin(cells, state)

    def work(cell: Cell) -> None:
        facts = _run_cell(cell, state, settings, place, run, lambda line: progress.hear(cell, line))
        state.end(cell.key, facts)
        progress.end(cell, facts)

    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(work, cell) for cell in cells}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def _run_cell(
    cell: Cell, state: State, settings: Settings, place: Place, run: Run, on_line: Listener
) -> dict[str, Any]:
    """Do what is left to do of a cell: how it ended, and the facts of its run."""
    epochs = state.variants[cell.variant.name]["epochs"][str(cell.fold)]
    memory = state.cells.get(cell.key, {}).get("peak_memory_mb")
    try:
        memory = train_cell(cell, settings, place, epochs, run, on_line) or memory
        state.end(cell.key, {"status": "trained", "peak_memory_mb": memory})
        failed_cases = measure_cell(cell, settings, place, run)
    except CellFailed as failure:
        return {"status": "failed", "reason": str(failure), "peak_memory_mb": memory}
    facts = run_facts(place.cell(cell) / "run")
    return {"status": "finished", **facts, "peak_memory_mb": memory, "failed_cases": failed_cases}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second comparison out of the folder.

    Raises:
        UsageError: one works there.
    """
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
                "another comparison works in this folder", path=out, hint="wait for it, or choose another --out"
            ) from error
        yield


def _steps_per_epoch(settings: Settings, manifest: Manifest, batch_size: int) -> dict[str, int]:
    """Fold to steps; the last batch of an epoch may be smaller."""
    return {str(fold): -(-len(manifest.select("training", fold)) // batch_size) for fold in settings.folds}


def _set_epochs(variant: dict[str, Any], settings: Settings, manifest: Manifest, facts: dict[str, Any]) -> None:
    variant["epochs"] = {}
    for fold, steps in variant["steps_per_epoch"].items():
        if settings.steps is not None:
            epochs = epochs_for_steps(settings.steps, steps)
        else:
            cases = len(manifest.select("validation", int(fold)))
            training = steps * facts["seconds_per_step"]
            validation = cases * facts["seconds_per_validation_case"]
            epochs = epochs_for_minutes(settings.minutes or 0, training, validation)
        variant["epochs"][fold] = epochs
