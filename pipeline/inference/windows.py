"""Sliding windows over a volume, with class scores kept only where windows still touch.

The volume is cut into blocks at the starts of windows along two axes. Windows come in raster order, so the block
that begins where a row of windows begins is complete after that row: it is divided by its weights, handed on,
and its memory is free. Positions, weights and order of summation are those of MONAI's
`sliding_window_inference`, whose sums over the whole volume this replaces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pipeline.inference.winners import Activation

Runtime = Callable[[torch.Tensor], torch.Tensor]  # (N, C, X, Y, Z) -> scores (N, K, X, Y, Z)
Window = list[slice]  # batch, channels, then one slice an axis
Predict = Callable[[torch.Tensor, list[Window]], torch.Tensor]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class WindowGrid:
    """Where windows lie.

    Attributes:
        size: voxels of the volume, per axis.
        roi: voxels of a window.
        starts: first voxels of the windows per axis, on the padded volume.
        pad: voxels before and after the volume, per axis, where it is smaller than a window.
        order: axes from the slowest to the fastest, in which windows are visited.
    """

    size: Sizes
    roi: Sizes
    starts: tuple[Sizes, ...]
    pad: tuple[tuple[int, int], ...]
    order: Sizes

    @classmethod
    def place(
        cls, size: Sequence[int], roi: Sequence[int], overlap: Sequence[float], order: Sizes | None = None
    ) -> WindowGrid:
        """Place windows as `monai.data.utils.dense_patch_slices` does, the last one pushed back into the volume."""
        starts, pad = [], []
        for voxels, window, share in zip(size, roi, overlap, strict=True):
            missing = max(window - voxels, 0)
            pad.append((missing // 2, missing - missing // 2))
            last = voxels + missing - window
            step = max(int(window * (1 - share)), 1)
            count = math.ceil(last / step) + 1
            starts.append(tuple(min(index * step, last) for index in range(count)))
        axes = tuple(range(len(starts)))
        return cls(tuple(size), tuple(roi), tuple(starts), tuple(pad), order or axes)

    @property
    def padded(self) -> Sizes:
        """Voxels of the padded volume, per axis."""
        return tuple(voxels + sum(pad) for voxels, pad in zip(self.size, self.pad, strict=True))

    @property
    def block_axes(self) -> Sizes:
        """The axes that are cut into blocks: the slowest two, or one where there are only one or two."""
        return self.order[: min(2, max(1, len(self.size) - 1))]

    def positions(self) -> list[Sizes]:
        """The start of each window, in order."""
        places = itertools.product(*(self.starts[axis] for axis in self.order))
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return [tuple(place[index] for index in back) for place in places]

    def blocks(self, axis: int) -> list[tuple[int, int]]:
        """First voxel and end of the blocks along an axis of `block_axes`."""
        return list(itertools.pairwise((*self.starts[axis], self.padded[axis])))


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
        """Where windows lie on a volume (X, Y, Z), the longest axis first: so the least scores are open."""
        order = sorted(range(3), key=lambda axis: -size[axis] / self.roi_size[axis])
        return WindowGrid.place(size, self.roi_size, [self.overlap] * 3, tuple(order))


@dataclass
class Block:
    """Finished scores.

    Attributes:
        image: its place in the batch.
        start: first voxel per axis of the padded volume.
        scores: (K, ...) with ``halo`` more, unwritten voxels before it along the block axes.
    """

    image: int
    start: Sizes
    scores: torch.Tensor


class _Sums:
    """Weighted scores, and weights, of the blocks that windows still touch."""

    def __init__(self, grid: WindowGrid, weights: torch.Tensor, device: torch.device, halo: int) -> None:
        self.grid, self.weights, self.device, self.halo = grid, weights, device, halo
        self._cuts = [grid.blocks(axis) for axis in grid.block_axes]
        self._open: dict[Sizes, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, image: int, start: Sizes, scores: torch.Tensor) -> None:
        """Add a window's scores (K, *roi)."""
        touched = [
            [
                (index, max(first, start[axis]), min(end, start[axis] + self.grid.roi[axis]))
                for index, (first, end) in enumerate(cuts)
                if first < start[axis] + self.grid.roi[axis] and end > start[axis]
            ]
            for axis, cuts in zip(self.grid.block_axes, self._cuts, strict=True)
        ]
        for pieces in itertools.product(*touched):
            numbers = tuple(index for index, _, _ in pieces)
            within, into = [slice(None)] * len(start), self._whole_window(start)
            for axis, cuts, (index, first, end) in zip(self.grid.block_axes, self._cuts, pieces, strict=True):
                within[axis] = slice(first - start[axis], end - start[axis])
                offset = self.halo - cuts[index][0]
                into[axis] = slice(first + offset, end + offset)
            sums, counts = self._block((image, *numbers), scores)
            weights = self.weights[tuple(within)]
            weighted = scores[(slice(None), *within)] * weights
            sums[(slice(None), *into)] += weighted.to(self.device)
            counts[tuple(into)] += weights.to(self.device)

    def finish(self, image: int, start: Sizes) -> Block:
        """The block that begins where this window begins; no later window may touch it."""
        places = [
            cuts_starting(cuts, start[axis])
            for axis, cuts in zip(self.grid.block_axes, self._cuts, strict=True)
        ]
        sums, counts = self._open.pop((image, *places))
        inner = [slice(None)] * len(start)
        for axis in self.grid.block_axes:
            inner[axis] = slice(self.halo, None)
        sums[(slice(None), *inner)] /= counts[tuple(inner)]
        corner = [0] * len(start)
        for axis in self.grid.block_axes:
            corner[axis] = start[axis]
        return Block(image, tuple(corner), sums)

    def _whole_window(self, start: Sizes) -> list[slice]:
        return [slice(first, first + size) for first, size in zip(start, self.grid.roi, strict=True)]

    def _block(self, key: Sizes, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if key not in self._open:
            shape = list(self.grid.padded)
            for axis, cuts, index in zip(self.grid.block_axes, self._cuts, key[1:], strict=True):
                shape[axis] = cuts[index][1] - cuts[index][0] + self.halo
            kind = {"dtype": self.weights.dtype, "device": self.device}
            self._open[key] = (torch.zeros((len(like), *shape), **kind), torch.zeros(shape, **kind))
        return self._open[key]


def cuts_starting(cuts: Sequence[tuple[int, int]], start: int) -> int:
    """The number of the block that begins at ``start``."""
    return next(index for index, (first, _) in enumerate(cuts) if first == start)


def stream_blocks(
    volume: torch.Tensor,
    grid: WindowGrid,
    weights: torch.Tensor,
    predict: Predict,
    *,
    batch: int = 1,
    device: torch.device | None = None,
    halo: int = 0,
    padding_mode: str = "constant",
    cval: float = 0.0,
    progress: Callable[[range], Iterator[int] | range] = lambda numbers: numbers,
) -> Iterator[Block]:
    """Scores of a volume, block by block.

    Args:
        volume: (N, C, *size).
        grid: where windows lie.
        weights: (*roi), the importance of a window's voxels, on the device where windows are computed; sums are
            kept in its type.
        predict: windows (M, C, *roi) and their slices to scores (M, K, *roi).
        batch: windows in one call; they may be of two images of the batch.
        device: where scores are kept; by default the volume's.
        halo: room for so many voxels before each block.
        padding_mode: of `torch.nn.functional.pad`, for a volume smaller than a window.
        cval: the value of constant padding.
        progress: wraps the range over windows.

    Yields:
        The blocks of the padded volume, in raster order over ``grid.block_axes``, image after image.

    Raises:
        ValueError: scores are not of a window's size.
    """
    if any(itertools.chain(*grid.pad)):
        widths = [width for pad in reversed(grid.pad) for width in pad]
        volume = F.pad(volume, widths, mode=padding_mode, value=cval)
    positions = grid.positions()
    row = math.prod(len(grid.starts[axis]) for axis in grid.order[len(grid.block_axes) :])
    sums = _Sums(grid, weights, device or volume.device, halo)
    total = len(positions) * len(volume)
    for first in progress(range(0, total, batch)):
        chosen = [divmod(number, len(positions)) for number in range(first, min(first + batch, total))]
        windows: list[Window] = [
            [slice(image, image + 1), slice(None)]
            + [slice(s, s + n) for s, n in zip(positions[number], grid.roi, strict=True)]
            for image, number in chosen
        ]
        parts = [volume[tuple(window)] for window in windows]
        data = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(weights.device)
        scores = predict(data, windows)
        if tuple(scores.shape[2:]) != grid.roi or len(scores) != len(chosen):
            raise ValueError(f"scores of shape {tuple(scores.shape)} for windows of {grid.roi}")
        for (image, number), one in zip(chosen, scores, strict=True):
            sums.add(image, positions[number], one)
            if (number + 1) % row == 0:
                yield sums.finish(image, positions[number])
        del scores, data
