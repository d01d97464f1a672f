"""Work on what is finished while the next is made.

One case from its source to its label map, with class scores kept only for a few blocks at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray

from segpipe.common.nifti import Header
from segpipe.errors import SegpipeError
from segpipe.inference.activations import ExtraOutputs, Kept
from segpipe.inference.memory import MemoryEstimate, Probe, plan
from segpipe.inference.output import as_labels, filled_file
from segpipe.inference.prepare import prepare
from segpipe.inference.restore import Restorer
from segpipe.inference.sliding_window import HALO, Block, Runtime, Windowing, stream_blocks
from segpipe.inference.source import Source
from segpipe.inference.transforms import Preprocessing

Item = TypeVar("Item")


def work_aside(items: Iterable[Item], work: Callable[[Item], object]) -> tuple[float, float]:
    """Work on each item, in order, in a second thread while the next item is made in this one.

    One item is being worked on and none waits, so that memory stays bounded: making the next but one waits for it.
    What the work raises is raised here.

    Args:
        items: made one after the other.
        work: on one of them.

    Returns:
        Seconds for which this thread was waiting, and seconds of work.
    """
    waited = worked = 0.0

    def one(item: Item) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():  # holds for a thread
            work(item)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(1) as pool:
        busy: Future[float] | None = None
        for item in items:
            begun = time.perf_counter()
            worked += busy.result() if busy else 0.0
            waited += time.perf_counter() - begun
            busy = pool.submit(one, item)
            del item
        begun = time.perf_counter()
        worked += busy.result() if busy else 0.0
        waited += time.perf_counter() - begun
    return waited, worked


AT_ONCE_VOXELS = 400_000  # of windows in one forward pass on the CPU


@dataclass
class StreamingEngine:
    """One model and how it is moved over a case.

    Attributes:
        preprocessing: the transforms of the closed list.
        windowing: windows and activation; the batch is what is taken at most.
        runtime: windows (N, C, *roi_size) float32 to scores (N, K, *roi_size).
        device: where windows are computed; scores are kept on the CPU.
        channels: of the images.
        max_memory: bytes that the process may take; None for what the machine has.
        cleanup: changes the item ``pred`` of a case, a label map (1, X, Y, Z), or None.
    """

    preprocessing: Preprocessing
    windowing: Windowing
    runtime: Runtime
    device: torch.device
    channels: int = 1
    max_memory: int | None = None
    cleanup: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    probe: Probe | None = None

    def estimate_memory(self, headers: Sequence[Header], held: int = 0) -> MemoryEstimate:
        """What a case will take; the windows are chosen so that it fits.

        Args:
            headers: of the case's files.
            held: bytes of its voxels that were read already.

        Raises:
            RefusedError: it does not fit, with the numbers.
        """
        if self.probe is None:
            self.probe = Probe.measure(self.runtime, self.channels, self.windowing.roi_size, self.device)
        windowing = self.windowing
        if self.device.type == "cpu":  # more at once take memory and no less time
            most = max(1, AT_ONCE_VOXELS // math.prod(windowing.roi_size))
            windowing = replace(windowing, batch=min(windowing.batch, most))
        self._fitting, forecast = plan(headers, self.preprocessing, windowing, self.probe, self.max_memory, held)
        return forecast

    @property
    def regions(self) -> int:
        """Number of regions that may overlap, each a bit of a label map; 0 where each voxel has one label."""
        if self.probe is None:
            raise SegpipeError("a case is foreseen before it is segmented")
        return self.probe.classes if self.windowing.activation == "sigmoid" and self.probe.classes > 1 else 0

    def segment(
        self, source: Source, seconds: dict[str, float], beside: ExtraOutputs | None = None
    ) -> NDArray[np.uint8]:
        """The label map (X, Y, Z) of a case that was foreseen, or the bits of its regions; and what lies beside it."""
        header, regions = source.header, self.regions
        with self._kept(header, beside or ExtraOutputs()) as kept:
            labels = segment_source(source, self.preprocessing, self._fitting, self.runtime, self.device, seconds, kept)
        if self.cleanup is not None:
            start = time.perf_counter()
            affine = torch.as_tensor(header.affine, dtype=torch.float64)
            masks = np.stack([labels >> region & 1 for region in range(regions)]) if regions else labels[None]
            pred = MetaTensor(torch.from_numpy(masks).float(), affine=affine)
            labels = as_labels(self.cleanup({"pred": pred})["pred"], header, regions)
            seconds["postprocess"] = round(seconds["postprocess"] + time.perf_counter() - start, 3)
        return labels

    @contextmanager
    def _kept(self, header: Header, beside: ExtraOutputs) -> Iterator[Kept | None]:
        """Arrays that become files at the end of the block, when all of them are filled."""
        if not beside.files or self.probe is None:
            yield None
            return
        shape, classes = header.shape[:3], self.probe.classes
        with ExitStack() as files:
            kept: dict[int, NDArray[np.float32]] = {}
            if beside.probabilities:
                whole = files.enter_context(filled_file(beside.probabilities, (*shape, classes), header))
                kept = {channel: whole[..., channel] for channel in range(classes)}
            for channel, path in beside.single.items():
                kept[channel] = files.enter_context(filled_file(path, shape, header))
            entropy = beside.entropy and filled_file(beside.entropy, shape, header)
            yield Kept(self.windowing.activation, kept, files.enter_context(entropy) if entropy else None)


def segment_source(
    source: Source,
    preprocessing: Preprocessing,
    windowing: Windowing,
    runtime: Runtime,
    device: torch.device,
    seconds: dict[str, float],
    kept: Kept | None = None,
) -> NDArray[np.uint8]:
    """The label map (X, Y, Z) of a case, equal to that of the stock path.

    Args:
        source: the case; its voxels are let go.
        preprocessing: the transforms of the closed list.
        windowing: windows and activation.
        runtime: windows (N, C, *roi_size) float32 to scores (N, K, *roi_size).
        device: where windows are computed; scores are kept on the CPU.
        seconds: the time of each stage is added.
        kept: arrays on the source's grid to be filled, or None.
    """
    start = time.perf_counter()
    image, way = prepare(source, preprocessing)
    seconds["preprocess"] = round(time.perf_counter() - start, 3)
    grid = windowing.grid(way.network_shape)
    weights = compute_importance_map(windowing.roi_size, mode=windowing.mode, device=device, dtype=torch.float32)
    restorer = Restorer(way, grid, windowing.activation, kept)
    start = time.perf_counter()
    blocks = stream_blocks(
        image[None],
        grid,
        weights,
        lambda windows, _: runtime(windows),
        batch=windowing.batch,
        device=torch.device("cpu"),
        halo=HALO,
    )
    if windowing.overlapped:
        waited, restoring = work_aside(blocks, restorer.take)
    else:
        waited = restoring = _in_turn(blocks, restorer.take)
    seconds["network"] = round(time.perf_counter() - start - waited, 3)
    seconds["postprocess"] = round(restoring, 3)
    return restorer.labels


def _in_turn(blocks: Iterable[Block], work: Callable[[Block], object]) -> float:
    """Seconds of the work on blocks, each before the next is made."""
    seconds = 0.0
    for block in blocks:
        began = time.perf_counter()
        work(block)
        seconds += time.perf_counter() - began
    return seconds
