"""Measures per sample of a batch, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def per_sample(
    measure: Callable[..., float | None], truth: ArrayLike, prediction: ArrayLike, **options: Any
) -> list[float | None]:
    """A measure of each sample of a batch, along the first axis, where calling it on the batch would pool.

    Example: ``per_sample(soft_dice, truth, prediction, squared=True)``

    Raises:
        ValueError: the batches have different lengths.
    """
    pairs = zip(np.asarray(truth), np.asarray(prediction), strict=True)
    return [measure(one, other, **options) for one, other in pairs]


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None where there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
