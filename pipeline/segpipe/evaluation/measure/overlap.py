"""Measures that count voxels: Dice, IoU, precision, recall, specificity, volume; per sample of a batch, and means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Counts:
    """Voxels of two masks, from which every overlap measure follows. Counts of several cases add up (pooling).

    A measure whose denominator is 0 is None.

    Attributes:
        both: in truth and prediction, the true positives.
        truth: in the truth.
        prediction: in the prediction.
        voxels: of the whole volume.
    """

    both: int
    truth: int
    prediction: int
    voxels: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.both + other.both,
            self.truth + other.truth,
            self.prediction + other.prediction,
            self.voxels + other.voxels,
        )

    @property
    def dice(self) -> float | None:
        """As the function `dice`."""
        return _ratio(2 * self.both, self.truth + self.prediction)

    @property
    def iou(self) -> float | None:
        """As the function `iou`."""
        return _ratio(self.both, self.truth + self.prediction - self.both)

    @property
    def precision(self) -> float | None:
        """As the function `precision`."""
        return _ratio(self.both, self.prediction)

    @property
    def recall(self) -> float | None:
        """As the function `recall`."""
        return _ratio(self.both, self.truth)

    @property
    def specificity(self) -> float | None:
        """As the function `specificity`."""
        outside = self.voxels - self.truth
        return _ratio(outside - (self.prediction - self.both), outside)


def count_voxels(truth: ArrayLike, prediction: ArrayLike) -> Counts:
    """Count two masks of one shape, of any number of axes.

    Raises:
        ValueError: their shapes differ.
    """
    true, predicted = as_masks(truth, prediction)
    both, in_truth, in_prediction = (int(np.count_nonzero(mask)) for mask in (true & predicted, true, predicted))
    return Counts(both, in_truth, in_prediction, true.size)


def dice(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Return the Dice coefficient, 2 |A and B| / (|A| + |B|) (Dice 1945, doi:10.2307/1932409).

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    return count_voxels(truth, prediction).dice


def iou(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Return intersection over union, the Jaccard index, |A and B| / |A or B|.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    return count_voxels(truth, prediction).iou


def precision(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Return the share of the prediction that is true, TP / (TP + FP); the positive predictive value.

    Returns:
        0 to 1; 0 where the truth alone is empty, None where the prediction is empty: nothing is claimed.
    """
    return count_voxels(truth, prediction).precision


def recall(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Return the share of the truth that is found, TP / (TP + FN); the sensitivity, or true positive rate.

    Returns:
        0 to 1; 0 where the prediction alone is empty, None where the truth is empty: there is nothing to find.
    """
    return count_voxels(truth, prediction).recall


def specificity(truth: ArrayLike, prediction: ArrayLike) -> float | None:
    """Return the share of what is not truth that is left alone, TN / (TN + FP); the true negative rate.

    It depends on how much background the volume shows, and is near 1 wherever that is much.

    Args:
        truth: mask of the whole volume, not of a crop.
        prediction: mask of the same shape.

    Returns:
        0 to 1; 1 where the prediction is empty, None where the truth fills the volume.
    """
    return count_voxels(truth, prediction).specificity


def volume_ml(mask: ArrayLike, affine: ArrayLike) -> float:
    """Return the volume of a mask in mL.

    Args:
        mask: nonzero inside.
        affine: (4, 4), voxel index to mm; its determinant is right for sheared grids too.
    """
    return int(np.count_nonzero(mask)) * voxel_ml(affine)


def voxel_ml(affine: ArrayLike) -> float:
    """Return the volume of one voxel in mL."""
    return abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000


def as_masks(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return both masks as booleans.

    Raises:
        ValueError: their shapes differ.
    """
    true, predicted = (np.asarray(mask).astype(bool, copy=False) for mask in (truth, prediction))
    if true.shape != predicted.shape:
        raise ValueError(f"masks of different shapes: {true.shape} and {predicted.shape}")
    return true, predicted


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def per_sample(
    measure: Callable[..., float | None], truth: ArrayLike, prediction: ArrayLike, **options: Any
) -> list[float | None]:
    """Return a measure of each sample of a batch, along the first axis, where calling it on the batch would pool.

    Example: ``per_sample(soft_dice, truth, prediction, squared=True)``

    Raises:
        ValueError: the batches have different lengths.
    """
    pairs = zip(np.asarray(truth), np.asarray(prediction), strict=True)
    return [measure(*pair, **options) for pair in pairs]


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
