"""Measures of probabilities: soft Dice, and calibration: of the voxels given 0.8, eight in ten should be true."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class SoftCounts:
    """The sums that soft Dice is made of; those of several cases add up (pooling).

    Attributes:
        product: sum of p t.
        terms: sum of p and t, or of their squares.
    """

    product: float
    terms: float

    def __add__(self, other: SoftCounts) -> SoftCounts:
        return SoftCounts(self.product + other.product, self.terms + other.terms)

    def dice(self, smooth: float = 0.0, smooth_above: float | None = None) -> float | None:
        """Return Dice as `soft_dice` does."""
        above = 2 * self.product + (smooth if smooth_above is None else smooth_above)
        below = self.terms + smooth
        return above / below if below else None


def soft_dice(
    truth: ArrayLike,
    prediction: ArrayLike,
    squared: bool = False,
    smooth: float = 0.0,
    smooth_above: float | None = None,
) -> float | None:
    """Return the Dice of a prediction between 0 and 1, over all that is given: a batch is pooled.

    (2 sum(p t) + a) / (sum(p) + sum(t) + s), or with sum(p^2) + sum(t^2) below (Milletari et al. 2016,
    doi:10.1109/3DV.2016.79, eq. 3). On masks without smoothing both are `dice`. One minus it is `DiceLoss`.

    Args:
        truth: 0 or 1, of any shape.
        prediction: 0 to 1, of the same shape.
        squared: square the terms of the denominator.
        smooth: s, in voxels.
        smooth_above: a; as ``smooth`` where it is not given.

    Returns:
        0 to 1, as long as ``smooth_above`` is at most ``smooth``; None where the denominator is 0.

    Raises:
        ValueError: the shapes differ.
    """
    return count_soft(truth, prediction, squared).dice(smooth, smooth_above)


def count_soft(truth: ArrayLike, prediction: ArrayLike, squared: bool = False) -> SoftCounts:
    """Return the sums of `soft_dice`; arguments as there."""
    t, p = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if t.shape != p.shape:
        raise ValueError(f"truth and prediction of different shapes: {t.shape} and {p.shape}")
    power = 2 if squared else 1
    return SoftCounts(float((t * p).sum()), float((t**power).sum() + (p**power).sum()))


def label_channels(probabilities: ArrayLike, labels: Iterable[int]) -> dict[int, NDArray[Any]]:
    """Return the channel of every label.

    Args:
        probabilities: (C, X, Y, Z): a channel for every label value with background (softmax) or without (sigmoid).
        labels: values, without background.

    Raises:
        ValueError: another number of channels.
    """
    channels, values = np.asarray(probabilities), list(labels)
    background = len(channels) - max(values)
    if background not in (0, 1):
        raise ValueError(f"{len(channels)} channels, expected {max(values) + 1}, or {max(values)} without background")
    return {value: channels[value - 1 + background] for value in values}


BINS = 15
SLACK = 1e-5  # interpolated probabilities in single precision may leave [0, 1] by rounding
VOXELS_AT_ONCE = 2**22  # so that a large volume is not copied in double precision as a whole


@dataclass(frozen=True, eq=False)
class Calibration:
    """What fell into each of the equal bins of probability; that of several volumes adds up.

    Attributes:
        voxels: (bins,) number of voxels.
        probability: (bins,) their probabilities, summed.
        events: (bins,) how many of them are true.
    """

    voxels: NDArray[np.int64]
    probability: NDArray[np.float64]
    events: NDArray[np.int64]

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.voxels + other.voxels, self.probability + other.probability, self.events + other.events)

    @property
    def error(self) -> float | None:
        """As `expected_calibration_error`; None without voxels."""
        total = int(self.voxels.sum())
        return float(np.abs(self.events - self.probability).sum() / total) if total else None


def expected_calibration_error(
    truth: ArrayLike, probability: ArrayLike, bins: int = BINS, within: ArrayLike | None = None
) -> float | None:
    """Return the expected calibration error: sum over bins of (voxels / all) |share of true voxels - mean probability|.

    Naeini et al. 2015 (doi:10.1609/aaai.v29i1.9602), with the equal-width bins of Guo et al. 2017
    (arXiv:1706.04599, eq. 3), each closed at its upper end. Of a label, ``truth`` is its mask and ``probability`` its
    channel; for Guo's confidence of the chosen class, ``truth`` is ``p.argmax(0) == labels`` and ``probability`` is
    ``p.max(0)``.

    All voxels count, also background, where nearly any model is sure and right: that makes the error small in a
    volume that is mostly background. ``within`` chooses the voxels; choose by place (a box, a body mask), never by the
    truth itself, which would bias the shares.

    Args:
        truth: mask of any shape.
        probability: 0 to 1, of the same shape.
        bins: number of bins.
        within: mask of the voxels that count; None for all.

    Returns:
        0 to 1, best 0; None where no voxel counts. An empty or a full truth has one too.

    Raises:
        ValueError: shapes differ, or values that are no probabilities.
    """
    return calibrate(truth, probability, bins, within).error


def calibrate(
    truth: ArrayLike, probability: ArrayLike, bins: int = BINS, within: ArrayLike | None = None
) -> Calibration:
    """Sort voxels into bins of probability; arguments as in `expected_calibration_error`."""
    arrays = [np.asarray(truth).astype(bool, copy=False), np.asarray(probability)]
    if within is not None:
        arrays.append(np.asarray(within).astype(bool, copy=False))
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"truth, probability or mask of different shapes: {sorted(shapes)}")
    total = Calibration(np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins, np.int64))
    for true, values, *chosen in _blocks(arrays):
        mask = chosen[0] if chosen else slice(None)
        total += _sort(true[mask].ravel(), values[mask].ravel().astype(np.float64), bins)
    return total


def calibrate_labels(
    truth: ArrayLike, probabilities: ArrayLike, labels: Iterable[int], bins: int = BINS, within: ArrayLike | None = None
) -> dict[int, Calibration]:
    """Return the calibration of every label's probabilities, over all voxels.

    Args:
        truth: label map (X, Y, Z), or a mask for each label (labels, X, Y, Z).
        probabilities: (C, X, Y, Z), as in `label_channels`.
        labels: values, without background.
        bins: number of bins.
        within: mask of the voxels that count; None for all.

    Raises:
        ValueError: another number of channels, another shape, or values that are no probabilities.
    """
    true = np.asarray(truth)
    return {
        value: calibrate(true[value - 1] if true.ndim == 4 else true == value, channel, bins, within)
        for value, channel in label_channels(probabilities, labels).items()
    }


def _sort(true: NDArray[np.bool_], values: NDArray[np.float64], bins: int) -> Calibration:
    if values.size and not (values.min() >= -SLACK and values.max() <= 1 + SLACK):  # NaN is neither
        raise ValueError("values that are no probabilities: not from 0 to 1")
    values = values.clip(0, 1)
    index = np.ceil(values * bins).astype(np.int64).clip(1) - 1
    return Calibration(
        np.bincount(index, minlength=bins),
        np.bincount(index, values, minlength=bins).astype(np.float64),
        np.bincount(index[true], minlength=bins),
    )


def _blocks(arrays: list[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
    """Yield the arrays in slabs along their first axis."""
    first = [np.atleast_1d(array) for array in arrays]
    length = first[0].shape[0]
    step = max(1, VOXELS_AT_ONCE * length // max(1, first[0].size))
    for start in range(0, length, step):
        yield [array[start : start + step] for array in first]
