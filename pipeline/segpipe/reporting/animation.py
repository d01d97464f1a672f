"""A scan as an animated GIF: its axial slices from the feet to the head, with the outlines."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from segpipe.reporting.case_overlay import AXIAL, outlines
from segpipe.reporting.charts import shorten
from segpipe.reporting.planes import PREDICTION_COLOUR, TRUTH_COLOUR, Panel, grey, window

GREYS = 32  # few levels make a small file; the eye sees no more on a moving slice
TRUTH, PREDICTION = GREYS, GREYS + 1  # places in the palette
TRUTH_WIDTH, PREDICTION_WIDTH = 4, 2  # pixels
STRIP = 22  # height of the lines of text above and below
LEAST_WIDTH = 260  # so that the text fits
MOST_FRAMES = 150
SECONDS, SHORTEST_MS, LONGEST_MS = 8.0, 60, 300


def gif(panel: Panel, max_width_px: int = 320) -> bytes:
    """Return an animation: a frame an axial slice (of more than 150 every second, third, ...), red and green outlines.

    Args:
        panel: the case.
        max_width_px: of the slice's longer side; small scans are enlarged to it.

    Returns:
        A GIF that repeats for ever; equal panels give equal bytes.
    """
    slices = panel.image.shape[2]
    indices = range(0, slices, math.ceil(slices / MOST_FRAMES))
    low, high = window(panel.image)
    frames = [_frame(panel, index, low, high, max_width_px) for index in indices]
    duration = min(LONGEST_MS, max(SHORTEST_MS, round(SECONDS * 100 / len(frames)) * 10))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=False)
    return buffer.getvalue()


def _frame(panel: Panel, index: int, low: float, high: float, max_width_px: int) -> Image.Image:
    image, truth, prediction = (AXIAL.cut(volume, index) for volume in (panel.image, panel.truth, panel.prediction))
    pixel_mm = AXIAL.pixel_mm(panel.spacing_mm)
    rows, columns = image.shape
    scale = max_width_px / max(columns * pixel_mm[0], rows * pixel_mm[1])  # pixels per mm
    width, height = (max(1, round(n * mm * scale)) for n, mm in zip((columns, rows), pixel_mm, strict=True))
    brightness = Image.fromarray((grey(image, low, high)[::-1] * 255).round().astype(np.uint8))
    whole = Image.new("L", (max(width, LEAST_WIDTH), height + 2 * STRIP))
    left = (whole.width - width) // 2
    whole.paste(brightness.resize((width, height), Image.Resampling.BICUBIC), (left, STRIP))
    _write_words(ImageDraw.Draw(whole), whole.size, panel, index)

    levels = (np.asarray(whole, dtype=np.float64) * (GREYS - 1) / 255).round().astype(np.uint8)
    frame = Image.frombytes("P", whole.size, levels.tobytes())
    frame.putpalette(_palette())
    pen = ImageDraw.Draw(frame)
    for labels, place, thickness in ((truth, TRUTH, TRUTH_WIDTH), (prediction, PREDICTION, PREDICTION_WIDTH)):
        for line in outlines(labels, pixel_mm):
            x, y = line[:, 0] * scale + left, STRIP + height - line[:, 1] * scale
            pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=place, width=thickness, joint="curve")
    _write_key(pen, whole.size)
    return frame


def _palette() -> list[int]:
    greys = [round(level * 255 / (GREYS - 1)) for level in range(GREYS) for _ in range(3)]
    return [*greys, *ImageColor.getrgb(TRUTH_COLOUR), *ImageColor.getrgb(PREDICTION_COLOUR)]


def _write_words(pen: ImageDraw.ImageDraw, size: tuple[int, int], panel: Panel, index: int) -> None:
    """Write name and slice above, words of the key below, letters of the patient's sides on the slice."""
    width, height = size
    number = f"{index + 1}/{panel.image.shape[2]}"
    font: Any = ImageFont.load_default(12)
    title = f"{panel.case_id}  {panel.caption}".strip()
    letters = int((width - 70) / 6.5)
    pen.text((6, STRIP / 2), shorten(title, letters), fill=255, font=font, anchor="lm")
    pen.text((width - 6, STRIP / 2), number, fill=255, font=font, anchor="rm")
    pen.text((32, height - STRIP / 2), "truth", fill=255, font=font, anchor="lm")
    pen.text((112, height - STRIP / 2), "prediction", fill=255, font=font, anchor="lm")
    middle = height // 2
    places = ((4, middle, "lm"), (width - 4, middle, "rm"), (width // 2, height - STRIP - 3, "mb"))
    for letter, (x, y, anchor) in zip(AXIAL.letters, (*places, (width // 2, STRIP + 3, "mt")), strict=True):
        pen.text((x, y), letter, fill=255, font=font, anchor=anchor, stroke_width=1, stroke_fill=0)


def _write_key(pen: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    y = size[1] - STRIP // 2
    pen.line([(6, y), (26, y)], fill=TRUTH, width=TRUTH_WIDTH)
    pen.line([(86, y), (106, y)], fill=PREDICTION, width=PREDICTION_WIDTH)
