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
NAMED = 60  # cases whose names fit below the bars of a panel that is as wide as the page
PANELS_IN_A_ROW = 3
LETTERS = 24
NAME_PT = 7
LEFT_IN, GAP_IN, ABOVE_IN, HEIGHT_IN, WORDS_IN = 0.55, 0.15, 0.5, 1.9, 0.5  # margins and height of a panel


def draw_dice_bars(scores: Scores, path: Path, title: str) -> None:
    """Write the bars as PNG; see `dice_bars`."""
    write_bytes(path, dice_bars({title: scores}))


def dice_bars(panels: Mapping[str, Scores]) -> bytes:
    """Bars sorted from the worst case to the best; a panel for each title, three in a row.

    Args:
        panels: title to case id to Dice; None and NaN (not defined) are not drawn and not averaged.

    Returns:
        A PNG. Mean (red, solid) and median (green, dashed) are lines; their values stand above the bars.
    """
    columns = max(1, min(len(panels), PANELS_IN_A_ROW))
    rows = math.ceil(len(panels) / columns)
    named = NAMED // columns
    below_in = _below_in(panels, named)
    row_in = ABOVE_IN + HEIGHT_IN + below_in
    width_in = (PAGE_WIDTH_IN - LEFT_IN - GAP_IN * columns) / columns
    figure = new_figure(PAGE_WIDTH_IN, row_in * max(1, rows), arranged=False)
    for index, (title, scores) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        left_in = LEFT_IN + column * (width_in + GAP_IN)
        floor_in = (rows - 1 - row) * row_in + below_in
        page = (PAGE_WIDTH_IN, row_in * rows) * 2
        place = (left_in, floor_in, width_in, HEIGHT_IN)
        axis = figure.add_axes(tuple(inches / whole for inches, whole in zip(place, page, strict=True)))
        _draw(axis, title, scores, named)
        if column == 0:
            axis.set_ylabel("Dice")
        else:
            axis.tick_params(axis="y", labelleft=False)
    return to_png(figure)


def _below_in(panels: Mapping[str, Scores], named: int) -> float:
    """Room below a panel: for the longest name, or for the words in place of names."""
    from matplotlib.textpath import TextPath

    names = {shorten(case, LETTERS) for scores in panels.values() if len(scores) <= named for case in scores}
    lengths = [TextPath((0, 0), name, size=NAME_PT).get_extents().width for name in names]
    names_in = 0.2 + 1.1 * max(lengths, default=0.0) / 72
    return max(names_in, WORDS_IN if any(len(scores) > named for scores in panels.values()) else 0.0)


def _draw(axis: Axes, title: str, scores: Scores, named: int) -> None:
    known = {
        case: float(value) for case, value in scores.items() if value is not None and math.isfinite(value)
    }
    cases = sorted(known, key=lambda case: (known[case], case))
    values = [known[case] for case in cases]
    places = range(len(values))
    axis.bar(places, values, color=BAR_COLOUR, width=0.8 if len(values) <= named else 1.0)
    zeros = [place for place in places if values[place] == 0]  # bars that would not be seen
    axis.plot(zeros, [0.0] * len(zeros), "|", color=INK, markersize=8, clip_on=False)
    dress(axis)
    axis.set_title(shorten(title, 30), fontsize=9, color=INK, loc="left", pad=18 if values else 6)
    axis.set_ylim(0, 1)
    few = max(0, 8 - len(values)) / 2  # so that a few bars do not become walls
    axis.set_xlim(-0.7 - few, len(values) - 0.3 + few)
    if values:
        _lines(axis, fmean(values), median(values))
    if len(values) <= named:
        axis.set_xticks(list(places), [shorten(case, LETTERS) for case in cases])
        axis.tick_params(axis="x", labelrotation=90, labelsize=NAME_PT)
    else:
        axis.set_xlabel(f"{len(values)} cases, worst to best")


def _lines(axis: Axes, mean: float, middle: float) -> None:
    axis.axhline(mean, color=MEAN_COLOUR, linewidth=1.4, label=f"mean {mean:.3f}")
    axis.axhline(
        middle, color=MEDIAN_COLOUR, linewidth=1.4, linestyle=(0, (4, 3)), label=f"median {middle:.3f}"
    )
    axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=7.5, borderpad=0, borderaxespad=0.3,
        handlelength=1.4, columnspacing=0.9, labelcolor=INK,
    )  # fmt: skip
