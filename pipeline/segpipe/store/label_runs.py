"""Where the voxels of a label map lie, as runs along its last axis: a few numbers an organ, not one a voxel.

A crop that is drawn about a voxel of a label needs the k-th of its voxels, in the order in which `numpy.nonzero` lists
them; runs that are sorted give it by a search, and the k-th voxel of the background as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Indices:
    """Flat indices of some voxels of a volume, in rising order, of which each is computed when it is asked for.

    >>> LabelRuns.of(np.array([[[0, 1, 1, 0, 2]]], np.uint8)).background()[np.array([0, 1])]
    array([0, 3])

    Args:
        starts: flat index of the first voxel of each run, rising.
        lengths: voxels of each run.
        outside_of: voxels of the volume, for those in no run; None for those in the runs.
    """

    def __init__(self, starts: NDArray[np.int64], lengths: NDArray[np.int64], outside_of: int | None = None) -> None:
        ends = np.cumsum(lengths)
        self._before = ends - lengths  # voxels in the runs before each one
        total = int(ends[-1]) if len(ends) else 0
        if outside_of is None:
            self._length, self._ranks, self._offsets = total, self._before, starts - self._before
        else:  # of the voxels outside, those before each run; and how far the run moves those behind it
            self._length = outside_of - total
            self._ranks = np.concatenate([[0], starts - self._before])
            self._offsets = np.concatenate([[0], ends])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rank: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the voxels of these ranks.

        Raises:
            IndexError: there are not so many.
        """
        ranks = np.asarray(rank)
        if ranks.size and not (int(ranks.min()) >= 0 and int(ranks.max()) < self._length):
            raise IndexError(f"rank {rank} of {self._length} voxels")
        return ranks + self._offsets[np.searchsorted(self._ranks, ranks, "right") - 1]


@dataclass(frozen=True)
class LabelRuns:
    """The labelled voxels of a label map, as runs of one value along the last axis.

    Attributes:
        shape: of the label map (X, Y, Z).
        starts: flat index of the first voxel of each run, rising.
        lengths: voxels of each run, which does not go on in another row.
        values: the label of each run, never 0.
    """

    shape: tuple[int, int, int]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    values: NDArray[np.uint8]

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> LabelRuns:
        """Return the runs of a label map (X, Y, Z)."""
        x, y, z = labels.shape
        flat = np.ascontiguousarray(labels).reshape(-1)
        begins = np.zeros(flat.size, bool)
        begins[::z] = True
        begins[1:] |= flat[1:] != flat[:-1]
        starts = np.flatnonzero(begins)
        lengths = np.diff(np.append(starts, flat.size))
        labelled = flat[starts] != 0
        starts, lengths = starts[labelled], lengths[labelled]
        return cls((x, y, z), starts.astype(np.int64), lengths.astype(np.int64), flat[starts])

    def padded(self, before: Sequence[int], shape: Sequence[int]) -> LabelRuns:
        """Return the runs of the map within a larger one of zeros.

        Args:
            before: voxels in front of it along each axis.
            shape: of the larger one.
        """
        x, y, z = shape
        if (x, y, z) == self.shape:
            return self
        places = np.unravel_index(self.starts, self.shape)
        moved = tuple(place + first for place, first in zip(places, before, strict=True))
        starts = np.ravel_multi_index(moved, (x, y, z)).astype(np.int64)
        return LabelRuns((x, y, z), starts, self.lengths, self.values)

    def foreground(self) -> Indices:
        """Return the voxels of any label."""
        return Indices(self.starts, self.lengths)

    def background(self) -> Indices:
        """Return the voxels of no label."""
        return Indices(self.starts, self.lengths, math.prod(self.shape))

    def of_label(self, value: int) -> Indices:
        """Return the voxels of one label; those of 0 are the background."""
        if value == 0:
            return self.background()
        its = self.values == value
        return Indices(self.starts[its], self.lengths[its])
