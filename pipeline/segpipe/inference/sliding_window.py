"""Sliding windows over a volume, with class scores kept only where windows still touch.

The volume is cut into blocks at the starts of windows along two axes. Windows come in raster order, so the block
that begins where a row of windows begins is complete after that row: it is divided by its weights and handed on,
and its memory is free. Positions, weights and order of summation are those of MONAI's
`sliding_window_inference`, whose sums over the whole volume this replaces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

# (N, C, X, Y, Z) -> scores (N, K, X, Y, Z), which hold while it is called once more; never by two threads at once
Runtime = Callable[[torch.Tensor], torch.Tensor]
Activation = Literal["softmax", "sigmoid"]
Window = list[slice]  # batch, channels, then one slice an axis
Predict = Callable[[torch.Tensor, list[Window]], torch.Tensor]
Sizes = tuple[int, ...]
BORDER = 1  # planes of its predecessors that a block has before it: trilinear cells reach one voxel back


@dataclass(frozen=True)
class WindowGrid:
    """Where windows lie.

    Attributes:
        size: voxels of the volume, per axis.
        roi: voxels of a window.
        starts: first voxels of the windows per axis, on the padded volume.
        pad: voxels before and after the volume, per axis, where it is smaller than a window.
        order: axes from the slowest to the fastest, in which windows are visited.
        strips: parts into which the second axis of that order is cut, one computed after the other. Less is held
            at a time; windows that lie in two strips are computed twice.
    """

    size: Sizes
    roi: Sizes
    starts: tuple[Sizes, ...]
    pad: tuple[tuple[int, int], ...]
    order: Sizes
    strips: int = 1

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

    def positions(self, strip: tuple[int, int] | None = None) -> list[Sizes]:
        """Return the start of each window, in order; with a strip, of those that touch it."""
        starts = list(self.starts)
        if strip is not None:
            axis = self.block_axes[-1]
            starts[axis] = tuple(s for s in starts[axis] if s < strip[1] and s + self.roi[axis] > strip[0])
        places = itertools.product(*(starts[axis] for axis in self.order))
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return [tuple(place[index] for index in back) for place in places]

    def strip_edges(self) -> list[tuple[int, int]]:
        """Return first voxel and end of the strips along the second block axis, cut at starts of windows."""
        axis = self.block_axes[-1]
        size = self.padded[axis]
        ideal = [size * part / self.strips for part in range(1, self.strips)]
        cuts = {min(self.starts[axis], key=lambda start: abs(start - place)) for place in ideal}
        return list(itertools.pairwise([0, *sorted(cuts - {0}), size]))

    def blocks(self, axis: int) -> list[tuple[int, int]]:
        """Return first voxel and end of the blocks along an axis of `block_axes`: cut where windows begin or end."""
        ends = {start + self.roi[axis] for start in self.starts[axis]}
        return list(itertools.pairwise(sorted({*self.starts[axis], *ends})))

    def touched(self, axis: int, start: int) -> list[tuple[int, int, int]]:
        """Return number, first voxel and end of the blocks along an axis that lie in the windows at ``start``."""
        end = start + self.roi[axis]
        return [
            (number, first, stop)
            for number, (first, stop) in enumerate(self.blocks(axis))
            if start <= first and stop <= end
        ]

    def finished(self, axis: int, start: int) -> list[tuple[int, int, int]]:
        """Return those of them that no later window touches."""
        after = next((later for later in self.starts[axis] if later > start), self.padded[axis])
        return [block for block in self.touched(axis, start) if block[1] < after]

    def block_voxels(self) -> tuple[int, int]:
        """Return the voxels of the largest block, and of all that are open at one time, borders included."""
        rest = math.prod(self.padded[axis] for axis in range(3) if axis not in self.block_axes)
        rows, columns = ([end - first + BORDER for first, end in self.blocks(axis)] for axis in self.block_axes)
        opened: set[tuple[int, int]] = set()
        most = 0
        for strip in self.strip_edges():
            places = (tuple(start[axis] for axis in self.block_axes) for start in self.positions(strip))
            for place in dict.fromkeys(places):
                touched, finished = (
                    [which(axis, start) for axis, start in zip(self.block_axes, place, strict=True)]
                    for which in (self.touched, self.finished)
                )
                for row, column in itertools.product(*touched):
                    if strip[0] <= column[1] < strip[1]:
                        opened.add((row[0], column[0]))
                most = max(most, sum(rest * rows[row] * columns[column] for row, column in opened))
                opened -= {(row[0], column[0]) for row, column in itertools.product(*finished)}
        return rest * max(rows) * max(columns), most


@dataclass(frozen=True)
class Windowing:
    """How a network is moved over a volume, and what its scores mean.

    Attributes:
        roi_size: window in voxels.
        overlap: share by which windows overlap.
        batch: windows in one forward pass.
        mode: weights of overlapping windows.
        activation: from scores to probabilities.
        strips: parts of the volume that are computed one after the other, to hold less at a time.
        overlapped: whether a block is restored while the next windows are computed.
        members: networks whose scores lie one behind the other along the channels; their probabilities are averaged.
        slice_axis: 0 to 2, along which windows are one voxel thick and the networks have two dimensions; None for none.
    """

    roi_size: tuple[int, int, int]
    overlap: float = 0.25
    batch: int = 1
    mode: Literal["gaussian", "constant"] = "constant"
    activation: Activation = "softmax"
    strips: int = 1
    overlapped: bool = True
    members: int = 1
    slice_axis: int | None = None

    def grid(self, size: Sequence[int]) -> WindowGrid:
        """Place windows on a volume (X, Y, Z), the longest axis first: so the least scores are open."""
        order = sorted(range(3), key=lambda axis: -size[axis] / self.roi_size[axis])
        grid = WindowGrid.place(size, self.roi_size, [self.overlap] * 3, tuple(order))
        return replace(grid, strips=self.strips)


@dataclass
class Block:
    """Finished scores.

    Attributes:
        image: its place in the batch.
        start: first voxel per axis of the padded volume.
        scores: (K, ...) with ``border`` more, unwritten voxels before it along the block axes.
    """

    image: int
    start: Sizes
    scores: torch.Tensor


class _OpenBlocks:
    """Sums of weighted scores, and of weights, for the blocks that windows still touch."""

    def __init__(self, grid: WindowGrid, weights: torch.Tensor, device: torch.device, border: int) -> None:
        self.grid, self.weights, self.device, self.border = grid, weights, device, border
        self._open: dict[Sizes, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, image: int, start: Sizes, scores: torch.Tensor, strip: tuple[int, int]) -> None:
        """Add a window's scores (K, *roi) to the blocks of a strip."""
        grid = self.grid
        for blocks in self._in_strip([grid.touched(axis, start[axis]) for axis in grid.block_axes], strip):
            within = [slice(None)] * len(start)
            into = [slice(first, first + size) for first, size in zip(start, grid.roi, strict=True)]
            for axis, (_, first, end) in zip(grid.block_axes, blocks, strict=True):
                within[axis] = slice(first - start[axis], end - start[axis])
                into[axis] = slice(self.border, None)
            sums, counts = self._block(image, blocks, len(scores))
            weights = self.weights[tuple(within)]
            for label in range(len(scores)):  # one at a time, which takes no memory
                weighted = scores[(label, *within)] * weights
                sums[(label, *into)] += weighted.to(self.device)
            counts[tuple(into)] += weights.to(self.device)

    def finish(self, image: int, start: Sizes, strip: tuple[int, int]) -> Iterator[Block]:
        """Yield the blocks of a strip that no window after this one, the last of its row, touches."""
        grid = self.grid
        for blocks in self._in_strip([grid.finished(axis, start[axis]) for axis in grid.block_axes], strip):
            sums, counts = self._open.pop((image, *(number for number, _, _ in blocks)))
            inner, corner = [slice(None)] * len(start), [0] * len(start)
            for axis, (_, first, _) in zip(grid.block_axes, blocks, strict=True):
                inner[axis], corner[axis] = slice(self.border, None), first
            sums[(slice(None), *inner)] /= counts[tuple(inner)]
            del counts
            yield Block(image, tuple(corner), sums)

    def _in_strip(
        self, blocks: list[list[tuple[int, int, int]]], strip: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int, int], ...]]:
        blocks[-1] = [block for block in blocks[-1] if strip[0] <= block[1] < strip[1]]
        return itertools.product(*blocks)

    def _block(
        self, image: int, blocks: Sequence[tuple[int, int, int]], classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key = (image, *(number for number, _, _ in blocks))
        if key not in self._open:
            shape = list(self.grid.padded)
            for axis, (_, first, end) in zip(self.grid.block_axes, blocks, strict=True):
                shape[axis] = end - first + self.border
            kind = {"dtype": self.weights.dtype, "device": self.device}
            self._open[key] = (torch.zeros((classes, *shape), **kind), torch.zeros(shape, **kind))
        return self._open[key]


def stream_blocks(
    volume: torch.Tensor,
    grid: WindowGrid,
    weights: torch.Tensor,
    predict: Predict,
    *,
    batch: int = 1,
    device: torch.device | None = None,
    border: int = 0,
    padding_mode: str = "constant",
    cval: float = 0.0,
    progress: Callable[[range], Iterator[int] | range] = lambda numbers: numbers,
    ahead: int = 0,
) -> Generator[Block, None, None]:
    """Yield the scores of a volume, block by block; once it is closed or has failed, no window is computed any more.

    Args:
        volume: (N, C, *size).
        grid: where windows lie.
        weights: (*roi), the importance of a window's voxels, on the device where windows are computed; sums are
            kept in its type.
        predict: windows (M, C, *roi) and their slices to scores (M, K, *roi).
        batch: windows in one call; they may be of two images of the batch.
        device: where scores are kept; by default the volume's.
        border: room for so many voxels before each block.
        padding_mode: of `torch.nn.functional.pad`, for a volume smaller than a window.
        cval: the value of constant padding.
        progress: wraps the range over windows.
        ahead: threads of PyTorch that compute the next windows while the scores of these are summed; 0: none do.

    Yields:
        The blocks of the padded volume, image after image; each after those before it along either of
        ``grid.block_axes``.

    Raises:
        ValueError: scores are not of a window's size.
    """
    if any(itertools.chain(*grid.pad)):
        widths = [width for pad in reversed(grid.pad) for width in pad]
        volume = F.pad(volume, widths, mode=padding_mode, value=cval)
    visits = [
        (image, strip, start)
        for image in range(len(volume))
        for strip in grid.strip_edges()
        for start in grid.positions(strip)
    ]
    row = math.prod(len(grid.starts[axis]) for axis in grid.order[len(grid.block_axes) :])
    sums = _OpenBlocks(grid, weights, device or volume.device, border)

    def computed(first: int) -> torch.Tensor:
        batched = visits[first : first + batch]
        windows: list[Window] = [
            [slice(image, image + 1), slice(None)] + [slice(s, s + n) for s, n in zip(start, grid.roi, strict=True)]
            for image, _, start in batched
        ]
        parts = [volume[tuple(window)] for window in windows]
        scores = predict((torch.cat(parts) if len(parts) > 1 else parts[0]).to(weights.device), windows)
        if tuple(scores.shape[2:]) != grid.roi or len(scores) != len(batched):
            raise ValueError(f"scores of shape {tuple(scores.shape)} for windows of {grid.roi}")
        return scores

    firsts = progress(range(0, len(visits), batch))
    each = one_ahead(computed, firsts, ahead) if ahead else ((first, computed(first)) for first in firsts)
    with closing(each):
        for first, scores in each:
            for number, window_scores in enumerate(scores, first + 1):
                image, strip, start = visits[number - 1]
                sums.add(image, start, window_scores, strip)
                if number % row == 0:
                    yield from sums.finish(image, start, strip)
            del scores, window_scores


def one_ahead(
    make: Callable[[int], torch.Tensor], numbers: Iterable[int], threads: int
) -> Generator[tuple[int, torch.Tensor], None, None]:
    """Yield each number and what is made of it, in order; the next is made meanwhile, in a thread of its own.

    Whoever leaves before the last closes it, which waits for what is being made.

    Args:
        make: what is made of a number.
        numbers: in order.
        threads: of PyTorch while it is made.

    >>> [(number, made.item()) for number, made in one_ahead(torch.tensor, range(3), 1)]
    [(0, 0), (1, 1), (2, 2)]
    """

    def made(number: int) -> torch.Tensor:
        with torch.inference_mode():  # holds for a thread
            return make(number)

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        last: tuple[int, Future[torch.Tensor]] | None = None
        try:
            for number in numbers:
                following = number, pool.submit(made, number)
                if last is not None:
                    yield last[0], last[1].result()
                last = following
            if last is not None:
                yield last[0], last[1].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
