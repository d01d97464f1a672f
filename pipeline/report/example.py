"""An example of what a model reads and what it gives: three planes of an image, and below them its labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report.canvas import INK
from pipeline.report.overlay import SIDE, Shown, legend, overlay
from pipeline.report.planes import PLANES, Plane, grey, window

GAP, HEAD, LETTERS = 12, 30, 20  # pixels: between pictures, above a row, height of its words


def example(
    image: NDArray[Any], labels: NDArray[Any], spacing_mm: Sequence[float], names: Mapping[int, str]
) -> bytes:
    """Three planes, each where it shows the largest shares of the labels, as input and with outlines.

    Args:
        image: (X, Y, Z) with axes towards the patient's right, front and head (RAS), in any unit.
        labels: label map on the same voxels.
        spacing_mm: edges of a voxel.
        names: value to name of each label, without background.

    Returns:
        A PNG; the planes have one scale, and the patient's right is on the left.
    """
    from PIL import Image, ImageDraw, ImageFont

    black_to_white = np.round(255 * grey(image, *window(image))).astype(np.uint8)
    places = [_most(labels, plane.normal) for plane in PLANES]
    longest_mm = max(size * mm for size, mm in zip(image.shape, spacing_mm, strict=True))
    rows = [
        [
            _picture(plane, black_to_white, shown, index, spacing_mm, SIDE / longest_mm)
            for plane, index in zip(PLANES, places, strict=True)
        ]
        for shown in (np.zeros_like(labels), labels)
    ]
    colours = Image.open(io.BytesIO(legend(names)))
    width = max(sum(picture.width + GAP for picture in rows[0]), colours.width + GAP) + GAP
    below = max(picture.height for picture in rows[0])
    canvas = Image.new("RGB", (width, 2 * (HEAD + below + GAP) + colours.height + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    for number, (pictures, word) in enumerate(zip(rows, ("input", "output"), strict=True)):
        x, y = GAP, number * (HEAD + below + GAP)
        for picture, plane in zip(pictures, PLANES, strict=True):
            draw.text((x, y + 3), f"{word}, {plane.name}", fill=INK, font=font)
            canvas.paste(picture, (x, y + HEAD))
            x += picture.width + GAP
    canvas.paste(colours, (GAP, canvas.height - colours.height - GAP))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _most(labels: NDArray[Any], axis: int) -> int:
    """Plane with the largest sum of the shares of the labels that lie in it; the middle one without labels."""
    others = tuple(other for other in range(3) if other != axis)
    masks = [labels == value for value in np.unique(labels[labels != 0])]
    shares = [mask.sum(axis=others) / mask.sum() for mask in masks]
    return int(np.sum(shares, axis=0).argmax()) if shares else labels.shape[axis] // 2


def _picture(
    plane: Plane, image: NDArray[np.uint8], labels: NDArray[Any], index: int, spacing_mm: Sequence[float], scale: float
) -> Any:  # fmt: skip
    from PIL import Image

    x, y, z = (float(mm) for mm in spacing_mm)
    cut = [slice(None)] * 3
    cut[plane.normal] = slice(index, index + 1)
    shown = Shown(image[tuple(cut)], labels[tuple(cut)], (x, y, z), plane.normal)
    return Image.open(io.BytesIO(overlay(shown, scale))).convert("RGB")
