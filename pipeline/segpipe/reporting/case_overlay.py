"""A small picture of one case: a slice of the image with the outline of each label."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.reporting.planes import PLANES, outlines

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw


RGB = tuple[int, int, int]
SIDE = 300  # pixels of the longer side
FINE = 2  # drawn so many times larger and then reduced, for smooth lines
COLOURS: tuple[RGB, ...] = (  # Okabe & Ito (2008), bright ones first: they stand on grey
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)


@dataclass(frozen=True, eq=False)
class Shown:
    """What is drawn: volumes (X, Y, Z) with one voxel along ``normal`` and axes towards right, front and head (RAS).

    Attributes:
        image: uint8, black to white.
        labels: on the same voxels.
        spacing_mm: edges of a voxel.
        normal: axis that is cut.
        regions: how many bits of ``labels`` are regions that may overlap; 0 where each voxel has one label.
    """

    image: NDArray[np.uint8]
    labels: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    normal: int
    regions: int = 0


def colour_of(value: int) -> RGB:
    """Colour of a label's outline."""
    return COLOURS[(value - 1) % len(COLOURS)]


def overlay(shown: Shown, pixels_a_mm: float | None = None) -> bytes:
    """The slice as PNG in true proportion, the patient's right on the left.

    Args:
        shown: what is drawn.
        pixels_a_mm: scale; None makes the longer side `SIDE` pixels.
    """
    from PIL import Image, ImageDraw

    plane = next(each for each in PLANES if each.normal == shown.normal)
    image, labels = (plane.cut(volume, 0) for volume in (shown.image, shown.labels))
    across, up = plane.pixel_mm(shown.spacing_mm)
    width_mm, height_mm = image.shape[1] * across, image.shape[0] * up
    scale = pixels_a_mm or SIDE / max(width_mm, height_mm)
    size = max(8, round(width_mm * scale)), max(8, round(height_mm * scale))
    large = size[0] * FINE, size[1] * FINE
    picture = Image.fromarray(np.ascontiguousarray(image[::-1])).resize(large, Image.Resampling.BICUBIC)
    canvas = picture.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for value, mask in _masks(labels, shown.regions):
        for line in outlines(mask, (across, up)):
            _draw(draw, line * (scale * FINE), large[1], colour_of(value))
    buffer = io.BytesIO()
    small = canvas.resize(size, Image.Resampling.LANCZOS).quantize(256)  # half of the bytes
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def legend(names: Mapping[int, str]) -> bytes:
    """Which colour is which label, as PNG, four in a row."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(28)
    cell, height = 440, 44
    rows = -(-max(1, len(names)) // 4)
    canvas = Image.new("RGB", (cell * min(4, max(1, len(names))), height * rows), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (value, name) in enumerate(sorted(names.items())):
        x, y = cell * (index % 4), height * (index // 4)
        draw.line([(x + 4, y + 22), (x + 48, y + 22)], fill=colour_of(value), width=8)
        text = name if len(name) <= 24 else f"{name[:23]}…"
        draw.text((x + 60, y + 4), text, fill="#1d2733", font=font)
    buffer = io.BytesIO()
    canvas.resize((canvas.width // 2, canvas.height // 2), Image.Resampling.LANCZOS).save(buffer, format="PNG")
    return buffer.getvalue()


def _masks(labels: NDArray[Any], regions: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each label that is there, and where."""
    values = range(1, regions + 1) if regions else np.unique(labels[labels != 0]).tolist()
    for value in values:
        mask = labels >> (value - 1) & 1 if regions else labels == value
        if mask.any():
            yield value, np.asarray(mask, np.uint8)


def _draw(draw: ImageDraw, line: NDArray[np.float64], height: int, colour: RGB) -> None:
    """A closed line; rows count from the top in a picture, from the bottom in the plane."""
    points = [(float(x), height - float(y)) for x, y in line]
    draw.line(points, fill=colour, width=3 * FINE, joint="curve")
