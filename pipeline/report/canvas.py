"""What all figures share: paper, ink, the two colours that carry meaning, and how a figure becomes a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import write_whole

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
    """An empty figure on white; ``arranged`` lets matplotlib find the margins."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no state shared between figures

    figure = Figure(
        figsize=(width_in, height_in), dpi=DPI, layout="constrained" if arranged else None, facecolor="white"
    )
    if arranged:
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg, unused-ignore]
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a picture, whole or not at all."""
    with write_whole(path) as stream:
        stream.write(content)


def dress(axis: Axes, grid: str = "y") -> None:
    """Two spines, faint lines behind the data, quiet numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.grid(axis=grid, color=FAINT, linewidth=0.7)  # type: ignore[arg-type, unused-ignore]
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelcolor=INK, labelsize=8, width=0.7)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9, color=INK)


def shorten(text: str, most: int) -> str:
    """At most so many letters; what is cut is cut from the middle, since ids differ at their ends."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
