"""Means with an interval that respects that cases of one patient are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of the defined values, its 95 % interval, and their median; None where there is nothing to say."""

    mean: float | None
    low: float | None
    high: float | None
    median: float | None
    n: int


def bootstrap_mean(
    values: Sequence[float | None], groups: Sequence[str], n_bootstrap: int = 2000, seed: int = 0
) -> Estimate:
    """Return the mean over cases with a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Whole patients are drawn with replacement, each with all its cases, since two cases of one patient are alike;
    the mean of a draw is over its cases.

    Args:
        values: one a case; None is left out.
        groups: patient of each case.
        n_bootstrap: number of draws.
        seed: of the draws; the same for every measure, so that all see the same patients.

    Returns:
        The estimate; without an interval where fewer than two patients have a value.
    """
    defined = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not defined:
        return Estimate(None, None, None, None, 0)
    numbers = np.array([value for value, _ in defined], dtype=np.float64)
    patients, index = np.unique([group for _, group in defined], return_inverse=True)
    mean, median = float(numbers.mean()), float(np.median(numbers))
    if len(patients) < 2 or n_bootstrap < 1:
        return Estimate(mean, None, None, median, len(defined))
    totals, counts = np.bincount(index, weights=numbers), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(patients), (n_bootstrap, len(patients)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), median, len(defined))
