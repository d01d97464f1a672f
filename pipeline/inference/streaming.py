"""One case from its source to its label map, with class scores kept only for a few blocks at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray

from pipeline.inference.prepare import prepare
from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.restore import HALO, Activation, Restorer
from pipeline.inference.source import Source
from pipeline.inference.windows import Runtime, WindowGrid, stream_blocks


@dataclass(frozen=True)
class Windowing:
    """How a network is moved over a volume, and what its scores mean.

    Attributes:
        roi_size: window in voxels.
        overlap: share by which windows overlap.
        batch: windows in one forward pass.
        mode: weights of overlapping windows.
        activation: from scores to probabilities.
    """

    roi_size: tuple[int, int, int]
    overlap: float = 0.25
    batch: int = 1
    mode: Literal["gaussian", "constant"] = "constant"
    activation: Activation = "softmax"

    def grid(self, size: Sequence[int]) -> WindowGrid:
        """Where windows lie on a volume (X, Y, Z), the axes with the most windows first: it needs the least memory."""
        order = sorted(range(3), key=lambda axis: -size[axis] / self.roi_size[axis])
        return WindowGrid.place(size, self.roi_size, [self.overlap] * 3, tuple(order))


def segment_source(
    source: Source,
    preprocessing: Preprocessing,
    windowing: Windowing,
    runtime: Runtime,
    device: torch.device,
    seconds: dict[str, float],
    probabilities: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """The label map (X, Y, Z) of a case, equal to that of the stock path.

    Args:
        source: the case; its voxels are let go.
        preprocessing: the transforms of the closed list.
        windowing: windows and activation.
        runtime: windows (N, C, *roi_size) float32 to scores (N, K, *roi_size).
        device: where windows are computed; scores are kept on the CPU.
        seconds: the time of each stage is added.
        probabilities: (X, Y, Z, K) float32 to be filled, or None.
    """
    start = time.perf_counter()
    image, way = prepare(source, preprocessing)
    seconds["preprocess"] = round(time.perf_counter() - start, 3)
    grid = windowing.grid(way.network_shape)
    weights = compute_importance_map(
        windowing.roi_size, mode=windowing.mode, device=device, dtype=torch.float32
    )
    restorer = Restorer(way, grid, windowing.activation, probabilities)
    start, restoring = time.perf_counter(), 0.0
    blocks = stream_blocks(
        image[None], grid, weights, lambda windows, _: runtime(windows), batch=windowing.batch,
        device=torch.device("cpu"), halo=HALO,
    )  # fmt: skip
    for block in blocks:
        began = time.perf_counter()
        restorer.take(block)
        restoring += time.perf_counter() - began
    seconds["network"] = round(time.perf_counter() - start - restoring, 3)
    seconds["postprocess"] = round(restoring, 3)
    return restorer.labels
