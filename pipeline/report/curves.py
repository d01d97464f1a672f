"""Learning curves of one run or of several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.canvas import (
    PAGE_WIDTH_IN,
    SERIES_COLOURS,
    SERIES_STYLES,
    dress,
    new_figure,
    shorten,
    to_png,
    write_bytes,
)

History = Sequence[Mapping[str, Any]]
MEASURES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mean_dice": "validation Dice"}
FAR_APART = 30  # times, between the losses of runs: then the axis is logarithmic


def draw_learning_curves(histories: Mapping[str, History], path: Path) -> None:
    """Write the curves as PNG; see `learning_curves`."""
    write_bytes(path, learning_curves(histories))


def learning_curves(histories: Mapping[str, History]) -> bytes:
    """Training loss, validation loss where there is one, and validation Dice over the epochs.

    Args:
        histories: name of a run to the rows of its history.csv, numbers or text; empty cells and what is not finite
            are passed over.

    Returns:
        A PNG. The legend tells each run's best Dice; a dot marks where it was reached.
    """
    points = {
        name: {measure: _points(history, measure) for measure in MEASURES}
        for name, history in histories.items()
    }
    shown = [
        measure
        for measure in MEASURES
        if measure != "val_loss" or any(run[measure] for run in points.values())
    ]
    legend_in = 0.2 * math.ceil(len(points) / 2) + 0.1
    figure = new_figure(PAGE_WIDTH_IN, 2.5 + legend_in)
    axes = dict(zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True))
    for index, (name, run) in enumerate(points.items()):
        best = max(run["val_mean_dice"], key=lambda point: point[1], default=None)
        words = shorten(name, 40) + ("" if best is None else f" (best Dice {best[1]:.3f})")
        style = {
            "color": SERIES_COLOURS[index % len(SERIES_COLOURS)],
            "linestyle": SERIES_STYLES[index // len(SERIES_COLOURS) % len(SERIES_STYLES)],
        }
        for measure, axis in axes.items():
            few = len(run[measure]) < 3
            axis.plot(
                *_columns(run[measure]),
                label=words,
                linewidth=1.3,
                marker="o" if few else "",
                markersize=3,
                **style,
            )
        if best is not None:
            axes["val_mean_dice"].plot(
                *best, "o", color=style["color"], markersize=4.5, markeredgecolor="white"
            )
    for measure, axis in axes.items():
        axis.set(xlabel="epoch", ylabel=MEASURES[measure])
        dress(axis)
        if measure == "val_mean_dice":
            axis.set_ylim(0, 1)
        elif _far_apart([run[measure] for run in points.values()]):
            axis.set_yscale("log")
        _whole_epochs(axis)
    if points:
        handles, names = axes["train_loss"].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return to_png(figure)


def _points(history: History, measure: str) -> list[tuple[float, float]]:
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


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [epoch for epoch, _ in points], [value for _, value in points]


def _far_apart(runs: list[list[tuple[float, float]]]) -> bool:
    """Whether the runs' last losses are of such different size that one axis would flatten some of them."""
    last = [run[-1][1] for run in runs if run]
    every = [value for run in runs for _, value in run]
    return bool(last) and min(every) > 0 and max(last) > FAR_APART * min(last)


def _whole_epochs(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
