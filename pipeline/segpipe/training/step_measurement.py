"""What training costs on this machine, measured with the real network, loss, optimiser, loader and validation.

The trainer is the config's own (`configs/train.yaml`), so precision, memory layout, augmentation and loading count as
they do in a run. Nothing is written.
"""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from segpipe.common.console import quiet_libraries
from segpipe.common.memory import freed_memory_kept
from segpipe.common.partial import temporary_folder
from segpipe.common.processes import child_environment, tied
from segpipe.data import Case, Manifest, save_manifest
from segpipe.errors import UsageError
from segpipe.training.fragments import Fragment, compose_config
from segpipe.training.session import unwrap

WARM_UP = 1  # steps that are not counted: allocations, choice of kernels
FEWEST, MOST = 2, 40  # steps that are
ENOUGH_S = 2.0  # after which no further step is taken
LIBRARIES = "import segpipe.training.session, segpipe.components, monai.bundle, monai.engines"


@dataclass(frozen=True)
class Measured:
    """Seconds on this machine, of one configuration.

    Attributes:
        step_s: one training step, loading from the cache and augmentation included; the mean of several.
        window_s: one window of the sliding-window inferer, with its share of merging and argmax.
        load_case_s: preparing one case, as the cache does it, with all threads at work.
        build_s: from the config to trainer and network.
        cases: how many cases were loaded for it.
    """

    step_s: float
    window_s: float
    load_case_s: float
    build_s: float
    cases: int


def measure(
    task: Mapping[str, Any],
    fragments: Mapping[str, str | Fragment],
    values: Mapping[str, Any],
    manifest: Manifest,
    root: Path,
    cases: Sequence[Case],
) -> Measured:
    """Train a few steps on a few cases, and predict a few windows.

    Args:
        task: the task fragment's content.
        fragments: of network, loss, augment and runtime, by name or path, or the fragment itself.
        values: ids of the runtime such as ``batch_size`` and ``threads``.
        manifest: names of channels and labels.
        root: folder that the cases' paths start from.
        cases: that are loaded; two of usual size are enough.

    Raises:
        UsageError: the parts do not fit together, or there is no such device.
        DataError: a case cannot be prepared.
    """
    given = {name: (value, "the plan") for name, value in values.items()}
    composed = compose_config({**fragments, "task": Fragment(task, "the plan")}, (), given)
    return measure_config(composed.config, manifest, root, cases)


def measure_config(config: Mapping[str, Any], manifest: Manifest, root: Path, cases: Sequence[Case]) -> Measured:
    """Measure a config that is composed already; arguments and errors as of `measure`."""
    quiet_libraries()
    with temporary_folder() as folder:
        measured = _to_measure(config, folder, manifest, root, cases)
        with _threads_and_random_state_kept():
            try:
                return _measured(measured, len(cases))
            except Exception as error:
                raise unwrap(error) from error


@functools.cache
def startup_seconds() -> float:
    """Return how long a process takes until it has imported what a training needs.

    Where other work delays it just then, no more than twice its own seconds of CPU count: trainings start later.
    """
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(tied([sys.executable, "-c", LIBRARIES]), env=child_environment(), check=False, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(wall, 2 * own)


def require_device(device: str) -> None:
    """Refuse to measure on a device that this machine lacks.

    Raises:
        UsageError: there is no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device to measure a step on",
            found="device cpu alone",
            hint="plan on the machine that will train, or with --device cpu",
        )


def _to_measure(
    config: Mapping[str, Any], folder: Path, manifest: Manifest, root: Path, cases: Sequence[Case]
) -> dict[str, Any]:
    """Return the config of a training on these cases alone, which writes nothing and does not end by itself."""
    chosen = [case.model_copy(update={"fold": None}) for case in cases]
    save_manifest(manifest.model_copy(update={"training": chosen, "test": []}), folder / "manifest.json")
    changed: dict[str, Any] = json.loads(json.dumps(dict(config)))
    kept = ("LossSchedule",)  # a step that diverges takes as long
    changed["train"]["handlers"] = [
        handler
        for handler in changed["train"]["handlers"]
        if isinstance(handler, dict) and handler["_target_"].rpartition(".")[2] in kept
    ]
    return changed | {
        "bundle_root": str(folder),
        "manifest": str(folder / "manifest.json"),
        "dataset_dir": str(root.resolve()),
        "cache_rate": 1.0,
        "store": None,
        "initial_weights": "",  # a step takes as long with any
        "fold": None,
        "steps_per_epoch": WARM_UP + FEWEST + MOST,
    }


def _measured(config: dict[str, Any], cases: int) -> Measured:
    began = time.perf_counter()
    parser = ConfigParser(config)
    parser.get_parsed_content("initialize")
    network = parser.get_parsed_content("train::network")
    built = time.perf_counter()
    parser.get_parsed_content("train::dataset")
    loaded = time.perf_counter()
    trainer = parser.get_parsed_content("train::trainer")
    build_s = built - began + time.perf_counter() - loaded
    with freed_memory_kept():  # as a training does
        step_s = _steps(trainer)
        window_s = _windows(network, parser, config["in_channels"], config["patch_size"])
    return Measured(step_s, window_s, (loaded - built) / cases, build_s, cases)


def _steps(trainer: Any) -> float:
    """Return the mean seconds of a step, from the end of one to the end of the next: some are augmented more."""
    ends = []

    def ended(engine: Any) -> None:
        _synchronize(engine.network)
        ends.append(time.perf_counter())
        counted = len(ends) - 1 - WARM_UP
        if counted >= FEWEST and (ends[-1] - ends[WARM_UP] > ENOUGH_S or counted >= MOST):
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, ended)
    trainer.state.max_epochs = WARM_UP + FEWEST + MOST  # an epoch has a step at least
    trainer.run()
    return (ends[-1] - ends[WARM_UP]) / (len(ends) - 1 - WARM_UP)


def _windows(network: Any, parser: ConfigParser, channels: int, patch: Sequence[int]) -> float:
    """Return the seconds of a window: of a piece of a case that holds two windows along each axis."""
    inferer, device = parser.get_parsed_content("validate::inferer"), parser.get_parsed_content("device")
    piece = torch.zeros((1, channels, *(size + size // 2 for size in patch)))
    network.eval()
    seconds = []
    with torch.no_grad():
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            inferer(piece.to(device), network).argmax(1).cpu()
            seconds.append(time.perf_counter() - began)
    return seconds[-1] / windows_of([size + size // 2 for size in patch], patch, inferer.overlap)


def windows_of(shape: Sequence[int], patch: Sequence[int], overlap: float | Sequence[float]) -> int:
    """Return how many windows cover a volume, as MONAI's sliding window lays them.

    Args:
        shape: of the volume (voxels).
        patch: of a window (voxels).
        overlap: of neighbouring windows, as a share of a window; one number, or one an axis.
    """
    overlaps = [overlap] * len(patch) if isinstance(overlap, int | float) else list(overlap)
    total = 1
    for size, window, share in zip(shape, patch, overlaps, strict=True):
        step = max(1, int(window * (1 - share)))
        total *= 1 + max(0, -(-(size - window) // step))
    return total


def _synchronize(network: Any) -> None:
    if next(network.parameters()).is_cuda:
        torch.cuda.synchronize()


@contextmanager
def _threads_and_random_state_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    restore: list[Callable[[], object]] = [
        lambda: torch.set_num_threads(threads),
        lambda: torch.use_deterministic_algorithms(deterministic[0]),
    ]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            set_determinism(None)
            for step in restore:
                step()
            torch.backends.cudnn.deterministic = deterministic[1]
