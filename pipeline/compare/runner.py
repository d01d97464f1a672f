"""All variants under the same data, folds, seeds and budget: checked first, then run cell by cell."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.children import Listener, Run
from pipeline.compare.budget import epochs_for_minutes, epochs_for_steps
from pipeline.compare.cells import CellFailed, Place, measure_cell, run_facts, train_cell, train_words
from pipeline.compare.progress import Progress
from pipeline.compare.state import State
from pipeline.compare.variants import Cell, Settings, check_sense, fragment_name
from pipeline.compose import Composed, compose
from pipeline.errors import OK, UsageError
from pipeline.files import cannot_write
from pipeline.manifest import Manifest


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
            composed[variant.name] = compose(settings.fragments(variant), settings.overrides, values)
        except UsageError as error:
            error.message = f"{variant.name}: {error.message}"
            raise
    return composed


def prepare(
    state: State, settings: Settings, manifest: Manifest, place: Place, progress: Progress, run: Run
) -> None:
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
    state: State,
    settings: Settings,
    place: Place,
    progress: Progress,
    jobs: int,
    run: Run,
    stop: Callable[[], None],
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
                "another comparison works in this folder",
                path=out,
                hint="wait for it, or choose another --out",
            ) from error
        yield


def _steps_per_epoch(settings: Settings, manifest: Manifest, batch_size: int) -> dict[str, int]:
    """Fold to steps; the last batch of an epoch may be smaller."""
    return {str(fold): -(-len(manifest.select("training", fold)) // batch_size) for fold in settings.folds}


def _set_epochs(
    variant: dict[str, Any], settings: Settings, manifest: Manifest, facts: dict[str, Any]
) -> None:
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
