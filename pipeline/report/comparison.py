"""Variants side by side: a point for each case, mean, median and interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.report.canvas import (
    BAR_COLOUR,
    FAINT,
    GREY,
    INK,
    MEAN_COLOUR,
    MEDIAN_COLOUR,
    PAGE_WIDTH_IN,
    dress,
    new_figure,
    shorten,
    to_png,
    write_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Intervals = Mapping[str, tuple[float, float]]


def draw_comparison(
    scores: Mapping[str, Sequence[float]],
    path: Path,
    intervals: Intervals | None = None,
    measure: str = "Dice",
) -> None:
    """Write the comparison as PNG; see `comparison`."""
    write_bytes(path, comparison(scores, intervals, measure))


def comparison(
    scores: Mapping[str, Sequence[float]], intervals: Intervals | None = None, measure: str = "Dice"
) -> bytes:
    """A row for each variant: the cases as points over a box of their quartiles, mean red, median green.

    Args:
        scores: variant to the measure of each case; what is not finite is not drawn and not averaged.
        intervals: variant to the interval of its mean, drawn as a red bar; those who have none stay without.
        measure: name for the axis.

    Returns:
        A PNG.
    """
    figure = new_figure(PAGE_WIDTH_IN, 0.95 + 0.42 * max(1, len(scores)))
    axis = figure.subplots()
    axis.use_sticky_edges = False
    for row, (name, values) in enumerate(scores.items()):
        known = np.array([value for value in values if value is not None and math.isfinite(value)])
        if known.size:
            _draw(axis, row, known, (intervals or {}).get(name))
    axis.set_yticks(range(len(scores)), [shorten(name, 36) for name in scores])
    axis.set_ylim(max(1, len(scores)) - 0.45, -0.55)
    axis.set_xlabel(measure)
    dress(axis, "x")
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.spines["left"].set_visible(False)
    _legend(axis, bool(intervals))
    return to_png(figure)


def _draw(axis: Axes, row: int, values: NDArray[np.float64], interval: tuple[float, float] | None) -> None:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    mean = float(values.mean())
    axis.barh(row, high - low, left=low, height=0.56, color=FAINT, zorder=1)
    axis.plot(
        values, row + _spread(values), "o", color=BAR_COLOUR, markersize=3.2, markeredgewidth=0, zorder=2
    )
    axis.plot(
        [middle] * 2,
        [row - 0.28, row + 0.28],
        color=MEDIAN_COLOUR,
        linewidth=1.6,
        linestyle=(0, (3, 1.2)),
        zorder=3,
    )
    if interval is not None:
        axis.plot(
            interval, [row] * 2, color=MEAN_COLOUR, linewidth=2.6, alpha=0.55, solid_capstyle="butt", zorder=4
        )
    axis.plot([mean] * 2, [row - 0.34, row + 0.34], color=MEAN_COLOUR, linewidth=1.8, zorder=5)
    axis.text(
        1.01,
        row,
        f"{mean:.3f}",
        transform=axis.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=MEAN_COLOUR,
    )


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offsets within a row so that near points do not lie on each other; the same for the same values."""
    offsets = np.zeros(len(values))
    order = np.argsort(values, kind="stable")
    steps = np.array([0.0, 0.1, -0.1, 0.2, -0.2])
    offsets[order] = steps[np.arange(len(values)) % len(steps)]
    return offsets


def _legend(axis: Axes, with_interval: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D([], [], color=MEAN_COLOUR, linewidth=1.8, label="mean"),
        Line2D([], [], color=MEDIAN_COLOUR, linewidth=1.6, linestyle=(0, (3, 1.2)), label="median"),
        Line2D([], [], color=BAR_COLOUR, marker="o", markersize=3.2, linestyle="", label="case"),
        Patch(color=FAINT, label="middle half"),
    ]
    if with_interval:
        interval = Line2D(
            [], [], color=MEAN_COLOUR, linewidth=2.6, alpha=0.55, label="95 % interval of the mean"
        )
        handles.insert(1, interval)
    axis.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False, fontsize=8,
        handlelength=1.6, columnspacing=1.2, labelcolor=INK, edgecolor=GREY,
    )  # fmt: skip
