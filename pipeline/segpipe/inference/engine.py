"""One case from its source to its label map, with class scores kept only for a few blocks at a time."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray

from segpipe.common.nifti import Header
from segpipe.errors import SegpipeError
from segpipe.inference.memory_estimate import Probe, plan
from segpipe.inference.observation import Observation
from segpipe.inference.output import ExtraOutputs, ProbabilityMaps, as_labels, probability_maps
from segpipe.inference.prepare import prepare, turned_and_spaced
from segpipe.inference.restore import Restorer
from segpipe.inference.sliding_window import BORDER, Runtime, Windowing, stream_blocks
from segpipe.inference.source import CaseInput, ReadCase, Source, held_bytes, read_case, read_headers
from segpipe.inference.transforms import Preprocessing

AT_ONCE_VOXELS = 400_000  # of windows in one forward pass on the CPU
Item = TypeVar("Item")


@dataclass
class StreamingEngine:
    """One model and how it is moved over a case: `read` it, then `segment` it.

    Attributes:
        preprocessing: the transforms of the supported subset.
        windowing: windows and activation; the batch is what is taken at most.
        runtime: windows (N, C, *roi_size) float32 to scores (N, K, *roi_size).
        device: where windows are computed; scores are kept on the CPU.
        channels: of the images.
        max_memory: bytes that the process may take; None for what the machine has.
        cleanup: changes the item ``pred`` of a case, a label map (1, X, Y, Z), or None.
        probe: what one window costs; measured with the first case.
        masks: how many of the last channels are masks, which may be constant.
        lanes: windows that the runtime computes at the same time.
    """

    preprocessing: Preprocessing
    windowing: Windowing
    runtime: Runtime
    device: torch.device
    channels: int = 1
    max_memory: int | None = None
    cleanup: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    probe: Probe | None = None
    masks: int = 0
    lanes: int = 1

    def read(self, case: CaseInput, prefetched: ReadCase | None = None) -> tuple[ReadCase, int]:
        """Choose windows with which a case fits into memory, and read it.

        Args:
            case: its files, or as a series or a source.
            prefetched: the same, where it was read before its turn.

        Returns:
            Its images, and the bytes that the process will take at most.

        Raises:
            UsageError: no such file.
            DataError: the images cannot be used.
            RefusedError: it does not fit, with the numbers.
        """
        headers = prefetched.headers if prefetched else read_headers(case, self.channels)
        peak = self.fit(headers, held_bytes(prefetched.source if prefetched else case))
        return prefetched or read_case(case, self.channels, headers, self.masks), peak

    def fit(self, headers: Sequence[Header], held: int = 0) -> int:
        """Choose windows with which a case fits into memory, and return the bytes that the process will take at most.

        Args:
            headers: of the case's files.
            held: bytes of its voxels that are read already and will be let go; below 0, that are read beside it.

        Raises:
            RefusedError: it does not fit, with the numbers.
        """
        if self.probe is None:
            roi, lanes = self.windowing.roi_size, self.lanes
            self.probe = Probe.measure(self.runtime, self.channels, roi, self.device, lanes)
        windowing = self.windowing
        if self.device.type == "cpu":  # more at once take memory and no less time
            most = max(1, AT_ONCE_VOXELS // math.prod(windowing.roi_size))
            windowing = replace(windowing, batch=max(self.lanes, min(windowing.batch, most)))
        self._fitting, peak = plan(headers, self.preprocessing, windowing, self.probe, self.max_memory, held)
        return peak

    def segment(
        self,
        source: Source,
        seconds: dict[str, float],
        extra_outputs: ExtraOutputs | None = None,
        observation: Observation | None = None,
    ) -> tuple[NDArray[np.uint8], int]:
        """Return the label map (X, Y, Z) of the case that was read last, and its number of regions.

        With regions, which may overlap, each is a bit of a voxel; 0 where each voxel has one label.

        Args:
            source: its images.
            seconds: the time of each stage is added.
            extra_outputs: files to write probabilities and entropy to.
            observation: is filled with what is seen on the network's grid, or None.

        Raises:
            DataError: there are more labels than a byte holds, or the clean-up gives no label map.
            OSError: an extra output cannot be written.
        """
        if self.probe is None:
            raise SegpipeError("a case is segmented before it was read")
        header, activation = source.header, self.windowing.activation
        classes = self.probe.classes // self.windowing.members
        regions = classes if activation == "sigmoid" and classes > 1 else 0
        filled: contextlib.AbstractContextManager[ProbabilityMaps | None] = contextlib.nullcontext()
        if extra_outputs is not None:
            filled = probability_maps(extra_outputs, activation, classes, header)
        with torch.inference_mode(), filled as maps:
            labels = segment_source(
                source, self.preprocessing, self._fitting, self.runtime, self.device, seconds, maps, observation
            )
        if self.cleanup is not None:
            start = time.perf_counter()
            labels = _cleaned(labels, header, regions, self.cleanup)
            seconds["postprocess"] = round(seconds["postprocess"] + time.perf_counter() - start, 3)
        return labels, regions


def segment_source(
    source: Source,
    preprocessing: Preprocessing,
    windowing: Windowing,
    runtime: Runtime,
    device: torch.device,
    seconds: dict[str, float],
    maps: ProbabilityMaps | None = None,
    observation: Observation | None = None,
) -> NDArray[np.uint8]:
    """Return the label map (X, Y, Z) of a case, equal to that of the stock path.

    Args:
        source: the case; its voxels are let go.
        preprocessing: the transforms of the supported subset.
        windowing: windows and activation.
        runtime: windows (N, C, *roi_size) float32 to scores (N, K, *roi_size).
        device: where windows are computed; scores are kept on the CPU.
        seconds: the time of each stage is added.
        maps: arrays on the source's grid to be filled, or None.
        observation: is filled with what is seen on the network's grid, or None.
    """
    start = time.perf_counter()
    image, transform = prepare(source, preprocessing)
    seconds["preprocess"] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    grid = windowing.grid(transform.network_shape)
    if observation is not None:
        edges = np.linalg.norm(turned_and_spaced(source.header, preprocessing)[1][:3, :3], axis=0)
        observation.begin(image, transform, edges, grid, windowing.activation, windowing.members)
    restorer = Restorer(transform, grid, windowing.activation, maps, windowing.members, observation)
    threads = torch.get_num_threads()
    blocks = stream_blocks(
        image[None],
        grid,
        compute_importance_map(windowing.roi_size, mode=windowing.mode, device=device, dtype=torch.float32),
        lambda windows, _: runtime(windows),
        batch=windowing.batch,
        device=torch.device("cpu"),
        border=BORDER,
        ahead=threads if windowing.overlapped and device.type == "cpu" else 0,
    )
    if windowing.overlapped:
        # on the CPU half of them: more gain less here than the windows lose, which are computed meanwhile
        with contextlib.closing(blocks), _threads(threads if device.type != "cpu" else max(1, threads // 2)):
            waited, restoring = pipelined(blocks, restorer.take)
    else:
        waited, restoring = in_turn(blocks, restorer.take)
    seconds["network"] = round(time.perf_counter() - start - waited, 3)
    seconds["postprocess"] = round(restoring, 3)
    return restorer.labels


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """PyTorch takes so many for what is done in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pipelined(items: Iterable[Item], work: Callable[[Item], object]) -> tuple[float, float]:
    """Work on each item, in order, in a second thread while the next item is made in this one.

    One item is being worked on and none waits, so that memory stays bounded: making the next but one waits for it.
    What the work raises is raised here. PyTorch takes as many threads for the work as in this thread.

    Args:
        items: made one after the other.
        work: on one of them.

    Returns:
        Seconds for which this thread was waiting, and seconds of work.
    """
    waited = worked = 0.0

    def timed_work(item: Item) -> float:
        start = time.perf_counter()
        with torch.inference_mode():  # holds for a thread
            work(item)
        return time.perf_counter() - start

    def wait(running: Future[float] | None) -> None:
        nonlocal waited, worked
        start = time.perf_counter()
        worked += running.result() if running else 0.0
        waited += time.perf_counter() - start

    # said again, since another thread that began meanwhile may have said otherwise for those that begin after it
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        running: Future[float] | None = None
        for item in items:
            wait(running)
            running = pool.submit(timed_work, item)
            del item
        wait(running)
    return waited, worked


def in_turn(items: Iterable[Item], work: Callable[[Item], object]) -> tuple[float, float]:
    """Work on each item before the next is made; returns as `pipelined` does."""
    worked = 0.0
    for item in items:
        start = time.perf_counter()
        work(item)
        worked += time.perf_counter() - start
    return worked, worked


def _cleaned(
    labels: NDArray[np.uint8], header: Header, regions: int, cleanup: Callable[[dict[str, Any]], dict[str, Any]]
) -> NDArray[np.uint8]:
    affine = torch.as_tensor(header.affine, dtype=torch.float64)
    masks = np.stack([labels >> region & 1 for region in range(regions)]) if regions else labels[None]
    pred = MetaTensor(torch.from_numpy(masks).float(), affine=affine)
    return as_labels(cleanup({"pred": pred})["pred"], header, regions)
