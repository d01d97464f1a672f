"""Learning curves of one run or of several side by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import UsageError
from segpipe.reporting.charts import (
    INK,
    PAGE_WIDTH_IN,
    SERIES_COLOURS,
    SERIES_STYLES,
    dress,
    new_figure,
    shorten,
    to_png,
    write_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


History = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

MEASURES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mean_dice": "validation Dice"}
FAR_APART = 30  # times, between the last losses of runs: then the axis is logarithmic
LETTERS_IN_A_ROW = 96  # of the legend


def draw_learning_curves(histories: Mapping[str, History], path: Path) -> None:
    """Write the curves as PNG; see `learning_curves`."""
    write_bytes(path, learning_curves(histories))


def learning_curves(histories: Mapping[str, History]) -> bytes:
    """Training loss, validation loss where there is one, and validation Dice over the epochs.

    Args:
        histories: name of a run to the rows of its history.csv, numbers or text; empty cells and what is not finite
            are passed over.

    Returns:
        A PNG. A dot marks the best Dice of each run and the legend tells it. With several runs the axis of Dice
        begins below the lowest of these, so that they are told apart.
    """
    runs = {
        name: {measure: read_points(history, measure) for measure in MEASURES} for name, history in histories.items()
    }
    best = {name: max(run["val_mean_dice"], key=_value) for name, run in runs.items() if run["val_mean_dice"]}
    words = [shorten(name, 48) + (f", best Dice {best[name][1]:.3f}" if name in best else "") for name in runs]
    columns = min(3, max(1, LETTERS_IN_A_ROW // (6 + max(map(len, words), default=1))))
    figure = new_figure(PAGE_WIDTH_IN, 2.5 + 0.19 * math.ceil(len(runs) / columns))
    with_validation = any(run["val_loss"] for run in runs.values())
    shown = [measure for measure in MEASURES if measure != "val_loss" or with_validation]
    axes = dict(zip(shown, figure.subplots(1, len(shown), sharex=True), strict=True))
    for index, (name, run) in enumerate(runs.items()):
        style = {
            "color": SERIES_COLOURS[index % len(SERIES_COLOURS)],
            "linestyle": SERIES_STYLES[index // len(SERIES_COLOURS) % len(SERIES_STYLES)],
        }
        for measure, axis in axes.items():
            _draw(axis, run[measure], words[index], style)
        if name in best:
            axes["val_mean_dice"].plot(
                *best[name], "o", color=style["color"], markersize=4.5, markeredgecolor="white", zorder=3
            )
    for measure, axis in axes.items():
        axis.set(xlabel="epoch", ylabel=MEASURES[measure])
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
    """Rows of a run's history.csv.

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
    """(epoch, value) of the rows that have a number."""
    points = []
    for row in history:
        try:
            epoch, value = float(row["epoch"]), float(row[measure])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            points.append((epoch, value))
    return points


def _value(point: tuple[float, float]) -> float:
    return point[1]


def _draw(axis: Axes, points: Points, words: str, style: Mapping[str, Any]) -> None:
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    marker = "o" if len(points) == 1 else ""  # a line of one point would not be seen
    axis.plot(epochs, values, label=words, linewidth=1.3, marker=marker, markersize=4, **style)


def _scale_losses(axes: Sequence[Axes], training: Sequence[Points]) -> None:
    """The same scale for both losses; logarithmic where it would flatten some of the runs."""
    for axis in axes[1:]:
        axis.sharey(axes[0])
    axes[0].autoscale(axis="y")
    last = [points[-1][1] for points in training if points]
    every = [value for axis in axes for line in axis.get_lines() for value in line.get_ydata()]
    if last and min(every) > 0 and max(last) > FAR_APART * min(last):
        axes[0].set_yscale("log")
