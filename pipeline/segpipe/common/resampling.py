"""A channel on the grid of another one: interpolated linearly at the same places in mm, never extrapolated.

Why here and not by a transform of the bundle: a bundle of ours reads the channels of a case as one image, which MONAI
can only where they share a grid. Resampled before, stock MONAI, training and every engine see the same voxels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DataError

Shape = tuple[int, int, int]
Affine = NDArray[Any]
INSIDE = 0.5 + 1e-3  # voxels around a centre that a voxel covers, with what headers round
SAMPLES = 64  # along an axis, to tell a share by
COARSER = 1.5  # times, from which on a grid loses detail of a channel


def resample(values: NDArray[np.generic], affine: Affine, shape: Shape, onto: Affine) -> NDArray[np.float32]:
    """Return a channel on another grid, as `scipy.ndimage` interpolates linearly.

    >>> ramp = np.arange(4.0)[:, None, None].repeat(2, 1).repeat(2, 2)
    >>> half = np.diag([0.5, 1, 1, 1])
    >>> resample(ramp, np.eye(4), (6, 2, 2), half)[:, 0, 0].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]

    Args:
        values: (X, Y, Z) the channel.
        affine: (4, 4) its voxel index to mm.
        shape: of the grid.
        onto: (4, 4) the grid's voxel index to mm, in the same space.

    Returns:
        ``shape``, float32. What the channel does not cover has its smallest value.
    """
    from scipy.ndimage import affine_transform

    to_channel = np.linalg.solve(affine, onto)
    matrix, offset = to_channel[:3, :3], to_channel[:3, 3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
        matrix = np.diag(matrix)  # which scipy does faster
    found = affine_transform(values, matrix, offset, shape, np.float32, order=1, mode="nearest")
    for index in range(shape[2]):
        outside = ~_covered(values.shape, to_channel, shape, index)
        if outside.any():
            found[:, :, index][outside] = values.min()
    return np.asarray(found)


def covered(shape: tuple[int, ...], affine: Affine, onto_shape: Shape, onto: Affine) -> NDArray[np.bool_]:
    """Return which voxels of a grid have their centre in a voxel of a channel; arguments as of `share_outside`."""
    to_channel = np.linalg.solve(affine, onto)
    return np.stack([_covered(shape, to_channel, onto_shape, index) for index in range(onto_shape[2])], axis=2)


def share_outside(shape: tuple[int, ...], affine: Affine, onto_shape: Shape, onto: Affine) -> float:
    """Return the share of a grid that a channel does not cover, told by at most 64 voxels along each axis.

    Args:
        shape: of the channel.
        affine: (4, 4) of the channel.
        onto_shape: of the grid.
        onto: (4, 4) of the grid.
    """
    axes = [np.unique(np.linspace(0, size - 1, min(size, SAMPLES)).round()) for size in onto_shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    to_channel = np.linalg.solve(affine, onto)
    index = to_channel[:3, :3] @ places + to_channel[:3, 3:]
    return float(1 - np.all([_within(*pair) for pair in zip(index, shape, strict=False)], axis=0).mean())


def note_on(channel: str, shape: tuple[int, ...], affine: Affine, onto_shape: Shape, onto: Affine) -> str:
    """Say what a channel lacks on a grid, empty where nothing; arguments as of `share_outside`, and what it is called.

    Raises:
        DataError: it does not cover any of it.
    """
    outside = share_outside(shape, affine, onto_shape, onto)
    if outside == 1:
        raise DataError(
            f"{channel} lies beside the first channel",
            found="no voxel of the first channel that it covers",
            expected="channels of the same part of the body, in the same space",
            hint="look whether the files belong to one case, and are registered",
        )
    words = []
    if outside:
        words.append(f"does not cover {100 * outside:.2g} % of the first channel: there it has its smallest value")
    edges, onto_edges = (np.linalg.norm(each[:3, :3], axis=0) for each in (affine, onto))
    if np.prod(onto_edges) > COARSER**3 * np.prod(edges):
        words.append("loses detail on the coarser grid of the first channel; name the finest first")
    return f"{channel} {', and '.join(words)}" if words else ""


def _covered(shape: tuple[int, ...], to_channel: Affine, onto_shape: Shape, index: int) -> NDArray[np.bool_]:
    """Return which voxels of a grid's slice a channel covers, (X, Y)."""
    x, y = np.arange(onto_shape[0])[:, None], np.arange(onto_shape[1])[None, :]
    inside = np.ones(onto_shape[:2], bool)
    for row, size in zip(to_channel[:3], shape, strict=False):
        place = row[0] * x + row[1] * y + (row[2] * index + row[3])
        inside &= _within(place, size)
    return inside


def _within(place: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """Return which voxel places along an axis lie in one of its voxels."""
    return (place >= -INSIDE) & (place <= size - 1 + INSIDE)


def require_covered(
    labels: NDArray[np.generic], channel: str, shape: tuple[int, ...], affine: Affine, onto: Affine
) -> None:
    """Refuse labels where a channel was not scanned: nothing could be learned of it there.

    Args:
        labels: (X, Y, Z) on the grid; 0 is background.
        channel: what it is called.
        shape, affine: of the channel.
        onto: (4, 4) of the grid.

    Raises:
        DataError: labelled voxels that it does not cover.
    """
    x, y, z = labels.shape
    outside = int(np.count_nonzero((labels != 0) & ~covered(shape, affine, (x, y, z), onto)))
    if outside:
        raise DataError(
            f"labels lie where {channel} was not scanned",
            found=f"{outside} of {np.count_nonzero(labels)} labelled voxels outside of it",
            expected="none",
            hint="leave this case out, or leave that channel out",
        )
