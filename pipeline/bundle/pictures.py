"""The pictures of a model card: the golden case, Dice of every measured case, learning curves. None is of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bundle.golden_case import IMAGES, LABELS
from pipeline.report.bars import dice_bars
from pipeline.report.canvas import write_bytes
from pipeline.report.curves import learning_curves
from pipeline.report.example import example

EXAMPLE, BARS, CURVES = "example.png", "dice.png", "training.png"


def draw_pictures(
    root: Path,
    names: Mapping[int, str],
    dice: Mapping[str, float | None],
    histories: Mapping[str, Sequence[Mapping[str, str]]],
) -> list[str]:
    """Draw what there is into ``docs/`` of a bundle; the same content gives the same bytes.

    Args:
        root: the bundle, with its golden case where it has one.
        names: value to name of each label, without background.
        dice: case id to mean Dice of an evaluation; empty where nothing was measured.
        histories: name of a run to the rows of its history.csv.

    Returns:
        Names of the pictures.

    Raises:
        UsageError: they cannot be written.
    """
    pictures: dict[str, bytes] = {}
    if (root / LABELS).is_file():
        pictures[EXAMPLE] = _golden(root, names)
    if any(value is not None for value in dice.values()):
        pictures[BARS] = dice_bars({"Dice of each measured case": dice})
    if any(histories.values()):
        pictures[CURVES] = learning_curves(histories)
    for name, content in pictures.items():
        write_bytes(root / "docs" / name, content)
    return list(pictures)


def _golden(root: Path, names: Mapping[int, str]) -> bytes:
    """The first channel of the golden case, with what the bundle made of it."""
    import numpy as np

    image, spacing_mm = _towards_ras(min((root / IMAGES).glob("*.nii*")))
    labels, _ = _towards_ras(root / LABELS)
    channels = image.reshape(*image.shape[:3], -1)
    return example(channels[..., 0], np.asarray(labels), spacing_mm, names)


def _towards_ras(path: Path) -> tuple[Any, Sequence[float]]:
    """Voxels with axes towards right, front and head, and the edges of a voxel in mm."""
    import nibabel as nib
    import numpy as np

    turned = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined, unused-ignore]
    spacing_mm = nib.affines.voxel_sizes(turned.affine)  # type: ignore[attr-defined, unused-ignore]
    return np.asarray(turned.dataobj), [float(edge) for edge in spacing_mm]
