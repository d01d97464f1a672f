"""All variants under the same data, folds, seeds and budget: tried first, then run cell by cell.

A cell is trained, exported, predicted and evaluated by the functions of those names, each in a process of its own.
What is finished is not done again.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.common.console import Console
from segpipe.common.files import cannot_write, read_json
from segpipe.common.folder_lock import locked
from segpipe.common.shards import Shard, held_by
from segpipe.common.subprocesses import Ended, Listener, Subprocesses, in_threads
from segpipe.data import data_root, load_manifest
from segpipe.errors import OK, SegpipeError, UsageError
from segpipe.reporting import read_history
from segpipe.studies.comparison_figures import check_gifs
from segpipe.studies.comparison_page import write_outcome
from segpipe.studies.comparison_progress import Progress
from segpipe.studies.comparison_results import Row
from segpipe.studies.comparison_state import State, Study, open_state
from segpipe.studies.variants import (
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

TRYING = ".trying.lock"  # held while the variants are tried


def compare_variants(
    manifest: Path,
    settings: Settings,
    out: Path,
    console: Console,
    data: Path | None = None,
    gifs: Sequence[str] = (),
    jobs: int = 1,
    redraw: bool = False,
    shard: Shard | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Run what is not finished and write the report; the same call goes on where it stopped.

    Args:
        manifest: of the data set, with folds.
        settings: what is compared.
        out: folder of the comparison.
        console: shows how far it is.
        data: folder that the manifest's paths start from; default: its own.
        gifs: ids of cases to animate; by default the worst and the median case of the best variant.
        jobs: cells at the same time.
        redraw: run nothing, and report what is finished.
        shard: the share of the runs that is run, while others run theirs in the same folder; None: all, and the report.

    Returns:
        A row for each variant, the reference first (none of a share), and the content of compare.json.

    Raises:
        UsageError: the settings do not go together, or a variant cannot be trained; nothing is written then.
        RefusedError: another process runs this share, or a share of another number.
        KeyboardInterrupt: after what ran has been stopped.
    """
    dataset = load_manifest(manifest)
    check_gifs(gifs, dataset)
    study = Study(settings, dataset, manifest.resolve(), data_root(manifest, data).resolve(), out.resolve())
    state = open_state(study)
    if redraw:
        if not state.variants:
            raise UsageError("there is nothing to report yet", path=out, hint="run it without --redraw")
        return write_outcome(study, state, gifs), state.document
    busy = UsageError("another comparison works in this folder", path=out, hint="wait for it, or choose another --out")
    with held_by(out, shard, busy):
        processes = Subprocesses()
        with console.progress() as bar:
            progress = Progress(console, bar)
            _prepare(study, state, progress, processes)
            _run_cells(study, state, progress, processes, jobs, shard)
        if shard is not None:
            state.refresh()
            return [], state.document
        rows = write_outcome(study, state, gifs)
        state.write()
    return rows, state.document


def _prepare(study: Study, state: State, progress: Progress, processes: Subprocesses) -> None:
    """Try every variant, and record its epochs, or wait for the share that does so.

    Raises:
        UsageError: one cannot be trained; the message names it.
    """
    if not state.variants:
        with locked(study.out, UsageError("another share tries the variants"), name=TRYING, wait_s=math.inf):
            state.refresh()
            if not state.variants:
                _try_variants(study, state, progress, processes)


