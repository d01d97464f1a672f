"""One training with several seeds, and how far apart they end.

    OUT/seed0, OUT/seed1, ...   ordinary run folders, named by the seed
    OUT/seeds.json              how each stands, and mean and spread of their best validation Dice

Each seed is trained by `segpipe.train` in a process of its own: the run that it would be alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segpipe.common.console import Console
from segpipe.common.files import read_json, write_json
from segpipe.common.subprocesses import Ended, Subprocesses
from segpipe.data import FINGERPRINT
from segpipe.errors import OK, USAGE, DataError, SegpipeError, UsageError
from segpipe.training.fragments import Composed
from segpipe.training.run_folder import SEEDS, prepare, read_places, require_same

SCHEMA_VERSION = 1
Progress = Callable[[str], object]


def train_seeds(
    composed: Composed,
    manifest: Path,
    out: Path,
    count: int,
    fingerprint: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train with the config's seed and the ones that follow it; a run that is finished is kept as it is.

    Args:
        composed: config of the first of them.
        manifest: of the data set.
        out: folder of the runs.
        count: how many.
        fingerprint: of the data set, kept in each run; passed over where it is not there.
        data: where a run that goes on finds its data; None where its config says.
        progress: called with a line for each seed and epoch; None writes them to standard error.

    Returns:
        The content of ``seeds.json``.

    Raises:
        UsageError: the folder holds a single run, or one of a seed has another config; nothing is trained then.
        SegpipeError: a training failed; with its exit code.
        KeyboardInterrupt: it was interrupted; `resume_seeds` goes on.
    """
    if (out / "run.json").exists():
        raise UsageError("the folder holds a single run", path=out, hint="choose another --out for several seeds")
    progress = progress or Console("train").note
    children = Subprocesses()
    first = int(composed.config["seed"])
    seeds = range(first, first + count)
    for seed in seeds:
        folder = folder_of(out, seed)
        if (folder / "run.json").exists():
            require_same(folder, _with_seed(composed, folder, seed).config, manifest)
    for seed in seeds:
        _write(out, seeds)
        folder = folder_of(out, seed)
        if not (folder / "run.json").exists():
            prepare(_with_seed(composed, folder, seed), manifest, folder, fingerprint)
            _write(out, seeds)
        if read_json(folder / "run.json", "run record")["status"] != "finished":
            progress(f"seed {seed}")
            try:
                ended = _train(folder, data, children, progress)
            finally:
                _write(out, seeds)
            if ended.code != OK:
                raise _failure(seed, ended)
    return _write(out, seeds)


def resume_seeds(out: Path, data: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Go on where `train_seeds` stopped: what is finished is kept, what is not is resumed or begun.

    Raises:
        UsageError: nothing was begun there; else as of `train_seeds`.
        DataError: ``seeds.json`` cannot be read.
    """
    seeds = [row["seed"] for row in read_seeds(out)["seeds"]]
    begun = next((folder_of(out, seed) for seed in seeds if (folder_of(out, seed) / "run.json").exists()), None)
    if begun is None:
        raise UsageError("no seed was begun yet", path=out, hint="give the first command again")
    record = read_json(begun / "run.json", "run record")
    config = {**read_json(begun / "config.json", "run config"), **read_places(begun), "seed": seeds[0]}
    composed = Composed(config, record["origins"])
    return train_seeds(composed, begun / "manifest.json", out, len(seeds), begun / FINGERPRINT, data, progress)


def read_seeds(out: Path) -> dict[str, Any]:
    """Return the content of ``seeds.json``.

    Raises:
        UsageError: there is none.
        DataError: it is something else.
    """
    document = read_json(out / SEEDS, "record of several seeds")
    try:
        seeds = [int(row["seed"]) for row in document["seeds"]]
        whole = seeds == list(range(seeds[0], seeds[0] + len(seeds))) and "val_mean_dice" in document
    except (KeyError, TypeError, ValueError, IndexError):
        whole = False
    if not whole:
        raise DataError(f"not a {SEEDS} of `segpipe train --seeds`", path=out / SEEDS)
    return dict(document)


def folder_of(out: Path, seed: int) -> Path:
    """Return the run folder of a seed."""
    return out / f"seed{seed}"


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, sample standard deviation (of n - 1), smallest and largest; None where there are too few."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "n": len(values),
    }


def _with_seed(composed: Composed, folder: Path, seed: int) -> Composed:
    config = {**composed.config, "seed": seed, "bundle_root": str(folder.resolve())}
    return Composed(config, composed.origins, composed.notes)


def _train(folder: Path, data: Path | None, children: Subprocesses, progress: Progress) -> Ended:
    """Train in a process; when this one is interrupted, wait until that one has recorded it."""
    arguments = {"resume": folder, "data": data}

    def hear(line: str) -> None:
        if line.startswith("epoch "):
            progress(f"{folder.name} {line}")

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(children.call, "segpipe.train", arguments, hear).result()
        except BaseException:
            children.stop()
            raise


def _failure(seed: int, ended: Ended) -> SegpipeError:
    error = ended.error
    parts = {name: error.get(name) for name in ("path", "found", "expected", "hint", "case_id")}
    failure = SegpipeError(f"seed {seed}: {error.get('message', ended.reason)}", **parts)
    failure.exit_code = ended.code if ended.code > 0 else error.get("exit_code", USAGE)
    return failure


def _write(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    rows = [_row(out, seed) for seed in seeds]
    best = [row["best"]["val_mean_dice"] for row in rows if row["status"] == "finished" and row["best"]]
    document = {"schema_version": SCHEMA_VERSION, "seeds": rows, "val_mean_dice": spread(best)}
    write_json(out / SEEDS, document)
    return document


def _row(out: Path, seed: int) -> dict[str, Any]:
    folder = folder_of(out, seed)
    row = {"seed": seed, "folder": folder.name, "status": "waiting", "epochs": 0, "best": None}
    if (folder / "run.json").exists():
        record = read_json(folder / "run.json", "run record")
        row.update({name: record[name] for name in ("status", "epochs", "best") if name in record})
    return row
