"""Labels on the source's grid, from scores on the network's, with scores interpolated only where they can decide.

A voxel of the source lies in a trilinear cell of eight voxels of the network's grid. Between eight corners of one
argmax, interpolation with weights that are not negative cannot make another class win. So only the cells at boundaries
are interpolated, and the labels are those of the stock path: activation, MONAI's `Invertd` (linear), then argmax or
threshold. What the network did not see (outside a crop) has scores of 0 there, and no argmax.

Each cell lies within one block of scores and its border, the last planes of the blocks before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.errors import DataError
from segpipe.inference.argmax import RunningArgmax, likeliest
from segpipe.inference.observation import Observation
from segpipe.inference.output import ProbabilityMaps
from segpipe.inference.prepare import AxisTable, GridTransform, interpolate, parallel_tables, places_of
from segpipe.inference.sliding_window import BORDER, Activation, Block, WindowGrid

MOST_CLASSES, MOST_REGIONS = 256, 8  # what a byte holds as one label, or as a bit each
DENSE = 0.2  # share of undecided voxels above which it is faster to interpolate all
CHUNK = 1 << 22  # values that are held at a time
ACTIVATED = 1 << 20  # scores that are activated at a time


class Restorer:
    """Makes a label map on the source's grid of blocks of scores, in the order in which they are finished.

    Args:
        transform: how the source's grid and the network's belong together.
        grid: where the windows of the network's grid lie.
        activation: ``softmax`` over the classes, or ``sigmoid`` of one or of several that may overlap.
        maps: arrays on the source's grid that are filled as well, or None.
        members: networks whose scores lie one behind the other along the channels; the mean of their probabilities
            is restored.
        observation: is shown the probabilities and labels on the network's grid, or None.

    Attributes:
        labels: (X, Y, Z) uint8 on the source's grid; 0 where the network did not look. Under a sigmoid bit c says
            whether a voxel belongs to channel c.
        undecided: how many voxels were interpolated.
    """

    def __init__(
        self,
        transform: GridTransform,
        grid: WindowGrid,
        activation: Activation,
        maps: ProbabilityMaps | None = None,
        members: int = 1,
        observation: Observation | None = None,
    ) -> None:
        self.transform, self.grid, self.activation, self.members = transform, grid, activation, members
        self._observation = observation
        self.labels = np.zeros(transform.source_shape, np.uint8, order="F")
        self.undecided = 0
        self._borders = _BlockBorders(grid)
        self._turned = transform.turned(self.labels)
        self._order = sorted(range(3), key=lambda axis: -abs(self._turned.strides[axis]))  # as it lies in memory
        self._ordered = self._turned.transpose(self._order)
        self._maps = None if maps is None else maps.viewed(transform.turned)
        self._ordered_maps = self._maps and self._maps.viewed(lambda array: array.transpose(self._order))
        self._shift = [offset - before for offset, (before, _) in zip(transform.offset, grid.pad, strict=True)]
        self._matrix = np.eye(4) if transform.to_resampled is None else transform.to_resampled
        if transform.to_resampled is None:
            sizes = transform.turned_shape
            self._tables: list[AxisTable] | None = [AxisTable.of(np.arange(size, dtype=float)) for size in sizes]
        else:
            self._tables = parallel_tables(self._matrix, transform.turned_shape, transform.resampled_shape)

    def take(self, block: Block) -> None:
        """Restore the voxels whose cells end in a block.

        Raises:
            DataError: there are more labels than a byte holds.
        """
        classes = len(block.scores) // self.members
        if classes > (MOST_CLASSES if self.activation == "softmax" else MOST_REGIONS):
            raise DataError(
                "the bundle has too many labels",
                found=f"{self.activation} over {classes} channels",
                expected=f"softmax over at most {MOST_CLASSES} channels, or sigmoid over {MOST_REGIONS}",
            )
        scores, labels = self._borders.without(block), []
        for plane in scores.split(max(1, ACTIVATED * scores.shape[1] // max(1, scores.numel())), 1):
            each = plane.unflatten(0, (self.members, classes))
            each = torch.softmax(each, 1) if self.activation == "softmax" else torch.sigmoid(each)
            mean = each[0] if self.members == 1 else each.mean(0)
            likely = likeliest(mean, self.activation)  # while they are in the cache
            if self._observation is not None:
                self._observation.add(each, likely)
            labels.append(likely.labels)
            plane[:classes].copy_(mean)
        block.scores = block.scores[:classes]
        self._borders.fill(block)
        best = self._borders.labels(block, torch.cat(labels), self.activation).numpy()
        if self._observation is not None:
            self._observation.put(block.start, best, block.scores)
        if self._tables is None:
            self._restore_tilted(block, best)
        else:
            self._restore_parallel(block, best, self._tables)

    def _restore_parallel(self, block: Block, best: NDArray[Any], tables: Sequence[AxisTable]) -> None:
        """Restore a box of voxels: each axis has a table of its own, and corners are compared axis after axis."""
        box, cells = [], []
        for axis, table in enumerate(tables):
            first, end = self._owned(block, axis)
            part = slice(int(np.searchsorted(table.high, first)), int(np.searchsorted(table.high, end)))
            if part.start >= part.stop:
                return
            box.append(part)
            cells.append(self._corners(block, axis, table, part))
        none, undecided = _marks(len(block.scores), self.activation)
        decided = np.ascontiguousarray(best.transpose(self._order))
        for place in (2, 1, 0):  # the last is the largest, and there whole planes are copied
            low, high = cells[self._order[place]]
            at_low = low.labels(decided, place, none)
            if not np.array_equal(low.index, high.index) or not np.array_equal(low.seen, high.seen):
                np.putmask(at_low, at_low != high.labels(decided, place, none), undecided)
            decided = at_low
        open_voxels = np.nonzero(decided == undecided)
        decided[decided == none] = 0
        self.undecided += len(open_voxels[0])
        if len(open_voxels[0]) > DENSE * decided.size or (self._maps and self._maps.needs_all(len(block.scores))):
            self._restore_box(block.scores, cells, box, decide=True)
            return
        for part in _parts(len(open_voxels[0]), len(block.scores)):
            picked = tuple(voxels[part] for voxels in open_voxels)
            places = [picked[self._order.index(axis)] for axis in range(3)]
            values = _interpolated(block.scores, cells, places)
            decided[picked] = likeliest(values, self.activation).labels.numpy()
        self._ordered[tuple(box[axis] for axis in self._order)] = decided
        if self._maps is not None:
            self._restore_box(block.scores, cells, box, decide=False)

    def _restore_box(self, scores: torch.Tensor, cells: Cells, box: Sequence[slice], decide: bool) -> None:
        """Interpolate all voxels of a box, class after class: to decide where most are open, or for the maps."""
        tables, (slow, *others) = [cells[axis] for axis in self._order], [box[axis] for axis in self._order]
        rows = max(1, CHUNK // math.prod(part.stop - part.start for part in others))
        maps = self._ordered_maps
        for first in range(slow.start, slow.stop, rows):
            place = (slice(first, min(first + rows, slow.stop)), *others)
            part = slice(first - slow.start, place[0].stop - slow.start)
            corners = [[end[part] for end in tables[0]], *tables[1:]]
            best = RunningArgmax(self.activation)
            for label, volume in enumerate(scores):
                if not decide and not (maps and maps.needs(label)):
                    continue
                values = _blended(volume.permute(self._order), corners)
                if maps is not None:
                    maps.put(label, place, values)
                if decide:
                    best.add(label, values)
            if decide:
                self._ordered[place] = best.labels.numpy()

    def _restore_tilted(self, block: Block, best: NDArray[Any]) -> None:
        """Restore voxels with a cell of their own each, a few planes at a time."""
        box = self._box_around(block)
        rows = max(1, CHUNK // 4 // max(1, (box[1].stop - box[1].start) * (box[2].stop - box[2].start)))
        for first in range(box[0].start, box[0].stop, rows):
            part = (slice(first, min(first + rows, box[0].stop)), *box[1:])
            places = places_of(self._matrix, part, self.transform.resampled_shape)
            tables = [AxisTable.of(place) for place in places]
            own = np.ones(tables[0].low.shape, bool)
            for axis in self.grid.block_axes:
                start, end = self._owned(block, axis)
                own &= (tables[axis].high >= start) & (tables[axis].high < end)
            cells = [self._corners(block, axis, table, own) for axis, table in enumerate(tables)]
            self._turned[part][own] = self._decide(block.scores, best, cells, part, own)

    def _decide(
        self, scores: torch.Tensor, best: NDArray[Any], cells: Cells, box: tuple[slice, ...], own: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """Return the labels of the voxels ``own`` of a box."""
        none, undecided = _marks(len(scores), self.activation)

        def labels_at(sides: tuple[int, ...]) -> NDArray[Any]:
            x, y, z = (pair[side] for pair, side in zip(cells, sides, strict=True))
            labels = best[x.index, y.index, z.index]
            labels[~(x.seen & y.seen & z.seen)] = none
            return labels

        first, *others = np.ndindex(2, 2, 2)
        decided = labels_at(first)
        for sides in others:
            np.putmask(decided, decided != labels_at(sides), undecided)
        open_voxels = np.flatnonzero(decided == undecided)
        self.undecided += len(open_voxels)
        decided[decided == none] = 0
        if self._maps is not None:
            open_voxels = np.arange(len(decided))
            probabilities = torch.empty((len(scores), len(decided)))
        for part in _parts(len(open_voxels), len(scores)):
            voxels = open_voxels[part]
            values = _interpolated(scores, cells, [voxels] * 3)
            decided[voxels] = likeliest(values, self.activation).labels.numpy()
            if self._maps is not None:
                probabilities[:, torch.from_numpy(voxels)] = values
        if self._maps is not None:
            for channel, values in enumerate(probabilities):
                self._maps.put(channel, box, values, own)
        return decided

    def _box_around(self, block: Block) -> tuple[slice, slice, slice]:
        """Return turned voxels among which are all whose cells end in the block, by interval arithmetic."""
        limits = [(0.0, size - 1.0) for size in self.transform.turned_shape]
        for _ in range(2):
            for axis in self.grid.block_axes:
                start, end = self._owned(block, axis)
                row = self._matrix[axis]
                for along in range(3):
                    if abs(row[along]) < 1e-9:
                        continue
                    rest = [sorted((row[o] * limits[o][0], row[o] * limits[o][1])) for o in range(3) if o != along]
                    low = (start - 1 - row[3] - sum(pair[1] for pair in rest)) / row[along]
                    high = (end - row[3] - sum(pair[0] for pair in rest)) / row[along]
                    low, high = min(low, high), max(low, high)
                    limits[along] = (max(limits[along][0], low - 1), min(limits[along][1], high + 1))
        firsts = [int(np.floor(low)) for low, _ in limits]
        x, y, z = (slice(f, max(f, int(np.ceil(high)) + 1)) for f, (_, high) in zip(firsts, limits, strict=True))
        return x, y, z

    def _first(self, block: Block, axis: int) -> int:
        """Return the resampled voxel that is the block's first, its border included."""
        return block.start[axis] + self._shift[axis] - (BORDER if axis in self.grid.block_axes else 0)

    def _owned(self, block: Block, axis: int) -> tuple[float, float]:
        """Return from which resampled voxel, and up to which, cells end in a block."""
        first = self._first(block, axis)
        border = BORDER if axis in self.grid.block_axes else 0
        end = first + block.scores.shape[axis + 1]
        is_first, is_last = block.start[axis] == 0, end - self._shift[axis] >= self.grid.padded[axis]
        return -np.inf if is_first else first + border, np.inf if is_last else end

    def _corners(self, block: Block, axis: int, table: AxisTable, part: Any) -> tuple[Corner, Corner]:
        """Return both ends of some cells along an axis, as places within a block."""
        first, most = self._first(block, axis), block.scores.shape[axis + 1] - 1
        start, end = self.transform.crop[axis]

        def corner(voxels: NDArray[np.int64], share: NDArray[np.float64]) -> Corner:
            seen = (voxels >= start) & (voxels < end)
            return Corner(np.clip(voxels - first, 0, most), np.where(seen, share, 0).astype(np.float32), seen)

        return corner(table.low[part], 1 - table.weight[part]), corner(table.high[part], table.weight[part])