def _try_variants(study: Study, state: State, progress: Progress, processes: Subprocesses) -> None:
    """Nothing is written before all have passed."""
    settings = study.settings
    composed = _checked(study)
    variants = {}
    for variant in settings.variants():
        progress.say(f"checking {variant.name}")
        arguments = _train_arguments(study, variant, settings.folds[0], settings.seeds[0], 1)
        ended = processes.call("segpipe.train", {**arguments, "dry_run": True})
        if ended.code != OK:
            hint = ended.error.get("hint", "nothing was started")
            refused = UsageError(f"{variant.name} cannot be trained", found=ended.reason, hint=hint)
            refused.exit_code = ended.code if ended.code > 0 else refused.exit_code
            raise refused
        config, facts = composed[variant.name].config, ended.result["dry_run"]
        steps = {  # of an epoch, by fold: those that are set, or each case once; the last batch may be smaller
            str(fold): config["steps_per_epoch"]
            or -(-len(study.dataset.select("training", fold)) // config["batch_size"])
            for fold in settings.folds
        }
        variants[variant.name] = {
            "network": fragment_name(variant.network),
            "loss": fragment_name(variant.loss),
            "parameters": facts["parameters"],
            "patch_size": config["patch_size"],
            "steps_per_epoch": steps,
            "first_step_seconds": facts["seconds_per_step"],
            "notes": composed[variant.name].notes,
            "epochs": {fold: _epochs(study, int(fold), count, facts) for fold, count in steps.items()},
        }
    state.variants.update(variants)
    state.write()


def _checked(study: Study) -> dict[str, Composed]:
    """Return each variant's composed config, after all that can be refused without starting a process."""
    settings = study.settings
    check_sense(settings)
    for fold in settings.folds:
        study.dataset.select("validation", fold)
    if settings.split == "test" and not any(case.label for case in study.dataset.test):
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


def _epochs(study: Study, fold: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> int:
    """Return the epochs that the budget gives a run, by what the dry run measured."""
    if study.settings.steps is not None:
        return epochs_for_steps(study.settings.steps, steps_per_epoch)
    validation = len(study.dataset.select("validation", fold)) * facts["seconds_per_validation_case"]
    return epochs_for_minutes(study.settings.minutes or 0, steps_per_epoch * facts["seconds_per_step"], validation)


def _run_cells(
    study: Study, state: State, progress: Progress, processes: Subprocesses, jobs: int, shard: Shard | None
) -> None:
    """Run every cell that is not finished; one that fails is recorded and the others go on."""
    cells = [cell for cell in study.settings.cells(shard) if not state.finished(cell)]
    progress.begin(cells, state, jobs)

    def work(cell: Cell) -> None:
        progress.start(cell)
        facts = _run_cell(cell, study, state, processes, lambda line: progress.hear(cell, line))
        state.end(cell, facts)
        progress.end(cell, facts)

    in_threads(work, cells, jobs, processes)


class _CellFailed(Exception):  # noqa: N818 - it is the outcome of a cell, not a fault
    """A cell that cannot be finished, and why."""


def _run_cell(cell: Cell, study: Study, state: State, processes: Subprocesses, on_line: Listener) -> dict[str, Any]:
    """Do what is left to do of a cell; return how it ended, and the facts of its run."""
    memory = state.cells.get(cell.key, {}).get("peak_memory_mb")
    epochs = state.variants[cell.variant.name]["epochs"][str(cell.fold)]
    try:
        memory = _train(cell, study, epochs, processes, on_line) or memory
        state.end(cell, {"status": "trained", "peak_memory_mb": memory})
        failed_cases = _measure(cell, study, processes)
    except _CellFailed as failure:
        return {"status": "failed", "reason": str(failure), "peak_memory_mb": memory}
    record = read_json(study.folder(cell) / "run" / "run.json", "run record")
    history = read_history(study.folder(cell) / "run")
    trained = [float(row["train_seconds"]) for row in history if row.get("train_seconds")]
    return {
        "status": "finished",
        "epochs": record["epochs"],
        "best": record.get("best"),
        "seconds": round(sum(session.get("seconds", 0) for session in record["sessions"]), 1),
        "epoch_seconds": round(statistics.median(trained), 3) if trained else None,
        "peak_memory_mb": memory,
        "failed_cases": failed_cases,
    }


def _train(cell: Cell, study: Study, epochs: int, processes: Subprocesses, on_line: Listener) -> float | None:
    """Train, or go on where an earlier start was stopped.

    Returns:
        The peak memory in 10^6 bytes; None where nothing was left to do.
    """
    run = study.folder(cell) / "run"
    if _is_finished(run):
        return None
    _show_in_tensorboard(cell, study)
    if (run / "run.json").is_file():
        arguments: dict[str, Any] = {"resume": run, "data": study.data}
    else:
        arguments = {**_train_arguments(study, cell.variant, cell.fold, cell.seed, epochs), "out": run}
    memory = _done("training", processes.call("segpipe.train", arguments, on_line)).peak_memory_mb
    return None if memory is None else round(memory, 1)


def _train_arguments(study: Study, variant: Variant, fold: int, seed: int, epochs: int) -> dict[str, Any]:
    settings = study.settings
    overrides = list(settings.overrides)
    if not any(override.startswith("val_interval=") for override in overrides):
        overrides.insert(0, f"val_interval={validation_interval(epochs)}")
    return {
        "manifest": study.manifest,
        "data": study.data,
        **settings.fragments(variant),
        "fold": fold,
        "seed": seed,
        "epochs": epochs,
        "threads": settings.threads,
        "workers": settings.workers,
        "overrides": overrides,
    }


def _measure(cell: Cell, study: Study, processes: Subprocesses) -> int:
    """Export, predict and evaluate what was trained; return how many cases failed."""
    folder, split = study.folder(cell), study.settings.split
    bundle, predictions, metrics = (folder / name for name in ("bundle", "predictions", "metrics"))
    cases = {"split": split, "fold": cell.fold if split == "validation" else None, "data": study.data}
    if not bundle.exists():
        _done("export", processes.call("segpipe.export", {"run": folder / "run", "out": bundle}))
    if not (metrics / "metrics.json").exists():
        arguments = {"bundle": bundle, "inputs": study.manifest, "out": predictions, **cases}
        _done("prediction", processes.call("segpipe.predict", {**arguments, "threads": study.settings.threads}))
        arguments = {"manifest": study.manifest, "predictions": predictions, "out": metrics, **cases}
        arguments["reason"] = "segpipe compare"
        _done("evaluation", processes.call("segpipe.evaluate", arguments))
    results = read_json(metrics / "metrics.json", "evaluation")["cases"]
    return sum(case["failure"] is not None for case in results)


def _done(step: str, ended: Ended) -> Ended:
    if ended.code != OK:
        raise _CellFailed(f"{step}: {ended.reason}")
    return ended


def _is_finished(run: Path) -> bool:
    try:
        return bool(read_json(run / "run.json", "run record")["status"] == "finished")
    except SegpipeError:
        return False


def _show_in_tensorboard(cell: Cell, study: Study) -> None:
    """Link to the run's own files, relative so that the folder can be moved."""
    link = study.out / "tensorboard" / cell.variant.name / cell.place
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            shutil.rmtree(link)
        target = os.path.relpath(study.folder(cell) / "run" / "tensorboard", link.parent)
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise cannot_write(link, error) from error
