"""Cells of eight voxels around points of another grid, within a block of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.inference.linear import interpolate


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
