"""Measures that count voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dice(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Dice coefficient, 2 |A and B| / (|A| + |B|) (Dice 1945, doi:10.2307/1932409).

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    both, one, other = _counts(truth, prediction)
    return 2 * both / (one + other) if one + other else None


def iou(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Intersection over union, the Jaccard index, |A and B| / |A or B|.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    both, one, other = _counts(truth, prediction)
    return both / (one + other - both) if one + other else None


def volume_ml(mask: ArrayLike, affine: ArrayLike) -> float:
    """Volume of a mask in mL.

    Args:
        mask: nonzero inside.
        affine: (4, 4), voxel index to mm; its determinant is right for sheared grids too.
    """
    voxel_mm3 = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    return int(np.count_nonzero(mask)) * voxel_mm3 / 1000


def as_masks(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks as booleans.

    Raises:
        ValueError: their shapes differ.
    """
    one, other = np.asarray(truth).astype(bool, copy=False), np.asarray(prediction).astype(bool, copy=False)
    if one.shape != other.shape:
        raise ValueError(f"masks of different shapes: {one.shape} and {other.shape}")
    return one, other


def _counts(truth: ArrayLike, prediction: ArrayLike) -> tuple[int, int, int]:
    one, other = as_masks(truth, prediction)
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one)), int(np.count_nonzero(other))
