"""A small tree in the layout of the Kaggle LGG data set, for tests; nobody was scanned for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name


def write_image(path: Path, pixels: np.ndarray) -> None:
    """One TIFF or PNG; the last of three axes is the channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))


def write_lgg(root: Path, patients: int = 4, slices: int = 12, shape: tuple[int, int] = (32, 40)) -> Path:
    """Write patients whose first slice has number 2: three channels, and a bright disc that the masks outline."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for patient in range(patients):
        rng = np.random.default_rng(patient)
        case = f"TCGA_CS_49{patient:02}_200001{patient + 1:02}"
        for number in range(2, slices + 2):
            radius = 7 - abs(number - 2 - slices // 2) + patient % 2
            disc = (rows - 14) ** 2 + (columns - 18 - patient) ** 2 < max(radius, 0) ** 2
            pixels = rng.integers(20, 60, (*shape, 3)) + 90 * disc[..., None] * np.array([0.3, 1, 0.6])
            write_image(root / case / f"{case}_{number}.tif", pixels.astype(np.uint8))
            write_image(root / case / f"{case}_{number}_mask.tif", (255 * disc).astype(np.uint8))
    return root
