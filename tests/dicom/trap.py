"""A series with one fault that a reader may pass over in silence: how it is made, and what has to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from encode import encode
from make import Grid, enhanced, series, write
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

Images = list[Dataset]
PLACES = Grid(rows=12, columns=10, slices=5)


@dataclass(frozen=True)
class Trap:
    """How a folder is made, and what has to come of it.

    Attributes:
        make: writes into a folder.
        reason: of the refusal; None where it loads.
        words: that stand in the detail of the refusal, or in the notes.
        volumes: how many, each with `reason`.
    """

    make: Callable[[Path], object]
    reason: str | None
    words: tuple[str, ...] = ()
    volumes: int = 1


def scan_of(modality: str = "CT", grid: Grid = PLACES, **attributes: Any) -> Images:
    """A series of 12 bits in 16, as CT mostly is."""
    images = series(grid, modality, RescaleIntercept="-1024" if modality == "CT" else "0", **attributes)
    for number, image in enumerate(images):
        values = np.random.default_rng(number).integers(0, 4096, (image.Rows, image.Columns))
        image.PixelData = values.astype("<u2").tobytes()
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, 0
    return images


def edited(edit: Callable[[Images], object], modality: str = "CT", grid: Grid = PLACES) -> Callable[[Path], object]:
    """A series with an edit, not compressed."""

    def make(folder: Path) -> None:
        images = scan_of(modality, grid)
        edit(images)
        write(images, folder)

    return make


def every(**attributes: Any) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        for image in images:
            for name, value in attributes.items():
                setattr(image, name, value)

    return edit


def coded(syntax: str, after: Callable[[Images], object], **before: Any) -> Callable[[Path], object]:
    """A series in a transfer syntax, of which headers or codestreams are edited afterwards."""

    def make(folder: Path) -> None:
        images = scan_of()
        every(**before)(images)
        paths = [encode(image, syntax, folder / f"image_{number:03d}.dcm") for number, image in enumerate(images)]
        again = [pydicom.dcmread(path) for path in paths]
        after(again)
        for path, image in zip(paths, again, strict=True):
            image.save_as(path)

    return make


def frames(edit: Callable[[Dataset], object], compress: bool = False, **options: Any) -> Callable[[Path], object]:
    """One enhanced image of six slices."""

    def make(folder: Path) -> None:
        image = enhanced(**options)
        if compress:
            image.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        edit(image)
        write([image], folder)

    return make