@dataclass(frozen=True)
class Corner:
    """An end of trilinear cells along an axis: places within a block, shares, and what the network saw."""

    index: NDArray[np.int64]
    share: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def __getitem__(self, part: Any) -> Corner:
        """Return the corners of some of the cells."""
        return Corner(self.index[part], self.share[part], self.seen[part])

    def labels(self, labels: NDArray[Any], axis: int, none: int) -> NDArray[Any]:
        """Return the labels of these places along an axis, ``none`` where the network did not look."""
        picked = np.take(labels, self.index, axis)
        if not self.seen.all():
            np.moveaxis(picked, axis, 0)[~self.seen] = none
        return picked


Cells = Sequence[Sequence[Corner]]  # per axis the low and the high corner


def _interpolated(scores: torch.Tensor, cells: Cells, voxels: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Return scores (K, n) of n cells, per axis those at ``voxels``."""
    return interpolate(
        scores,
        [
            [(torch.from_numpy(corner.index[which]), torch.from_numpy(corner.share[which])) for corner in pair]
            for pair, which in zip(cells, voxels, strict=True)
        ],
    )


def _blended(volume: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Return values of one class on a box whose cells are a table an axis."""
    for axis, (low, high) in reversed(list(enumerate(cells))):
        shape = [-1 if a == axis else 1 for a in range(3)]
        value = volume.index_select(axis, torch.from_numpy(low.index))
        value *= torch.from_numpy(low.share).reshape(shape)
        if high.share.any():
            at_high = volume.index_select(axis, torch.from_numpy(high.index))
            value.addcmul_(at_high, torch.from_numpy(high.share).reshape(shape))
        volume = value
    return volume


def _parts(count: int, classes: int) -> list[slice]:
    """Return the voxels whose scores are interpolated together."""
    size = max(1, CHUNK // max(1, classes))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _marks(channels: int, activation: Activation) -> tuple[int, int]:
    """Return values for "not seen by the network" and for "undecided", beside the labels."""
    return (0, 1 << channels) if activation == "sigmoid" else (channels, channels + 1)


class _BlockBorders:
    """The last planes of finished blocks, which the next ones need."""

    def __init__(self, grid: WindowGrid) -> None:
        self.slow, self.fast = (axis + 1 for axis in grid.block_axes)
        self.width = grid.padded[grid.block_axes[1]]
        self._starts = grid.starts[grid.block_axes[0]]
        self._planes: dict[int, torch.Tensor] = {}  # before a row of blocks, by where it begins
        self._edges: dict[int, torch.Tensor] = {}  # beside the next block of a row, by where the row begins

    def without(self, block: Block) -> torch.Tensor:
        """Return the scores without their border."""
        scores = block.scores
        for axis in (self.slow, self.fast):
            scores = scores.narrow(axis, BORDER, scores.shape[axis] - BORDER)
        return scores

    def fill(self, block: Block) -> None:
        """Write the border of a block, and keep what its successors need; before the first block it is 0."""
        scores, row, first = block.scores, block.start[self.slow - 1], block.start[self.fast - 1]
        length, after = scores.shape[self.fast], row + scores.shape[self.slow] - BORDER
        together = max(start for start in self._starts if start <= row)  # rows that are finished in turns
        self._planes = {start: plane for start, plane in self._planes.items() if start >= together}
        if row in self._planes:
            scores.narrow(self.slow, 0, BORDER).copy_(self._planes[row].narrow(self.fast, first, length))
        if first > 0:
            scores.narrow(self.fast, 0, BORDER).copy_(self._edges.pop(row))
        if after not in self._planes:
            shape = list(scores.shape)
            shape[self.slow], shape[self.fast] = BORDER, self.width + BORDER
            self._planes[after] = scores.new_zeros(shape)
        last = scores.narrow(self.slow, scores.shape[self.slow] - BORDER, BORDER)
        last = last.narrow(self.fast, BORDER, length - BORDER)
        self._planes[after].narrow(self.fast, first + BORDER, length - BORDER).copy_(last)
        if first + length - BORDER < self.width:
            self._edges[row] = scores.narrow(self.fast, length - BORDER, BORDER).clone()

    def labels(self, block: Block, inner: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return the labels of a block whose border is filled, from those without the border."""
        labels = inner.new_empty(block.scores.shape[1:])
        within = labels
        for axis in (self.slow, self.fast):
            border = likeliest(block.scores.narrow(axis, 0, BORDER), activation).labels
            labels.narrow(axis - 1, 0, BORDER).copy_(border)
            within = within.narrow(axis - 1, BORDER, inner.shape[axis - 1])
        within.copy_(inner)
        return labels
