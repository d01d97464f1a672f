"""Dice of probabilities."""

from __future__ import annotations

from collections.abc import Iterable
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
        """As `soft_dice`."""
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
    """Dice of a prediction between 0 and 1, over all that is given: a batch is pooled.

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
    """The sums of `soft_dice`; arguments as there."""
    one, other = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"truth and prediction of different shapes: {one.shape} and {other.shape}")
    power = 2 if squared else 1
    return SoftCounts(float((one * other).sum()), float((one**power).sum() + (other**power).sum()))


def label_channels(probabilities: ArrayLike, labels: Iterable[int]) -> dict[int, NDArray[Any]]:
    """The channel of every label.

    Args:
        probabilities: (C, X, Y, Z): a channel for every label value with background (softmax) or without (sigmoid).
        labels: values, without background.

    Raises:
        ValueError: another number of channels.
    """
    channels, values = np.asarray(probabilities), list(labels)
    background = len(channels) - max(values)
    if background not in (0, 1):
        raise ValueError(
            f"{len(channels)} channels, expected {max(values) + 1}, or {max(values)} without background"
        )
    return {value: channels[value - 1 + background] for value in values}
