"""The pictures of a model card, and which figures it shows. None of these is of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.bundle.golden import IMAGES, LABELS
from segpipe.common.files import write_bytes
from segpipe.reporting import dice_bars, example_figure, learning_curves

METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
OVERALL = "mean of labels"
EXAMPLE, BARS, CURVES = "example.png", "dice.png", "training.png"


def draw_pictures(
    root: Path,
    names: Mapping[int, str],
    dice: Mapping[str, float | None],
    histories: Mapping[str, Sequence[Mapping[str, str]]],
) -> list[str]:
    """Draw the golden case, Dice of every measured case, and learning curves into ``docs/`` of a bundle.

    The same content gives the same bytes.

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
        pictures[EXAMPLE] = _draw_golden(root, names)
    if any(value is not None for value in dice.values()):
        pictures[BARS] = dice_bars({"Dice of each measured case": dice})
    if any(histories.values()):
        pictures[CURVES] = learning_curves(histories)
    for name, content in pictures.items():
        write_bytes(root / "docs" / name, content)
    return list(pictures)


def _draw_golden(root: Path, names: Mapping[int, str]) -> bytes:
    """Draw the first channel of the golden case, with what the bundle made of it."""
    import numpy as np

    image, spacing_mm = _read_towards_ras(min((root / IMAGES).glob("*.nii*")))
    labels, _ = _read_towards_ras(root / LABELS)
    channels = image.reshape(*image.shape[:3], -1)
    regions = labels.shape[3] if labels.ndim == 4 else 0
    if regions:
        labels = (labels.astype(np.uint16) << np.arange(regions, dtype=np.uint16)).sum(-1, dtype=np.uint16)
    return example_figure(channels[..., 0], np.asarray(labels), spacing_mm, names, regions=regions)


def _read_towards_ras(path: Path) -> tuple[Any, Sequence[float]]:
    """Read voxels with axes towards right, front and head, and the edges of a voxel in mm."""
    import nibabel as nib
    import numpy as np

    turned = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined, unused-ignore]
    spacing_mm = nib.affines.voxel_sizes(turned.affine)  # type: ignore[attr-defined, unused-ignore]
    return np.asarray(turned.dataobj), [float(edge) for edge in spacing_mm]
