"""Dice of probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


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
    one, other = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"truth and prediction of different shapes: {one.shape} and {other.shape}")
    power = 2 if squared else 1
    above = 2 * float((one * other).sum()) + (smooth if smooth_above is None else smooth_above)
    below = float((one**power).sum() + (other**power).sum()) + smooth
    return above / below if below else None
