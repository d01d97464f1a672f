"""Labels on the source's grid, from scores on the network's, with scores interpolated only where they can decide.

Between eight corners of one winner, interpolation with weights that are not negative cannot make another one win. So
only the cells at boundaries are interpolated, and the labels are those of the stock path: activation, MONAI's
`Invertd` (linear), then argmax or threshold. What the network did not see (outside a crop) has scores of 0 there,
and no winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.errors import DataError
from segpipe.inference.activations import Activation, Best, Kept, activate, marks, winners_of
from segpipe.inference.interpolation import (
    Cells,
    Ends,
    Table,
    between,
    blended,
    chosen,
    corner_label,
    merged,
    parallel_tables,
    places_of,
)
from segpipe.inference.prepare import GridTransform
from segpipe.inference.sliding_window import HALO, Block, BlockBorders, WindowGrid

MOST_CLASSES, MOST_REGIONS = 256, 8  # what a byte holds as one label, or as a bit each
DENSE = 0.2  # share of undecided voxels above which it is faster to interpolate all
CHUNK = 1 << 22  # values that are held at a time


class Restorer:
    """Makes a label map on the source's grid of blocks of scores, in the order in which they are finished.

    Args:
        way: how the source's grid and the network's belong together.
        grid: where the windows of the network's grid lie.
        activation: ``softmax`` over the classes, or ``sigmoid`` of one or of several that may overlap.
        kept: arrays on the source's grid that are filled as well, or None.

    Attributes:
        labels: (X, Y, Z) uint8 on the source's grid; 0 where the network did not look. Under a sigmoid bit c says
            whether a voxel belongs to channel c.
        undecided: how many voxels were interpolated.
    """

    def __init__(self, way: GridTransform, grid: WindowGrid, activation: Activation, kept: Kept | None = None) -> None:
        self.way, self.grid, self.activation = way, grid, activation
        self.labels = np.zeros(way.source_shape, np.uint8, order="F")
        self.undecided = 0
        self._turned = way.turned(self.labels)
        self._order = sorted(range(3), key=lambda axis: -abs(self._turned.strides[axis]))  # as it lies in memory
        self._kept = None if kept is None else kept.viewed(way.turned)
        self._laid = self._kept and self._kept.viewed(lambda array: array.transpose(self._order))
        self._shift = [offset - before for offset, (before, _) in zip(way.offset, grid.pad, strict=True)]
        self._seen = way.seen
        self._matrix = np.eye(4) if way.backward is None else way.backward
        if way.backward is None:
            sizes = way.turned_shape
            self._tables: Sequence[Table] | None = [Table.of(np.arange(size, dtype=float)) for size in sizes]
        else:
            self._tables = parallel_tables(way.backward, way.turned_shape, way.resampled_shape)
        self._halos = BlockBorders(grid)

    def take(self, block: Block) -> None:
        """Restore the voxels whose cells end in a block."""
        classes = len(block.scores)
        if classes > (MOST_CLASSES if self.activation == "softmax" else MOST_REGIONS):
            raise DataError(
                "the bundle has too many labels",
                found=f"{self.activation} over {classes} channels",
                expected=f"softmax over at most {MOST_CLASSES} channels, or sigmoid over {MOST_REGIONS}",
            )
        activate(self._halos.inner(block), self.activation)
        self._halos.fill(block)
        winners = winners_of(block.scores, self.activation).numpy()
        if self._tables is None:
            self._restore_tilted(block, winners)
        else:
            self._restore_parallel(block, winners, self._tables)

    def _first(self, block: Block, axis: int) -> int:
        """The resampled voxel that is the block's first, its halo included."""
        return block.start[axis] + self._shift[axis] - (HALO if axis in self.grid.block_axes else 0)

    def _owned(self, block: Block, axis: int) -> tuple[float, float]:
        """From which resampled voxel, and up to which, cells end in a block."""
        first = self._first(block, axis)
        halo = HALO if axis in self.grid.block_axes else 0
        end = first + block.scores.shape[axis + 1]
        is_first, is_last = block.start[axis] == 0, end - self._shift[axis] >= self.grid.padded[axis]
        return -np.inf if is_first else first + halo, np.inf if is_last else end

    def _ends(self, block: Block, axis: int, voxels: NDArray[np.int64], share: NDArray[np.float64]) -> Ends:
        low, high = self._seen[axis]
        seen = (voxels >= low) & (voxels < high)
        index = np.clip(voxels - self._first(block, axis), 0, block.scores.shape[axis + 1] - 1)
        return Ends(index, np.where(seen, share, 0).astype(np.float32), seen)

    def _restore_parallel(self, block: Block, winners: NDArray[Any], tables: Sequence[Table]) -> None:
        box, ends = [], []
        for axis, table in enumerate(tables):
            first, end = self._owned(block, axis)
            part = slice(int(np.searchsorted(table.high, first)), int(np.searchsorted(table.high, end)))
            if part.start >= part.stop:
                return
            box.append(part)
            share = table.weight[part]
            ends.append(
                (self._ends(block, axis, table.low[part], 1 - share), self._ends(block, axis, table.high[part], share))
            )
        none, undecided = marks(block.scores, self.activation)
        decided = np.ascontiguousarray(winners.transpose(self._order))
        for place in (2, 1, 0):  # the last is the largest, and there whole planes are copied
            low, high = ends[self._order[place]]
            decided = merged(decided, place, low, high, none, undecided)
        open_voxels = np.nonzero(decided == undecided)
        decided[decided == none] = 0
        self.undecided += len(open_voxels[0])
        if len(open_voxels[0]) > DENSE * decided.size or (self._kept and self._kept.needs_all(len(block.scores))):
            self._blend(block.scores, ends, box, decide=True)
            return
        for part in parts(len(open_voxels[0]), len(block.scores)):
            picked = tuple(voxels[part] for voxels in open_voxels)
            places = [picked[self._order.index(axis)] for axis in range(3)]
            cells = [[chosen(end, place) for end in pair] for pair, place in zip(ends, places, strict=True)]
            decided[picked] = winners_of(between(block.scores, cells), self.activation).numpy()
        self._turned.transpose(self._order)[tuple(box[axis] for axis in self._order)] = decided
        if self._kept is not None:
            self._blend(block.scores, ends, box, decide=False)

    def _blend(self, scores: torch.Tensor, ends: Cells, box: Sequence[slice], decide: bool) -> None:
        """Interpolate all voxels of a box, class after class: to decide where most are open, or what is kept."""
        tables, (slow, *others) = [ends[axis] for axis in self._order], [box[axis] for axis in self._order]
        rows = max(1, CHUNK // math.prod(part.stop - part.start for part in others))
        for first in range(slow.start, slow.stop, rows):
            place = (slice(first, min(first + rows, slow.stop)), *others)
            own = slice(first - slow.start, place[0].stop - slow.start)
            cells = [[chosen(end, own) for end in tables[0]], *tables[1:]]
            best = Best(self.activation)
            for label, volume in enumerate(scores):
                if not decide and not (self._laid and self._laid.needs(label)):
                    continue
                values = blended(volume.permute(self._order), cells)
                if self._laid is not None:
                    self._laid.put(label, place, values)
                if decide:
                    best.meet(label, values)
            if decide:
                self._turned.transpose(self._order)[place] = best.labels.numpy()

    def _restore_tilted(self, block: Block, winners: NDArray[Any]) -> None:
        box = self._box_around(block)
        rows = max(1, CHUNK // 4 // max(1, (box[1].stop - box[1].start) * (box[2].stop - box[2].start)))
        for first in range(box[0].start, box[0].stop, rows):
            part = (slice(first, min(first + rows, box[0].stop)), *box[1:])
            tables = [Table.of(place) for place in places_of(self._matrix, part, self.way.resampled_shape)]
            own = np.ones(tables[0].low.shape, bool)
            for axis in self.grid.block_axes:
                start, end = self._owned(block, axis)
                own &= (tables[axis].high >= start) & (tables[axis].high < end)
            ends = [
                (
                    self._ends(block, axis, table.low[own], 1 - table.weight[own]),
                    self._ends(block, axis, table.high[own], table.weight[own]),
                )
                for axis, table in enumerate(tables)
            ]
            self._turned[part][own] = self._decide(block.scores, winners, ends, part, own)

    def _decide(
        self, scores: torch.Tensor, winners: NDArray[Any], ends: Cells, box: tuple[slice, ...], own: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """Labels of the chosen voxels of a box, each with a cell of its own."""
        none, undecided = marks(scores, self.activation)
        decided = corner_label(winners, ends, (0, 0, 0), none)
        for corner in list(np.ndindex(2, 2, 2))[1:]:
            np.putmask(decided, decided != corner_label(winners, ends, corner, none), undecided)
        open_voxels = np.flatnonzero(decided == undecided)
        self.undecided += len(open_voxels)
        decided[decided == none] = 0
        if self._kept is not None:
            open_voxels = np.arange(len(decided))
            kept = torch.empty((len(scores), len(decided)))
        for part in parts(len(open_voxels), len(scores)):
            which = open_voxels[part]
            values = between(scores, [[chosen(end, which) for end in pair] for pair in ends])
            decided[which] = winners_of(values, self.activation).numpy()
            if self._kept is not None:
                kept[:, torch.from_numpy(which)] = values
        if self._kept is not None:
            for channel, values in enumerate(kept):
                self._kept.put(channel, box, values, own)
        return decided

    def _box_around(self, block: Block) -> tuple[slice, slice, slice]:
        """Turned voxels among which are all whose cells end in the block, by interval arithmetic."""
        limits = [(0.0, size - 1.0) for size in self.way.turned_shape]
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
        parts = [slice(int(np.floor(low)), max(int(np.floor(low)), int(np.ceil(high)) + 1)) for low, high in limits]
        return parts[0], parts[1], parts[2]


def parts(count: int, classes: int) -> list[slice]:
    """Voxels whose scores are interpolated together."""
    size = max(1, CHUNK // max(1, classes))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
