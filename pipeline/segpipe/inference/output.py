"""A label map on disk and in numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.nifti import FORMS_TOLERANCE_MM, GEOMETRY_TOLERANCE_MM, Header, corners_apart_mm, write_nifti
from segpipe.errors import DataError


def write_labels(path: str | Path, labels: NDArray[np.uint8], grid: Header, regions: int = 0) -> None:
    """Write a label map (X, Y, Z) on the grid of its source, with a header that carries nothing else of it.

    Where bits of a voxel say to which of so many ``regions`` it belongs, the image is (X, Y, Z, regions) with a
    mask for each, as stock MONAI saves several channels.

    Sform and qform say what the source's say, so that every reader finds the two on one grid, whichever form it
    takes. Where the source has one of them, the other is made from it, if a rotation and voxel sizes can say it.
    Where it has none, there is none.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    if not regions:
        write_nifti(_image(labels, grid, np.uint8), path)
        return
    with filled_file(path, (*labels.shape, regions), grid, np.uint8) as masks:
        for region in range(regions):
            np.bitwise_and(labels >> region, 1, out=masks[..., region])


@contextmanager
def filled_file(
    path: str | Path, shape: tuple[int, ...], grid: Header, dtype: type[np.generic] = np.float32
) -> Iterator[NDArray[Any]]:
    """An array (X, Y, Z) or (X, Y, Z, C) of zeros to fill; at the end of the block it is written as an image.

    It lies in a file beside the image meanwhile, not in memory.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    beside = Path(path).with_name(f".{Path(path).name}.raw")
    try:
        with beside.open("wb") as stream:
            size = np.dtype(dtype).itemsize * math.prod(shape)
            os.posix_fallocate(stream.fileno(), 0, size)  # a full disk is found now, as an error
        values = np.memmap(beside, dtype, "r+", shape=shape, order="F")
        yield values
        write_nifti(_image(values, grid, dtype), path)
    finally:
        beside.unlink(missing_ok=True)


def _image(values: NDArray[Any], grid: Header, dtype: type[np.generic]) -> Any:
    import nibabel as nib

    code = grid.sform_code or grid.qform_code
    image = nib.Nifti1Image(values, grid.affine, dtype=dtype)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=code)
    image.set_qform(grid.qform if grid.qform_code else grid.affine, code=grid.qform_code or code)
    if not grid.qform_code and grid_moved(image.get_qform(), grid):  # a shear, which a qform cannot say
        image.set_qform(None, code=0)
    return image


def as_labels(prediction: Any, grid: Header, regions: int = 0) -> NDArray[np.uint8]:
    """The label map (X, Y, Z) that MONAI's transforms give as a tensor (1, X, Y, Z).

    With ``regions`` the tensor has a mask for each (regions, X, Y, Z), and bits of a voxel say in which it lies.

    Raises:
        DataError: it is no label map on the image's grid.
    """
    values = np.asarray(prediction.cpu())
    expected = (regions or 1, *grid.shape[:3])
    if values.shape != expected:
        raise DataError(
            "the bundle does not give one label map on the image's grid",
            found=f"shape {values.shape}",
            expected=f"shape {expected}",
            hint="its post-processing must end in argmax and inversion",
        )
    affine = getattr(prediction, "affine", None)
    apart = 0.0 if affine is None else corners_apart_mm(np.asarray(affine), grid.affine, grid.shape)
    if not apart <= FORMS_TOLERANCE_MM:
        raise DataError(
            "the bundle's label map does not lie on the image's grid",
            found=f"corners {apart:.3g} mm apart",
            hint="its post-processing must undo what its preprocessing did, by Invertd",
        )
    labels = values[0].astype(np.uint8)
    if not np.array_equal(labels, values[0]) or (regions and values.max() > 1):
        raise DataError("the bundle does not give whole label values from 0 to 255, or masks of 0 and 1")
    for region, mask in enumerate(values[1:], 1):
        labels |= (mask > 0).astype(np.uint8) << region
    return labels


def grid_moved(affine: NDArray[np.float64], grid: Header) -> bool:
    """Whether an affine places a corner of the grid elsewhere, by more than the tolerance of geometry."""
    return not corners_apart_mm(affine, grid.affine, grid.shape) <= GEOMETRY_TOLERANCE_MM


def describe(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], names: Mapping[int, str], regions: int = 0
) -> dict[str, Any]:
    """Volumes and flags of a label map.

    Args:
        labels: (X, Y, Z).
        affine: (4, 4), voxel index to mm; its determinant is a voxel's volume.
        names: label value to name; 0 is background and is not listed.
        regions: how many of the bits of ``labels`` are regions that may overlap, the first one label 1.

    Returns:
        ``voxels`` and ``volumes_ml`` by label name (0 where a label is absent), and ``flags``: ``empty`` (no label
        at all), ``touches_border`` (names of labels with a voxel on a face of the image, so perhaps cut off).
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    faces = [np.take(labels, index, axis) for axis in range(3) for index in (0, -1)]
    counts = by_label(_counts(labels), regions)
    border = by_label(np.bincount(np.concatenate([face.ravel() for face in faces]), minlength=256), regions)
    known = {value: name for value, name in sorted(names.items()) if value != 0}
    known |= {int(value): f"label {value}" for value in np.flatnonzero(counts) if value and value not in known}
    return {
        "voxels": {name: int(counts[value]) for value, name in known.items()},
        "volumes_ml": {name: round(int(counts[value]) * voxel_ml, 6) for value, name in known.items()},
        "flags": {
            "empty": not counts[1:].any(),
            "touches_border": [name for value, name in known.items() if border[value]],
        },
    }


def by_label(counts: NDArray[np.int64], regions: int) -> NDArray[np.int64]:
    """Voxels of each label: of how often each byte occurs, the bytes whose bit says that a region is there.

    Args:
        counts: (256,).
        regions: how many bits are regions; 0 where a byte is a label.
    """
    if not regions:
        return counts
    labels = np.zeros_like(counts)
    for region in range(regions):
        labels[region + 1] = counts[np.arange(256) >> region & 1 == 1].sum()
    return labels


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each of the 256 values, plane by plane: `numpy.bincount` takes eight bytes a voxel."""
    counts = np.zeros(256, np.int64)
    for plane in np.moveaxis(labels, -1, 0):
        counts += np.bincount(plane.ravel(order="K"), minlength=256)
    return counts
