"""Means with an interval that respects that cases of one patient are not independent.

What all cases say together, per label and overall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe.evaluation.case_evaluation import CaseResult
from segpipe.evaluation.measure import MEASURES, LabelMeasure, mean_defined

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
    """Mean over cases with a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

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
    kept = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not kept:
        return Estimate(None, None, None, None, 0)
    numbers = np.array([value for value, _ in kept], dtype=np.float64)
    patients, index = np.unique([group for _, group in kept], return_inverse=True)
    mean, median = float(numbers.mean()), float(np.median(numbers))
    if len(patients) < 2 or n_bootstrap < 1:
        return Estimate(mean, None, None, median, len(kept))
    totals, counts = np.bincount(index, weights=numbers), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(patients), (n_bootstrap, len(patients)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), median, len(kept))


BY_LABEL = tuple(name for name, measure in MEASURES.items() if measure.kind != "volume")
OVERALL = tuple(name for name in BY_LABEL if MEASURES[name].kind != "difference")


@dataclass(frozen=True)
class Summary:
    """Estimates by measure.

    Attributes:
        labels: for each label value its name, ``counts`` and ``metrics``.
        overall: ``counts`` and ``metrics`` of the cases, each case being the mean over its counted labels.
    """

    labels: dict[int, dict[str, Any]]
    overall: dict[str, Any]


def summarise(
    results: Sequence[CaseResult], labels: Mapping[int, str], n_bootstrap: int = 2000, seed: int = 0
) -> Summary:
    """Mean, median, interval and counts of every measure."""
    groups = [result.group for result in results]

    def estimate(values: list[float | None]) -> Estimate:
        return bootstrap_mean(values, groups, n_bootstrap, seed)

    by_label = {}
    for position, (value, name) in enumerate(labels.items()):
        measures = [result.measures[position] for result in results]
        by_label[value] = {
            "name": name,
            "counts": _label_counts(measures),
            "metrics": {metric: estimate([getattr(measure, metric) for measure in measures]) for metric in BY_LABEL},
        }
    overall = {
        "counts": _case_counts(results),
        "metrics": {metric: estimate([case_value(result, metric) for result in results]) for metric in OVERALL},
    }
    return Summary(by_label, overall)


def case_value(result: CaseResult, metric: str) -> float | None:
    """Mean of a measure over the labels that have it; a failed case scores 0, whatever its truth holds."""
    if result.failure is not None:
        return 0.0 if MEASURES[metric].kind == "score" else None
    return mean_defined(getattr(measure, metric) for measure in result.measures)


def _label_counts(measures: Sequence[LabelMeasure]) -> dict[str, int]:
    flags = Counter(measure.flag for measure in measures)
    return {
        "counted": sum(measure.counted for measure in measures),
        "missing": flags["missing"],
        "failed": flags["failed"],
        "missed": flags["missed"],
        "false_positive": flags["false_positive"],
        "absent": flags["absent"],
        "undefined_distances": sum(measure.counted and measure.hd_mm is None for measure in measures),
    }


def _lacks_a_distance(result: CaseResult) -> bool:
    """Whether a mean distance passes over the case, or over a label of it that counts in its mean Dice."""
    return result.failure is not None or any(measure.counted and measure.hd_mm is None for measure in result.measures)


def _case_counts(results: Sequence[CaseResult]) -> dict[str, int]:
    missing = sum(result.missing for result in results)
    return {
        "cases": len(results),
        "patients": len({result.group for result in results}),
        "counted": sum(case_value(result, "dice") is not None for result in results),
        "missing": missing,
        "failed": sum(result.failure is not None for result in results) - missing,
        "undefined_distances": sum(_lacks_a_distance(result) for result in results),
    }
