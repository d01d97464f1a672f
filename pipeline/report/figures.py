"""Figures as PNG bytes. Truth is green, prediction is red, everywhere."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH_COLOUR = "#35e03c"
PREDICTION_COLOUR = "#ff3b30"
# Fills that stay apart from the two outlines and, for most readers with a colour deficiency, from each other.
LABEL_COLOURS = ("#3f8efc", "#ffb000", "#c77dff", "#00c2d1", "#f78fb3", "#ffe66d", "#9ad1ff", "#d9a066")
PANELS_IN_A_ROW = 4
INK, GREY = "#1d2733", "#6b7785"

# Plane: name, axis cut, horizontal and vertical array axes, letters at left, right, bottom and top.
# The patient's right is drawn on the left, as a radiologist sees it.
PLANES = (
    ("axial", 2, 0, 1, "RLPA"),
    ("coronal", 1, 0, 2, "RLIS"),
    ("sagittal", 0, 1, 2, "APIS"),
)


def overlay_figure(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    prediction: NDArray[Any] | None,
    spacing_mm: Sequence[float],
    labels: Mapping[int, str],
    title: str = "",
) -> bytes:
    """Three orthogonal slices with the outlines of truth and prediction.

    Args:
        image: (X, Y, Z), axes towards the patient's right, front and head (RAS).
        truth: (X, Y, Z) label map, or None.
        prediction: (X, Y, Z) label map, or None.
        spacing_mm: voxel size along X, Y, Z; slices are drawn in true proportion.
        labels: value to name, without background.
        title: written above.

    Returns:
        A PNG. Each plane cuts where most of the labels are seen best.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = truth if truth is not None else prediction
    cut = best_slices(shown, labels) if shown is not None else [size // 2 for size in image.shape]
    sides = np.array(image.shape) * np.asarray(spacing_mm)
    widths = [float(sides[across]) for _, _, across, _, _ in PLANES]
    heights = [float(sides[up]) for _, _, _, up, _ in PLANES]
    scale = 3.3 / max(heights)
    figure = _figure(sum(widths) * scale + 0.4, 3.3 + 0.75)
    figure.set_facecolor("#0d1117")
    axes = figure.subplots(1, 3, width_ratios=widths)
    low, high = np.percentile(image, (0.5, 99.5))
    for axis, (name, normal, across, up, letters) in zip(axes, PLANES, strict=True):
        extent = _extent(float(sides[across]), float(sides[up]))

        def plane(volume: NDArray[Any], normal: int = normal) -> NDArray[Any]:
            return np.take(volume, cut[normal], axis=normal).T[:, ::-1]

        axis.imshow(
            plane(image), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", extent=extent,
            interpolation="bicubic",
        )  # fmt: skip
        if shown is not None:
            axis.imshow(_fill(plane(shown), labels), origin="lower", extent=extent, interpolation="nearest")
        for volume, colour, width in ((truth, TRUTH_COLOUR, 1.7), (prediction, PREDICTION_COLOUR, 1.1)):
            if volume is not None:
                _outline(axis, plane(volume), labels, extent, colour, width)
        _dress(axis, f"{name}, slice {cut[normal] + 1} of {image.shape[normal]}", letters)
    handles: list[Any] = [
        Line2D([], [], color=colour, label=name)
        for volume, colour, name in (
            (truth, TRUTH_COLOUR, "truth"),
            (prediction, PREDICTION_COLOUR, "prediction"),
        )
        if volume is not None
    ]
    handles += [Patch(facecolor=_colour(i), alpha=0.7, label=name) for i, name in enumerate(labels.values())]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor="white",
        fontsize=9, handlelength=1.4,
    )  # fmt: skip
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    return _png(figure, dpi=110)


