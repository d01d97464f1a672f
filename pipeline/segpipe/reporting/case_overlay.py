"""Labels drawn over a scan: the slice that stands beside a case, and three planes as an example of a model's output."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.common.files import write_bytes
from segpipe.common.nifti import read_header, read_volume
from segpipe.reporting.charts import INK
from segpipe.reporting.planes import grey, window

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw


RGB = tuple[int, int, int]
SIDE = 300  # pixels of the longer side
FINE = 2  # drawn so many times larger and then reduced, for smooth lines
GAP, HEAD, LETTERS = 12, 30, 20  # pixels: between pictures, above a row, height of its words
SIDE_LETTERS, SIDE_MARGIN = 15, 4  # pixels: height of the letters of the patient's sides, and from the edge
COLOURS: tuple[RGB, ...] = (  # Okabe & Ito (2008), bright ones first: they stand on grey
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)


@dataclass(frozen=True)
class Plane:
    """An orthogonal plane.

    Attributes:
        name: as a radiologist calls it.
        normal: axis of the volume that is cut.
        across, up: axes drawn from right to left, and from bottom to top.
        letters: at the left, right, bottom and top edge.
    """

    name: str
    normal: int
    across: int
    up: int
    letters: str

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """Return a slice as rows from the bottom up, each from left to right."""
        return np.take(volume, index, axis=self.normal).T[:, ::-1]

    def pixel_mm(self, spacing_mm: Sequence[float]) -> tuple[float, float]:
        """Return width and height of a pixel."""
        return float(spacing_mm[self.across]), float(spacing_mm[self.up])


AXIAL = Plane("axial", 2, 0, 1, "RLPA")
PLANES = (AXIAL, Plane("coronal", 1, 0, 2, "RLIS"), Plane("sagittal", 0, 1, 2, "APIS"))


@dataclass(frozen=True, eq=False)
class OverlaySlice:
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


def draw_overlay(source: Path, target: Path) -> None:
    """Draw the slice that a worker left as PNG, and remove what it was drawn from.

    Args:
        source: ``.npz`` with the fields of `OverlaySlice`.
        target: of the picture, written whole or not at all.

    Raises:
        UsageError: the picture cannot be written, or the disk is full.
    """
    with np.load(source) as kept:
        x, y, z = (float(edge) for edge in kept["spacing_mm"])
        shown = OverlaySlice(kept["image"], kept["labels"], (x, y, z), int(kept["normal"]), int(kept["regions"]))
    write_bytes(target, overlay(shown))
    source.unlink()


def overlay(piece: OverlaySlice, pixels_a_mm: float | None = None) -> bytes:
    """Return the slice as PNG in true proportion, the patient's right on the left.

    Args:
        piece: what is drawn.
        pixels_a_mm: scale; None makes the longer side `SIDE` pixels.
    """
    from PIL import Image, ImageDraw

    plane = next(plane for plane in PLANES if plane.normal == piece.normal)
    image, labels = (plane.cut(volume, 0) for volume in (piece.image, piece.labels))
    across, up = plane.pixel_mm(piece.spacing_mm)
    width_mm, height_mm = image.shape[1] * across, image.shape[0] * up
    scale = pixels_a_mm or SIDE / max(width_mm, height_mm)
    size = max(8, round(width_mm * scale)), max(8, round(height_mm * scale))
    large = size[0] * FINE, size[1] * FINE
    picture = Image.fromarray(np.ascontiguousarray(image[::-1])).resize(large, Image.Resampling.BICUBIC)
    canvas = picture.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for value, mask in _masks(labels, piece.regions):
        for line in outlines(mask, (across, up)):
            _draw(draw, line * (scale * FINE), large[1], colour_of(value))
    buffer = io.BytesIO()
    small = canvas.resize(size, Image.Resampling.LANCZOS).quantize(256)  # half of the bytes
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def reduced(picture: bytes, factor: float) -> bytes:
    """Return a PNG of smaller width and height."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        size = max(8, round(image.width * factor)), max(8, round(image.height * factor))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(256)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def outlines(labels: NDArray[Any], pixel_mm: tuple[float, float]) -> Iterator[NDArray[np.float64]]:
    """Yield closed lines around every label of a plane.

    Args:
        labels: rows from the bottom up.
        pixel_mm: width and height of a pixel.

    Yields:
        (N, 2) points in mm from the lower left corner of the plane; lines run along the borders of pixels, also at
        the plane's edge. They cut corners by half of a pixel's shorter side, so that thick slices stay steps.
    """
    from skimage.measure import find_contours

    across, up = (max(1, round(side / min(pixel_mm))) for side in pixel_mm)
    part_mm = np.array(pixel_mm) / (across, up)
    for value, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if box is not None:
            corner_mm = np.array([box[1].start, box[0].start]) * pixel_mm
            mask = (labels[box] == value).repeat(up, axis=0).repeat(across, axis=1)
            for line in find_contours(np.pad(mask, 1).astype(np.float64), 0.5):
                yield corner_mm + (line[:, ::-1] - 0.5) * part_mm


