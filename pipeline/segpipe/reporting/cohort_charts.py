"""Pictures of many cases: how a measure is spread, and whether it drifts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from segpipe.reporting.charts import BAR_COLOUR, GREY, INK, PAGE_WIDTH_IN, dress, new_figure, shorten, to_png

OUTLIER, LIMIT = "#b3261e", "#8a6d00"


def spread(values: Mapping[str, Sequence[float]], outliers: Mapping[str, Collection[int]], unit: str) -> bytes:
    """Return a row of points a label, its median as a line; outliers are red.

    Args:
        values: by label.
        outliers: by label, the places of values that are called so.
        unit: of the values.

    Returns:
        A PNG.
    """
    figure = new_figure(PAGE_WIDTH_IN, 0.7 + 0.55 * max(1, len(values)))
    axis = figure.add_subplot()
    for row, (name, numbers) in enumerate(values.items()):
        array, random = np.asarray(numbers, float), np.random.default_rng(row)
        heights = row + random.uniform(-0.22, 0.22, len(array))
        odd = np.isin(np.arange(len(array)), list(outliers.get(name, ())))
        axis.plot(array[~odd], heights[~odd], ".", color=BAR_COLOUR, markersize=4, alpha=0.6)
        axis.plot(array[odd], heights[odd], "o", color=OUTLIER, markersize=4)
        axis.plot([np.median(array)] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.4)
    axis.set_yticks(range(len(values)), [shorten(name, 24) for name in values])
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_xlabel(unit)
    dress(axis, grid="x")
    return to_png(figure)


def control_chart(p_values: Sequence[float], window: int = 20) -> bytes:
    """Return the running mean of conformal p-values in the order of time, with its control limits.

    While images are like those of the calibration, p-values are spread evenly from 0 to 1 (Vovk et al. 2005), so the
    mean of n of them lies around 0.5 with a standard deviation of 1 / sqrt(12 n); the limits are three of these
    (Shewhart 1931).

    Args:
        p_values: of the cases, oldest first.
        window: cases whose mean is taken.

    Returns:
        A PNG.
    """
    figure = new_figure(PAGE_WIDTH_IN, 2.4)
    axis = figure.add_subplot()
    means, limit = running_mean(p_values, window), control_limit(window)
    places = np.arange(len(p_values)) + 1
    axis.plot(places, p_values, ".", color=GREY, markersize=3, label="a case")
    if len(means):
        ends = places[window - 1 :]
        axis.plot(ends, means, color=BAR_COLOUR, linewidth=1.6, label=f"mean of {window}")
        low = means < 0.5 - limit
        axis.plot(ends[low], means[low], "o", color=OUTLIER, markersize=3.5, label="below the limit")
    for edge in (0.5 - limit, 0.5 + limit):
        axis.axhline(edge, color=LIMIT, linewidth=0.9, linestyle="--")
    axis.set(xlabel="cases, in the order of time", ylabel="p-value", ylim=(0, 1))
    axis.legend(loc="upper right", fontsize=7, frameon=False, ncols=3)
    dress(axis)
    return to_png(figure)


def running_mean(values: Sequence[float], window: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the mean of each so many values in a row; empty where there are fewer."""
    if len(values) < window:
        return np.zeros(0)
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, float)]))
    return np.asarray((sums[window:] - sums[:-window]) / window)


def control_limit(window: int) -> float:
    """Return how far the mean of so many even p-values stays from 0.5, but for 3 in 1,000."""
    return 3 / math.sqrt(12 * window)
