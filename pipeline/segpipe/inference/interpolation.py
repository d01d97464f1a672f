"""Linear interpolation between voxel grids, as torch's `grid_sample` in MONAI's resampling does it.

Coordinates are voxel centres, computed in float64 through the normalised coordinates of `affine_grid`, so that they
round as there; what lies outside is clamped to the edge. Where the two grids have parallel axes, each axis has a
table of its own; else coordinates are computed voxel by voxel.

Cells of eight voxels around points of another grid, within a block of scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.networks.utils import to_norm_affine
from numpy.typing import NDArray

PARALLEL_TOLERANCE = 1e-12  # voxels, by which a far corner may leave the tables
CHUNK = 1 << 22  # values that are interpolated at a time


@dataclass(frozen=True)
class Table:
    """For each voxel along an axis of one grid, the two voxels between which it lies on the other.

    Attributes:
        low, high: (n,) int64, equal where it lies on a voxel.
        weight: (n,) float64, the share of ``high``.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, coordinates: NDArray[np.float64]) -> Table:
        """The table of coordinates that are not below 0."""
        low = np.floor(coordinates)
        weight = coordinates - low
        first = low.astype(np.int64)
        return cls(first, first + (weight > 0), weight)


def parallel_tables(
    matrix: NDArray[np.float64], shape: tuple[int, ...], onto: tuple[int, ...]
) -> tuple[Table, Table, Table] | None:
    """One table an axis, or None where the grids' axes are not parallel.

    Args:
        matrix: (4, 4), voxel of the grid that is computed to voxel of the grid that is read.
        shape: of the grid that is computed.
        onto: of the grid that is read.
    """
    tilt = np.abs(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) @ np.asarray(shape, float)
    if tilt.max() > PARALLEL_TOLERANCE:
        return None
    theta = to_norm_affine(torch.from_numpy(matrix)[None], onto, shape, align_corners=False)
    theta = theta[:, [2, 1, 0]][:, :, [2, 1, 0, 3]]  # torch counts axes from the last
    tables = []
    for axis in range(3):
        line = [1, 1, 1]
        line[axis] = shape[axis]
        grid = torch.nn.functional.affine_grid(theta, [1, 1, *line], align_corners=False)
        places = ((grid[..., 2 - axis].flatten() + 1) * onto[axis] - 1) / 2
        tables.append(Table.of(places.clamp(0, onto[axis] - 1).numpy()))
    return tables[0], tables[1], tables[2]


