"""Reading pictures back: pixels, colours, and where a panel lies on a page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from segpipe.reporting.planes import Panel


def pixels(content: bytes | Path) -> np.ndarray:
    """(rows, columns, 3) uint8, rows from the top."""
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    return np.asarray(Image.open(source).convert("RGB"))


def near(picture: np.ndarray, colour: str, tolerance: int = 30) -> np.ndarray:
    """Pixels of about a colour."""
    return np.abs(picture.astype(int) - ImageColor.getrgb(colour)).max(axis=-1) <= tolerance


def rim(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that touch its outside."""
    return mask & ~ndimage.binary_erosion(mask)


def farthest(marked: np.ndarray, border: np.ndarray) -> float:
    """Largest distance of a marked pixel from the border, in pixels."""
    return float(ndimage.distance_transform_edt(~border)[marked].max())


def panel(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, float, float] = (1, 1, 1), **more: object
) -> Panel:
    """A case on a black image."""
    image = np.zeros(truth.shape, np.float32)
    return Panel("case_1", "Dice 0.123", image, truth, prediction, spacing_mm, **more)


def block(shape: tuple[int, int, int], x: slice, y: slice, z: slice, value: int = 1) -> np.ndarray:
    """A label map with one box."""
    labels = np.zeros(shape, np.uint8)
    labels[x, y, z] = value
    return labels
