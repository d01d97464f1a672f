"""Charts of numbers, each a PNG: Dice per case as bars, variants side by side, learning curves.

The mean is red and solid, the median green and dashed, so that they are told apart without colours too.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 150
PAGE_WIDTH_IN = 7.2  # the text width of a two-column paper
INK, GREY, FAINT = "#1d2733", "#5f6b78", "#e3e7ec"
# On white. The mean is solid and the median dashed, for who does not tell red from green.
MEAN_COLOUR, MEDIAN_COLOUR = "#d92020", "#0f8f3c"
BAR_COLOUR = "#9db4cc"
# Okabe & Ito (2008), which most readers with a colour deficiency tell apart; yellow is too faint on white.
SERIES_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#1d2733")
SERIES_STYLES = ("-", "--", "-.", ":")


def new_figure(width_in: float, height_in: float, arranged: bool = True) -> Figure:
    """Return an empty figure on white; ``arranged`` lets matplotlib find the margins."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no state shared between figures

    figure = Figure(
        figsize=(width_in, height_in), dpi=DPI, layout="constrained" if arranged else None, facecolor="white"
    )
    if arranged:
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg, unused-ignore]
    return figure


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def dress(axis: Axes, grid: str = "y") -> None:
    """Give an axis two spines, faint lines behind the data, quiet numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.grid(axis=grid, color=FAINT, linewidth=0.7)  # type: ignore[arg-type, unused-ignore]
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelcolor=INK, labelsize=8, width=0.7)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9, color=INK)


def shorten(text: str, most: int) -> str:
    """Return at most so many letters, cut from the middle, since ids differ at their ends."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


Scores = Mapping[str, float | None]
NAMED = 60  # cases whose names fit below the bars of a panel that is as wide as the page
PANELS_IN_A_ROW = 3
LETTERS = 24
NAME_PT = 7
LEFT_IN, GAP_IN, ABOVE_IN, HEIGHT_IN, WORDS_IN = 0.55, 0.15, 0.5, 1.9, 0.5  # margins and height of a panel


def dice_bars(panels: Mapping[str, Scores]) -> bytes:
    """Return bars sorted from the worst case to the best; a panel for each title, three in a row.

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
        _draw_bars(axis, title, scores, named)
        if column == 0:
            axis.set_ylabel("Dice")
        else:
            axis.tick_params(axis="y", labelleft=False)
    return to_png(figure)


def _below_in(panels: Mapping[str, Scores], named: int) -> float:
    """Return the room below a panel: for the longest name, or for the words in place of names."""
    from matplotlib.textpath import TextPath

    names = {shorten(case, LETTERS) for scores in panels.values() if len(scores) <= named for case in scores}
    lengths = [TextPath((0, 0), name, size=NAME_PT).get_extents().width for name in names]
    names_in = 0.2 + 1.1 * max(lengths, default=0.0) / 72
    return max(names_in, WORDS_IN if any(len(scores) > named for scores in panels.values()) else 0.0)


def _draw_bars(axis: Axes, title: str, scores: Scores, named: int) -> None:
    known = {case: float(value) for case, value in scores.items() if value is not None and math.isfinite(value)}
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
    axis.axhline(middle, color=MEDIAN_COLOUR, linewidth=1.4, linestyle=(0, (4, 3)), label=f"median {middle:.3f}")
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=7.5,
        borderpad=0,
        borderaxespad=0.3,
        handlelength=1.4,
        columnspacing=0.9,
        labelcolor=INK,
    )


Intervals = Mapping[str, tuple[float, float]]


def comparison(scores: Mapping[str, Sequence[float]], intervals: Intervals | None = None) -> bytes:
    """Return a row for each variant: the cases as points over a box of their quartiles, mean red, median green.

    Args:
        scores: variant to the Dice of each case; what is not finite is not drawn and not averaged.
        intervals: variant to the interval of its mean, drawn as a red bar; those who have none stay without.

    Returns:
        A PNG.
    """
    figure = new_figure(PAGE_WIDTH_IN, 0.95 + 0.42 * max(1, len(scores)))
    axis = figure.subplots()
    axis.use_sticky_edges = False
    for row, (name, values) in enumerate(scores.items()):
        known = np.array([value for value in values if value is not None and math.isfinite(value)])
        if known.size:
            _draw_row(axis, row, known, (intervals or {}).get(name))
    axis.set_yticks(range(len(scores)), [shorten(name, 36) for name in scores])
    axis.set_ylim(max(1, len(scores)) - 0.45, -0.55)
    axis.set_xlabel("Dice")
    dress(axis, "x")
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.spines["left"].set_visible(False)
    _legend(axis, bool(intervals))
    return to_png(figure)


def _draw_row(axis: Axes, row: int, values: NDArray[np.float64], interval: tuple[float, float] | None) -> None:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    mean = float(values.mean())
    axis.barh(row, high - low, left=low, height=0.56, color=FAINT, zorder=1)
    axis.plot(values, row + _spread(values), "o", color=BAR_COLOUR, markersize=3.2, markeredgewidth=0, zorder=2)
    axis.plot(
        [middle] * 2, [row - 0.28, row + 0.28], color=MEDIAN_COLOUR, linewidth=1.6, linestyle=(0, (3, 1.2)), zorder=3
    )
    if interval is not None:
        axis.plot(interval, [row] * 2, color=MEAN_COLOUR, linewidth=2.6, alpha=0.55, solid_capstyle="butt", zorder=4)
    axis.plot([mean] * 2, [row - 0.34, row + 0.34], color=MEAN_COLOUR, linewidth=1.8, zorder=5)
    axis.text(
        1.01, row, f"{mean:.3f}", transform=axis.get_yaxis_transform(), va="center", fontsize=9, color=MEAN_COLOUR
    )


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return offsets within a row so that near points do not lie on each other; the same for the same values."""
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
        interval = Line2D([], [], color=MEAN_COLOUR, linewidth=2.6, alpha=0.55, label="95 % interval of the mean")
        handles.insert(1, interval)
    axis.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.2,
        labelcolor=INK,
        edgecolor=GREY,
    )


History = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mean_dice": "validation Dice"}
FAR_APART = 30  # times, between the last losses of runs: then the axis is logarithmic
LETTERS_IN_A_ROW = 96  # of the legend


def learning_curves(histories: Mapping[str, History]) -> bytes:
    """Return training loss, validation loss where there is one, and validation Dice over the epochs.

    Args:
        histories: name of a run to the rows of its history.csv, numbers or text; empty cells and what is not finite
            are passed over.

    Returns:
        A PNG. A dot marks the best Dice of each run and the legend tells it. With several runs the axis of Dice
        begins below the lowest of these, so that they are told apart.
    """
    runs = {name: {measure: read_points(history, measure) for measure in CURVES} for name, history in histories.items()}
    best = {
        name: max(run["val_mean_dice"], key=lambda point: point[1])
        for name, run in runs.items()
        if run["val_mean_dice"]
    }
    words = [shorten(name, 48) + (f", best Dice {best[name][1]:.3f}" if name in best else "") for name in runs]
    columns = min(3, max(1, LETTERS_IN_A_ROW // (6 + max(map(len, words), default=1))))
    figure = new_figure(PAGE_WIDTH_IN, 2.5 + 0.19 * math.ceil(len(runs) / columns))
    with_validation = any(run["val_loss"] for run in runs.values())
    shown = [measure for measure in CURVES if measure != "val_loss" or with_validation]
    axes = dict(zip(shown, figure.subplots(1, len(shown), sharex=True), strict=True))
    for index, (name, run) in enumerate(runs.items()):
        style = {
            "color": SERIES_COLOURS[index % len(SERIES_COLOURS)],
            "linestyle": SERIES_STYLES[index // len(SERIES_COLOURS) % len(SERIES_STYLES)],
        }
        for measure, axis in axes.items():
            _draw_curve(axis, run[measure], words[index], style)
        if name in best:
            axes["val_mean_dice"].plot(
                *best[name], "o", color=style["color"], markersize=4.5, markeredgecolor="white", zorder=3
            )
    for measure, axis in axes.items():
        axis.set(xlabel="epoch", ylabel=CURVES[measure])
        dress(axis)
        axis.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    _scale_losses([axes[measure] for measure in shown[:-1]], [run["train_loss"] for run in runs.values()])
    lowest = min(value for _, value in best.values()) if len(best) > 1 else 0.0
    axes["val_mean_dice"].set_ylim(max(0.0, math.floor(lowest * 10 - 3) / 10), 1)
    if runs:
        handles, names = axes["train_loss"].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
        )
    return to_png(figure)


def read_history(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's history.csv.

    Raises:
        UsageError: there is none.
    """
    path = run / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise UsageError(
            "the run has no history", path=path, found=error.strerror, hint="name the folder that `segpipe train` wrote"
        ) from error
    if not rows:
        raise UsageError("the run's history is empty", path=path, hint="train at least one epoch")
    return rows


def read_points(history: History, measure: str) -> Points:
    """Return (epoch, value) of the rows that have a number."""
    points = []
    for row in history:
        try:
            epoch, value = float(row["epoch"]), float(row[measure])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            points.append((epoch, value))
    return points


def _draw_curve(axis: Axes, points: Points, words: str, style: Mapping[str, Any]) -> None:
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    marker = "o" if len(points) == 1 else ""  # a line of one point would not be seen
    axis.plot(epochs, values, label=words, linewidth=1.3, marker=marker, markersize=4, **style)


def _scale_losses(axes: Sequence[Axes], training: Sequence[Points]) -> None:
    """Give both losses one scale, logarithmic where it would flatten some of the runs."""
    for axis in axes[1:]:
        axis.sharey(axes[0])
    axes[0].autoscale(axis="y")
    last = [points[-1][1] for points in training if points]
    every = [value for axis in axes for line in axis.get_lines() for value in line.get_ydata()]
    if last and min(every) > 0 and max(last) > FAR_APART * min(last):
        axes[0].set_yscale("log")