def _masks(labels: NDArray[Any], regions: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each label that is there, and where."""
    values = range(1, regions + 1) if regions else np.unique(labels[labels != 0]).tolist()
    for value in values:
        mask = labels >> (value - 1) & 1 if regions else labels == value
        if mask.any():
            yield value, np.asarray(mask, np.uint8)


def _draw(draw: ImageDraw, line: NDArray[np.float64], height: int, colour: RGB) -> None:
    """Draw a closed line; rows count from the top in a picture, from the bottom in the plane."""
    points = [(float(x), height - float(y)) for x, y in line]
    draw.line(points, fill=colour, width=3 * FINE, joint="curve")


def colour_of(value: int) -> RGB:
    """Return the colour of a label's outline."""
    return COLOURS[(value - 1) % len(COLOURS)]


def legend(names: Mapping[int, str]) -> bytes:
    """Return which colour is which label, as PNG, four in a row."""
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


def example_figure(
    image: NDArray[Any],
    labels: NDArray[Any],
    spacing_mm: Sequence[float],
    names: Mapping[int, str],
    words: tuple[str, str] = ("input", "output"),
    regions: int = 0,
) -> bytes:
    """Return three planes, each where it shows the largest shares of the labels, as input and with outlines.

    Args:
        image: (X, Y, Z) with axes towards the patient's right, front and head (RAS), in any unit.
        labels: label map on the same voxels.
        spacing_mm: edges of a voxel.
        names: value to name of each label, without background.
        words: what the planes without and with outlines are called.
        regions: how many bits of ``labels`` are regions that may overlap; 0 where each voxel has one label.

    Returns:
        A PNG; the planes have one scale, and the patient's right is on the left.
    """
    from PIL import Image, ImageDraw, ImageFont

    black_to_white = np.round(255 * grey(image, *window(image))).astype(np.uint8)
    places = [plane_of_most(labels, plane.normal, regions) for plane in PLANES]
    longest_mm = max(size * mm for size, mm in zip(image.shape, spacing_mm, strict=True))
    rows = [
        [
            plane_picture(plane, black_to_white, shown, index, spacing_mm, SIDE / longest_mm, regions)
            for plane, index in zip(PLANES, places, strict=True)
        ]
        for shown in (np.zeros_like(labels), labels)
    ]
    colours = Image.open(io.BytesIO(legend(names)))
    width = max(sum(picture.width + GAP for picture in rows[0]), colours.width + GAP) + GAP
    below = max(picture.height for picture in rows[0])
    canvas = Image.new("RGB", (width, 2 * (HEAD + below + GAP) + colours.height + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    for number, (pictures, word) in enumerate(zip(rows, words, strict=True)):
        x, y = GAP, number * (HEAD + below + GAP)
        for picture, plane in zip(pictures, PLANES, strict=True):
            draw.text((x, y + 3), f"{word}, {plane.name}", fill=INK, font=font)
            canvas.paste(picture, (x, y + HEAD))
            x += picture.width + GAP
    canvas.paste(colours, (GAP, canvas.height - colours.height - GAP))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def labelled_figure(image: Path, labels: Path, names: Mapping[int, str]) -> bytes:
    """Return the same of an image and its label map in NIfTI files on one grid, of the first channel of several.

    Raises:
        DataError: one of them cannot be read.
    """
    import nibabel as nib

    header = read_header(labels)
    turn = nib.orientations.io_orientation(header.affine)
    volume, label_map = read_volume(read_header(image)), read_volume(header)
    volume = volume[..., 0] if volume.ndim == 4 else volume
    shown, outlined = (nib.orientations.apply_orientation(each, turn) for each in (volume, label_map))
    spacing = [header.spacing_mm[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3)]
    return example_figure(shown, outlined.astype(np.uint8), spacing, names, ("image", "label map"))


def plane_of_most(labels: NDArray[Any], axis: int, regions: int = 0) -> int:
    """Return the plane with the largest sum of the shares of the labels in it; the middle one without labels."""
    across = tuple({0, 1, 2} - {axis})
    masks = [mask for _, mask in _masks(labels, regions)]
    shares = [mask.sum(axis=across) / mask.sum() for mask in masks]
    return int(np.sum(shares, axis=0).argmax()) if shares else labels.shape[axis] // 2


def plane_picture(
    plane: Plane,
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    index: int,
    spacing_mm: Sequence[float],
    scale: float,
    regions: int = 0,
) -> Any:
    """Return a plane of a volume as an RGB picture, with the patient's sides at its edges.

    Args:
        plane: which axis is cut; its ``letters`` stand at the left, right, bottom and top edge, white with a dark
            stroke, so that they are read on any tissue.
        image: (X, Y, Z) from black to white, with axes towards the patient's right, front and head (RAS).
        labels: label map on the same voxels, whose outlines are drawn.
        index: of the slice along the plane's normal.
        spacing_mm: edges of a voxel.
        scale: pixels a mm.
        regions: as of `example_figure`.
    """
    from PIL import Image

    x, y, z = (float(mm) for mm in spacing_mm)
    cut = [slice(None)] * 3
    cut[plane.normal] = slice(index, index + 1)
    shown = OverlaySlice(image[tuple(cut)], labels[tuple(cut)], (x, y, z), plane.normal, regions)
    picture = Image.open(io.BytesIO(overlay(shown, scale))).convert("RGB")
    _draw_sides(picture, plane.letters)
    return picture


def _draw_sides(picture: Any, letters: str) -> None:
    """Write the patient's sides at the middles of the left, right, bottom and top edge, smaller in small pictures."""
    from PIL import ImageDraw, ImageFont

    height = min(SIDE_LETTERS, min(picture.size) // 3)
    right, bottom = picture.width - SIDE_MARGIN, picture.height - SIDE_MARGIN
    middle, half_way = picture.width / 2, picture.height / 2
    edges = (
        (SIDE_MARGIN, half_way, "lm"),
        (right, half_way, "rm"),
        (middle, bottom, "mb"),
        (middle, SIDE_MARGIN, "mt"),
    )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(height, 5))
    for letter, (x, y, anchor) in zip(letters, edges, strict=True):
        draw.text((x, y), letter, fill="white", stroke_width=2, stroke_fill=INK, font=font, anchor=anchor)