def best_slices(labelmap: NDArray[Any], labels: Mapping[int, str]) -> list[int]:
    """Per axis the slice that shows most of the labels, each measured against its own largest section."""
    best = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        score = np.zeros(labelmap.shape[axis])
        for value in labels:
            area = (labelmap == value).sum(axis=others)
            score += area / max(int(area.max()), 1)
        best.append(int(score.argmax()) if score.any() else labelmap.shape[axis] // 2)
    return best


def learning_curve(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses and validation Dice over the epochs.

    Args:
        history: rows with ``epoch``, ``train_loss`` and, where there was a validation, ``val_loss`` and
            ``val_mean_dice``; numbers or text as read from history.csv.
    """
    figure = _figure(9.0, 3.2)
    left, right = figure.subplots(1, 2)
    for name, colour, text in (("train_loss", "#3f8efc", "training"), ("val_loss", "#f08a24", "validation")):
        points = _points(history, name)
        if points:
            left.plot(*zip(*points, strict=True), color=colour, label=text, linewidth=1.6)
    left.set_ylabel("loss")
    if left.get_lines():
        left.legend(frameon=False, fontsize=9)
    points = _points(history, "val_mean_dice")
    if points:
        right.plot(*zip(*points, strict=True), color="#2a9d5c", linewidth=1.6, marker=".", markersize=5)
        epoch, best = max(points, key=lambda point: point[1])
        right.plot([epoch], [best], "o", color=PREDICTION_COLOUR, markersize=6)
        right.set_title(f"best {best:.3f} in epoch {epoch:g}", fontsize=10, color=INK)
    right.set_ylim(0, 1)
    right.set_ylabel("mean Dice on validation")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        _frame(axis)
    return _png(figure)


def dice_bars(dice: Mapping[str, Mapping[str, float | None]]) -> bytes:
    """Dice per case, a panel for each label (four in a row), with the mean (red) and the median (green) as lines.

    Args:
        dice: label name to case id to Dice; None where it is not defined (not drawn, not averaged).
    """
    columns = max(1, min(len(dice), PANELS_IN_A_ROW))
    rows = max(1, math.ceil(len(dice) / columns))
    figure = _figure(max(4.0, 3.1 * columns), 3.2 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in panels.flat[len(dice) :]:
        axis.set_axis_off()
    for index, (axis, (label, cases)) in enumerate(zip(panels.flat, dice.items(), strict=False)):
        values = [math.nan if value is None else float(value) for value in cases.values()]
        axis.bar(range(len(values)), values, color=_colour(index), alpha=0.75, width=0.72)
        known = [value for value in values if not math.isnan(value)]
        if known:
            mean, median = float(np.mean(known)), float(np.median(known))
            axis.axhline(mean, color="#d62728", linewidth=1.4, label=f"mean {mean:.3f}")
            axis.axhline(median, color="#1b8a3a", linewidth=1.4, linestyle="--", label=f"median {median:.3f}")
            axis.legend(fontsize=8, loc="lower right", framealpha=0.9, edgecolor="none")
        axis.set_title(label, fontsize=10, color=INK)
        axis.set_ylim(0, 1)
        few = len(cases) <= 24
        axis.set_xticks(range(len(cases)) if few else [], list(cases) if few else [], rotation=60, fontsize=7)
        for text in axis.get_xticklabels():
            text.set_ha("right")
            text.set_rotation_mode("anchor")
        _frame(axis)
    for axis in panels[:, 0]:
        axis.set_ylabel("Dice")
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no window system, no state shared between figures

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg, unused-ignore]
    return figure


def _png(figure: Figure, dpi: int = 100) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()


def _colour(index: int) -> str:
    return LABEL_COLOURS[index % len(LABEL_COLOURS)]


def _extent(width: float, height: float) -> tuple[float, float, float, float]:
    return (0.0, width, 0.0, height)


def _fill(plane: NDArray[Any], labels: Mapping[int, str]) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    fill = np.zeros((*plane.shape, 4))
    for index, value in enumerate(labels):
        fill[plane == value] = (*to_rgb(_colour(index)), 0.2)
    return fill


def _outline(
    axis: Axes,
    plane: NDArray[Any],
    labels: Mapping[int, str],
    extent: tuple[float, float, float, float],
    colour: str,
    width: float,
) -> None:
    for value in labels:
        mask = np.pad((plane == value).astype(float), 1)  # so that an outline closes at the picture's edge
        if mask.any():
            rows, columns = plane.shape
            x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
            y = (np.arange(-1, rows + 1) + 0.5) * extent[3] / rows
            axis.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=[width])


def _dress(axis: Axes, title: str, letters: str) -> None:
    axis.set_axis_off()
    axis.set_title(title, color="#aab4c0", fontsize=9)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    sides = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (x, y), (across, up) in zip(letters, places, sides, strict=True):
        axis.text(x, y, letter, transform=axis.transAxes, color="#8ea0b5", fontsize=8, ha=across, va=up)


def _frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e3e7ec", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelsize=8)


def _points(history: Sequence[Mapping[str, Any]], column: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have a number in the column."""
    points = []
    for row in history:
        try:
            epoch, value = float(row["epoch"]), float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            points.append((epoch, value))
    return points
