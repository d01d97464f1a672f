"""Dice per case as bars, with the mean in red and the median in green."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from pipeline.report.canvas import (
    BAR_COLOUR,
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

Scores = Mapping[str, float | None]
NAMED = 60  # cases whose names fit below the bars of a full width
PANELS_IN_A_ROW = 3
LETTERS = 24


def draw_dice_bars(scores: Scores, path: Path, title: str) -> None:
    """Write the bars as PNG; see `dice_bars`."""
    write_bytes(path, dice_bars({title: scores}))


def dice_bars(panels: Mapping[str, Scores]) -> bytes:
    """Bars sorted from the worst case to the best; a panel for each title, several in a row.

    Args:
        panels: title to case id to Dice; None and NaN (not defined) are not drawn and not averaged.

    Returns:
        A PNG. Mean (red, solid) and median (green, dashed) are lines, and stand with their values above the bars.
    """
    columns = max(1, min(len(panels), PANELS_IN_A_ROW))
    rows = max(1, math.ceil(len(panels) / columns))
    named = NAMED // columns
    letters = max(
        (
            len(shorten(case, LETTERS))
            for scores in panels.values()
            if len(scores) <= named
            for case in scores
        ),
        default=0,
    )
    figure = new_figure(PAGE_WIDTH_IN, (2.7 + 0.055 * letters) * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, scores) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, title, scores, named)
    for axis in axes[:, 0]:
        axis.set_ylabel("Dice")
    return to_png(figure)


def _draw(axis: Axes, title: str, scores: Scores, named: int) -> None:
    known = {
        case: float(value) for case, value in scores.items() if value is not None and math.isfinite(value)
    }
    cases = sorted(known, key=lambda case: (known[case], case))
    values = [known[case] for case in cases]
    positions = range(len(values))
    axis.bar(positions, values, color=BAR_COLOUR, width=0.8 if len(values) <= named else 1.0)
    lost = [position for position in positions if values[position] == 0]
    axis.plot(
        lost, [0.0] * len(lost), "x", color=INK, markersize=4, clip_on=False
    )  # a bar that would not be seen
    if values:
        mean, middle = fmean(values), median(values)
        axis.axhline(mean, color=MEAN_COLOUR, linewidth=1.4, label=f"mean {mean:.3f}")
        axis.axhline(
            middle, color=MEDIAN_COLOUR, linewidth=1.4, linestyle=(0, (4, 2)), label=f"median {middle:.3f}"
        )
        axis.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8, borderaxespad=0.1,
            handlelength=1.8, columnspacing=1.2, labelcolor=INK,
        )  # fmt: skip
    axis.set_title(shorten(title, 40), fontsize=9, color=INK, loc="left")
    axis.set_ylim(0, 1)
    axis.set_xlim(-0.7, max(len(values), 5) - 0.3)
    if len(values) <= named:
        axis.set_xticks(list(positions), [shorten(case, LETTERS) for case in cases], rotation=90)
    else:
        axis.set_xlabel(f"{len(values)} cases, from the worst to the best")
    dress(axis)
    axis.tick_params(axis="x", labelsize=7)
