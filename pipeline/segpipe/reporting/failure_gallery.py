"""The failure gallery: cases in three planes through the place of worst disagreement, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.reporting.case_overlay import PLANES, Plane, outlines
from segpipe.reporting.charts import GREY, INK, PAGE_WIDTH_IN, new_figure, shorten, to_png
from segpipe.reporting.planes import PREDICTION_COLOUR, TRUTH_COLOUR, Panel, grey, labelled_box, window, worst_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TRUTH_WIDTH, PREDICTION_WIDTH = 2.2, 0.9  # points
MARGIN_IN, GAP_IN, HEAD_IN, FOOT_IN = 0.1, 0.1, 0.26, 0.36
HIGHEST_IN = 2.6
# Fills that stay apart from the two outlines and, for most readers with a colour deficiency, from each other.
FILLS = ("#3f8efc", "#ffb000", "#c77dff", "#00c2d1", "#f78fb3", "#ffe66d", "#9ad1ff", "#d9a066")
MOST_NAMES = len(FILLS)
NICE_MM = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class _View:
    """One plane of one case, ready to be drawn."""

    plane: Plane
    image: NDArray[np.float64]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    pixel_mm: tuple[float, float]
    words: str

    @property
    def size_mm(self) -> tuple[float, float]:
        rows, columns = self.image.shape
        return columns * self.pixel_mm[0], rows * self.pixel_mm[1]


@dataclass(frozen=True, eq=False)
class _Row:
    """One case: its name, its views, the values that they show."""

    title: str
    caption: str
    views: list[_View]
    values: set[int]
    labels: Mapping[int, str]

    def scale(self) -> float:
        """Return inches per mm, the same in the three planes."""
        room = PAGE_WIDTH_IN - 2 * MARGIN_IN - GAP_IN * (len(self.views) - 1)
        widths, heights = zip(*(view.size_mm for view in self.views), strict=True)
        return min(room / sum(widths), HIGHEST_IN / max(heights))

    def height_in(self) -> float:
        return max(view.size_mm[1] for view in self.views) * self.scale()


def gallery(panels: Iterable[Panel]) -> bytes:
    """Return a row for each case: axial, coronal and sagittal through the place of worst disagreement.

    The prediction's outline is red and thin, the truth's green and thick; slices are in true proportion, with the
    patient's right on the left, zoomed to what is labelled, with a scale bar. With several labels their areas are
    tinted, and the legend names the tints.

    Args:
        panels: the cases; an iterator may load one after the other, since only slices are kept.

    Returns:
        A PNG.
    """
    rows = [_row(panel) for panel in panels]
    tints = _tints(rows)
    handles = _legend_entries(rows, tints)
    columns = len(handles) if len(handles) <= 5 else 4
    top = sum(HEAD_IN + row.height_in() + FOOT_IN for row in rows)
    legend_in = 0.14 + 0.18 * math.ceil(len(handles) / columns)
    figure = new_figure(PAGE_WIDTH_IN, top + legend_in, arranged=False)
    figure.legend(
        handles=handles,
        loc="upper right",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.6,
        borderaxespad=0.1,
        columnspacing=1.2,
        labelspacing=0.3,
    )
    for row in rows:
        _draw_row(figure, row, top, tints)
        top -= HEAD_IN + row.height_in() + FOOT_IN
    return to_png(figure)


def _row(panel: Panel) -> _Row:
    place = worst_place(panel.truth, panel.prediction, panel.spacing_mm)
    box = labelled_box(panel)
    low, high = window(panel.image[box])
    views = []
    for plane in PLANES:
        index = place[plane.normal] - box[plane.normal].start
        image, truth, prediction = (
            plane.cut(volume[box], index) for volume in (panel.image, panel.truth, panel.prediction)
        )
        words = f"{plane.name} {place[plane.normal] + 1}/{panel.image.shape[plane.normal]}"
        views.append(
            _View(
                plane, grey(image, low, high), truth.copy(), prediction.copy(), plane.pixel_mm(panel.spacing_mm), words
            )
        )
    values = {int(value) for view in views for value in np.union1d(view.truth, view.prediction)} - {0}
    return _Row(panel.case_id, panel.caption, views, values, panel.labels)


def _tints(rows: Sequence[_Row]) -> dict[int, str]:
    """Return a tint for every label that is seen; none where it is one label only, whose outlines say it all."""
    values = sorted({value for row in rows for value in row.values})
    return {value: FILLS[index % len(FILLS)] for index, value in enumerate(values)} if len(values) > 1 else {}


def _legend_entries(rows: Sequence[_Row], tints: Mapping[int, str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {value: name for row in rows for value, name in row.labels.items()}
    handles: list[Any] = [
        Line2D([], [], color=TRUTH_COLOUR, linewidth=TRUTH_WIDTH + 0.6, label="truth"),
        Line2D([], [], color=PREDICTION_COLOUR, linewidth=PREDICTION_WIDTH + 0.3, label="prediction"),
    ]
    handles += [
        Patch(facecolor=tint, alpha=0.6, label=shorten(names.get(value, f"label {value}"), 20))
        for value, tint in list(tints.items())[:MOST_NAMES]
    ]
    if len(tints) > MOST_NAMES:
        handles.append(Patch(alpha=0, label=f"and {len(tints) - MOST_NAMES} more"))
    return handles


def _draw_row(figure: Figure, row: _Row, top_in: float, tints: Mapping[int, str]) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        MARGIN_IN / width,
        (top_in - 0.06) / height,
        shorten(row.title, 40),
        va="top",
        fontsize=9,
        color=INK,
        fontweight="bold",
    )
    figure.text(
        1 - MARGIN_IN / width,
        (top_in - 0.06) / height,
        shorten(row.caption, 44),
        va="top",
        ha="right",
        fontsize=9,
        color=INK,
    )
    scale, left, floor = row.scale(), MARGIN_IN, top_in - HEAD_IN - row.height_in()
    for view in row.views:
        across, up = (side * scale for side in view.size_mm)
        axis = figure.add_axes((left / width, floor / height, across / width, up / height))
        _draw_view(axis, view, tints)
        if view is row.views[0]:
            _scale_bar(axis, view)
        left += across + GAP_IN


def _draw_view(axis: Axes, view: _View, tints: Mapping[int, str]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    across, up = view.size_mm
    extent = (0.0, across, 0.0, up)
    axis.imshow(
        view.image, cmap="gray", vmin=0, vmax=1, origin="lower", extent=extent, interpolation="bicubic", aspect="auto"
    )
    shown = np.where(view.truth != 0, view.truth, view.prediction)  # a tint tells the label, an outline whose it is
    fill = np.zeros((*shown.shape, 4))
    for value, tint in tints.items():
        fill[shown == value] = (*to_rgb(tint), 0.22)
    axis.imshow(fill, origin="lower", extent=extent, interpolation="nearest", aspect="auto")
    for labels, colour, width in (
        (view.truth, TRUTH_COLOUR, TRUTH_WIDTH),
        (view.prediction, PREDICTION_COLOUR, PREDICTION_WIDTH),
    ):
        axis.add_collection(
            LineCollection(list(outlines(labels, view.pixel_mm)), colors=colour, linewidths=width, capstyle="round")
        )
    axis.set(xlim=(0, across), ylim=(0, up), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_xlabel(view.words, fontsize=8, color=GREY, labelpad=3)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    sides = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (x, y), (horizontal, vertical) in zip(view.plane.letters, places, sides, strict=True):
        axis.text(
            x,
            y,
            letter,
            transform=axis.transAxes,
            color="white",
            fontsize=8,
            ha=horizontal,
            va=vertical,
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )


def _scale_bar(axis: Axes, view: _View) -> None:
    """Draw a white bar of a round length in the lower right corner, at most a quarter as long as the slice."""
    from matplotlib.patheffects import withStroke

    across = view.size_mm[0]
    length = max((mm for mm in NICE_MM if mm <= across / 4), default=across / 4)
    right, height = 0.97 * across, axis.get_xaxis_transform()
    edge = [withStroke(linewidth=3.2, foreground="black")]
    axis.plot([right - length, right], [0.04] * 2, transform=height, color="white", linewidth=1.8, path_effects=edge)
    axis.text(
        right,
        0.06,
        f"{length:g} mm",
        transform=height,
        ha="right",
        va="bottom",
        fontsize=7,
        color="white",
        path_effects=[withStroke(linewidth=1.5, foreground="black")],
    )
