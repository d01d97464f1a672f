"""The channels of a case over each other: at the borders of a checkerboard is seen what lies elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_bytes
from segpipe.common.nifti import read_header, read_volume
from segpipe.reporting.case_overlay import GAP, HEAD, LETTERS, PLANES, SIDE, plane_of_most, plane_picture
from segpipe.reporting.charts import INK
from segpipe.reporting.planes import grey, window

FIELD_MM = 25.0  # edge of a field of the checkerboard


def draw_channels(images: Sequence[Path], label: Path | None, names: Sequence[str], target: Path) -> None:
    """Draw a case: each channel in three planes, and the first with each other one as a checkerboard.

    Args:
        images: NIfTI files on one grid, one a channel, or one 4D file.
        label: whose outlines are drawn, where the planes show most of it; None draws the middle.
        names: of the channels.
        target: PNG, written whole or not at all.

    Raises:
        DataError: a file that cannot be read.
        UsageError: the picture cannot be written.
    """
    import nibabel as nib

    header = read_header(images[0])
    turn = nib.orientations.io_orientation(header.affine)
    volumes = [read_volume(read_header(path)) for path in images]
    channels = list(np.moveaxis(volumes[0], 3, 0)) if volumes[0].ndim == 4 else volumes
    labels = np.zeros(header.shape[:3], np.uint8) if label is None else read_volume(read_header(label)).astype(np.uint8)
    spacing = [header.spacing_mm[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3)]
    turned = [nib.orientations.apply_orientation(each, turn) for each in [*channels, labels]]
    write_bytes(target, channel_figure(turned[:-1], turned[-1], spacing, names))


def channel_figure(
    channels: Sequence[NDArray[Any]], labels: NDArray[np.uint8], spacing_mm: Sequence[float], names: Sequence[str]
) -> bytes:
    """Return the picture as PNG, the patient's right on the left, all planes in one scale.

    Args:
        channels: (X, Y, Z) each, with axes towards the patient's right, front and head (RAS), in any unit.
        labels: label map on the same voxels; 0 where there is none.
        spacing_mm: edges of a voxel.
        names: of the channels.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = [np.round(255 * grey(channel, *window(channel))).astype(np.uint8) for channel in channels]
    fields = checkerboard(shown[0].shape, spacing_mm)
    rows = [(name, image, labels) for name, image in zip(names, shown, strict=True)]
    rows += [
        (f"{names[0]} | {name}", np.where(fields, shown[0], image), np.zeros_like(labels))
        for name, image in zip(names[1:], shown[1:], strict=True)
    ]
    scale = SIDE / max(size * mm for size, mm in zip(shown[0].shape, spacing_mm, strict=True))
    places = [plane_of_most(labels, plane.normal) for plane in PLANES]
    pictures = [
        [
            plane_picture(plane, image, outlined, place, spacing_mm, scale)
            for plane, place in zip(PLANES, places, strict=True)
        ]
        for _, image, outlined in rows
    ]
    below = max(picture.height for picture in pictures[0])
    width = sum(picture.width + GAP for picture in pictures[0]) + GAP
    canvas = Image.new("RGB", (width, len(rows) * (HEAD + below + GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    for number, ((name, _, _), row) in enumerate(zip(rows, pictures, strict=True)):
        x, y = GAP, number * (HEAD + below + GAP)
        draw.text((x, y + 3), name, fill=INK, font=font)
        for picture in row:
            canvas.paste(picture, (x, y + HEAD))
            x += picture.width + GAP
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def checkerboard(shape: Sequence[int], spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """Return the fields of a checkerboard in space, (X, Y, Z), whose edges are about `FIELD_MM`."""
    counts = [(np.arange(size) * mm // FIELD_MM).astype(int) for size, mm in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.ix_(*counts)
    return np.asarray((x + y + z) % 2 == 0)
