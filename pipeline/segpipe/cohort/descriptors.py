"""What an image looks like from afar, in a few numbers, so that it can be said how unlike two images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.image_names import is_image
from segpipe.common.nifti import read_header, read_voxels
from segpipe.errors import DataError, UsageError

if TYPE_CHECKING:
    from segpipe.dicom import Series

CELLS = 4  # an axis is cut into
SHARES = (5, 25, 50, 75, 95)
SAMPLES = 64  # voxels along an axis that are looked at, at most


def describe(images: Sequence[Path]) -> NDArray[np.float64]:
    """Return the numbers of an image: extent, spread of its values, and mean value in each part of it.

    Values are held against the image's own mean and standard deviation, axes point to the patient's right, front and
    head; of several channels it is the first.

    Args:
        images: a file a channel, or the files of a DICOM series.

    Returns:
        (72,) float64.

    Raises:
        UsageError: it is not there.
        DataError: it cannot be read.
    """
    import nibabel as nib

    values, affine = _first_channel(images)
    turn = nib.orientations.io_orientation(affine)
    edges = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    values = nib.orientations.apply_orientation(values, turn)
    extent = np.log(np.array(values.shape) * edges)
    step = [max(1, size // SAMPLES) for size in values.shape]
    sample = np.nan_to_num(values[:: step[0], :: step[1], :: step[2]].astype(np.float64))
    sample = (sample - sample.mean()) / max(float(sample.std()), 1e-9)
    parts = sample
    for axis in range(3):
        pieces = np.array_split(parts, min(CELLS, parts.shape[axis]), axis=axis)
        parts = np.stack([piece.mean(axis=axis) for piece in pieces], axis=axis)
    cells = np.zeros((CELLS, CELLS, CELLS))
    cells[tuple(slice(size) for size in parts.shape)] = parts
    return np.concatenate([extent, np.percentile(sample, SHARES), cells.ravel()])


def standardised(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return rows in standard deviations of each number, such that extent, values and parts weigh alike."""
    table = np.stack(rows)
    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 1e-9, spread, 1)
    sizes = (3, len(SHARES), CELLS**3)
    return np.asarray(table / np.sqrt(np.repeat(sizes, sizes)))


def distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row (N, F) of the one to each (M, F) of the other, (N, M)."""
    return np.asarray(np.linalg.norm(first[:, None] - second[None], axis=2))


def first_series(images: Sequence[Path]) -> Series:
    """Return the series that the first of DICOM files is of.

    Raises:
        DataError: none can be read.
    """
    from segpipe.dicom import series_as_taken

    found = [series for series in series_as_taken(list(images)) if series.state == "loaded"]
    if not found:
        raise DataError("no series can be read", found="no volume")
    return next((each for each in found if images[0].resolve() in {f.resolve() for f in each.files}), found[0])


def _first_channel(images: Sequence[Path]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if not images or not images[0].is_file():
        raise UsageError("the image is not where it was", expected="the files that mapping.jsonl or the manifest names")
    if is_image(images[0]):
        header = read_header(images[0])
        values = read_voxels(header)
        values = values[..., 0] if values.ndim == 4 else values
        affine = header.affine
    else:
        from segpipe.dicom import load_series

        volume = load_series(first_series(images))
        values, affine = volume.array, volume.affine_ras
    if values.ndim != 3:
        raise DataError("not a volume", found=f"shape {values.shape}")
    return values, affine