def places_of(matrix: NDArray[np.float64], box: tuple[slice, ...], onto: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Coordinates of a box of voxels on the grid that is read, clamped to it; one array (x, y, z) an axis."""
    steps = [np.arange(part.start, part.stop, dtype=np.float64) for part in box]
    i, j, k = steps[0][:, None, None], steps[1][None, :, None], steps[2][None, None, :]
    return [
        np.clip(row[0] * i + row[1] * j + row[2] * k + row[3], 0, size - 1)
        for row, size in zip(matrix[:3], onto, strict=True)
    ]


def corners(lows: list[torch.Tensor], highs: list[torch.Tensor], shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Flat indices of the eight corners of cells, for a volume of a shape."""
    steps = (shape[1] * shape[2], shape[2], 1)
    ends = [(low * step, high * step) for low, high, step in zip(lows, highs, steps, strict=True)]
    return [ends[0][a] + ends[1][b] + ends[2][c] for a, b, c in itertools.product((0, 1), repeat=3)]


def interpolate(
    volume: torch.Tensor,
    lows: list[torch.Tensor],
    highs: list[torch.Tensor],
    low_weights: list[torch.Tensor],
    high_weights: list[torch.Tensor],
) -> torch.Tensor:
    """Values between voxels.

    Args:
        volume: (C, X, Y, Z).
        lows, highs: per axis (n,) int64, the voxels around each point.
        low_weights, high_weights: per axis (n,), their shares; a corner whose share is 0 counts nothing.

    Returns:
        (C, n), in the type of the weights.
    """
    flat = volume.reshape(len(volume), -1)
    total = torch.zeros((len(flat), len(lows[0])), dtype=low_weights[0].dtype, device=volume.device)
    shares = [x * y * z for x, y, z in itertools.product(*zip(low_weights, high_weights, strict=True))]
    for places, share in zip(corners(lows, highs, tuple(volume.shape[1:])), shares, strict=True):
        total += flat.index_select(1, places).to(total.dtype) * share
    return total


def resample(
    volume: torch.Tensor, matrix: NDArray[np.float64], shape: tuple[int, ...], flips: tuple[bool, ...] = (False,) * 3
) -> torch.Tensor:
    """A volume on another grid, computed in float64 as MONAI's `Spacing` does by default.

    Args:
        volume: (C, X, Y, Z) of any plain type, not copied as a whole.
        matrix: (4, 4), voxel of the result to voxel of the volume with the ``flips`` applied.
        shape: of the result.
        flips: axes of the volume that count from their end.

    Returns:
        (C, *shape) float32.
    """
    size = tuple(volume.shape[1:])
    tables = parallel_tables(matrix, shape, size)
    if tables is None:
        return _resample_tilted(volume, matrix, shape, flips)
    order = sorted(range(3), key=lambda axis: -volume.stride(axis + 1))  # as it lies in memory
    if order != [0, 1, 2]:
        back = [1 + order.index(axis) for axis in range(3)]
        turned = np.eye(4)[[*order, 3]]
        sizes = tuple(shape[axis] for axis in order)
        mirrors = tuple(flips[axis] for axis in order)
        moved = volume.permute(0, *(1 + axis for axis in order))
        return resample(moved, turned @ matrix @ turned.T, sizes, mirrors).permute(0, *back)
    ends = [
        [size[axis] - 1 - end if flips[axis] else end for end in (table.low, table.high)]
        for axis, table in enumerate(tables)
    ]
    result = torch.empty((len(volume), *shape), dtype=torch.float32)
    rows = max(1, CHUNK // (size[1] * size[2]))
    for channel, first in itertools.product(range(len(volume)), range(0, shape[0], rows)):
        part = slice(first, first + rows)
        value = volume[channel]
        for axis, table in enumerate(tables):
            picked = part if axis == 0 else slice(None)
            low, high = (torch.from_numpy(end[picked]) for end in ends[axis])
            weight = torch.from_numpy(table.weight[picked]).reshape([-1 if a == axis else 1 for a in range(3)])
            value = _between(value, axis, low, high, weight)
        result[channel, part] = value
    return result


def _between(
    value: torch.Tensor, axis: int, low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    one = value.index_select(axis, low).double()
    if not weight.any():
        return one
    other = value.index_select(axis, high).double()
    return one.mul_(1 - weight).add_(other.mul_(weight))


def _resample_tilted(
    volume: torch.Tensor, matrix: NDArray[np.float64], shape: tuple[int, ...], flips: tuple[bool, ...]
) -> torch.Tensor:
    size = tuple(volume.shape[1:])
    volume = volume.contiguous()
    result = torch.empty((len(volume), *shape), dtype=torch.float32)
    rows = max(1, CHUNK // 8 // (shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        box = (slice(first, min(first + rows, shape[0])), slice(0, shape[1]), slice(0, shape[2]))
        tables = [Table.of(place.ravel()) for place in places_of(matrix, box, size)]
        ends = [
            [torch.from_numpy(size[axis] - 1 - end if flips[axis] else end) for end in (table.low, table.high)]
            for axis, table in enumerate(tables)
        ]
        weights = [torch.from_numpy(table.weight) for table in tables]
        values = interpolate(
            volume, [low for low, _ in ends], [high for _, high in ends], [1 - w for w in weights], weights
        )
        result[:, box[0]] = values.reshape(len(volume), -1, *shape[1:]).float()
    return result


@dataclass(frozen=True)
class Ends:
    """One of the two corners of cells along an axis: places within a block, shares, and what the network saw."""

    index: NDArray[np.int64]
    share: NDArray[np.float32]
    seen: NDArray[np.bool_]


Cells = Sequence[Sequence[Ends]]  # per axis the low and the high corner


def chosen(end: Ends, which: Any) -> Ends:
    """Some entries of a table of corners."""
    return Ends(end.index[which], end.share[which], end.seen[which])


def between(scores: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Scores (K, n) of n cells."""
    sides = [
        [[torch.from_numpy(getattr(pair[side], what)) for pair in cells] for side in (0, 1)]
        for what in ("index", "share")
    ]
    return interpolate(scores, *sides[0], *sides[1])


def blended(volume: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Values of one class on a box whose cells are a table an axis."""
    for axis, (low, high) in reversed(list(enumerate(cells))):
        shape = [-1 if a == axis else 1 for a in range(3)]
        value = volume.index_select(axis, torch.from_numpy(low.index))
        value *= torch.from_numpy(low.share).reshape(shape)
        if high.share.any():
            other = volume.index_select(axis, torch.from_numpy(high.index))
            value.addcmul_(other, torch.from_numpy(high.share).reshape(shape))
        volume = value
    return volume


def corner_label(winners: NDArray[Any], ends: Cells, corner: tuple[int, ...], none: int) -> NDArray[Any]:
    three = [pair[side] for pair, side in zip(ends, corner, strict=True)]
    labels = winners[three[0].index, three[1].index, three[2].index]
    labels[~(three[0].seen & three[1].seen & three[2].seen)] = none
    return labels


def merged(labels: NDArray[Any], axis: int, low: Ends, high: Ends, none: int, undecided: int) -> NDArray[Any]:
    """Labels between voxels along an axis: that of both ends, or undecided where they differ."""
    one = picked(labels, axis, low, none)
    if not np.array_equal(low.index, high.index) or not np.array_equal(low.seen, high.seen):
        np.putmask(one, one != picked(labels, axis, high, none), undecided)
    return one


def picked(labels: NDArray[Any], axis: int, end: Ends, none: int) -> NDArray[Any]:
    picked = np.take(labels, end.index, axis)
    if not end.seen.all():
        np.moveaxis(picked, axis, 0)[~end.seen] = none
    return picked
