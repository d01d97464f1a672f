"""Images that a user of the API holds: paths, arrays, nibabel, SimpleITK and DICOM volumes, each judged like a file.

What is doubtful is refused: an image whose place in mm, or whose values, would have to be guessed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.common.channel_names import masks_in_file
from segpipe.common.files import absolute_path
from segpipe.common.grids import on_grid_of, registered_note
from segpipe.common.image_names import EXPECTED, is_image
from segpipe.common.nifti import (
    Header,
    array_voxels,
    header_of_array,
    header_of_image,
    image_voxels,
    read_header,
    read_voxels,
)
from segpipe.dicom import Volume, read_dicom, volume_in_unit
from segpipe.errors import DataError, UsageError
from segpipe.inference.source import CaseInput, RegisteredFiles, Source, judge_voxels, require_channels

if TYPE_CHECKING:
    import nibabel as nib
    import SimpleITK

    SingleImage: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Volume | nib.Nifti1Image | SimpleITK.Image
    Image: TypeAlias = SingleImage | Sequence[SingleImage]
else:
    Image = Any

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORM_CODES = ("qform_code", "sform_code")  # of a NIfTI file, in the metadata of SimpleITK


def read_images(
    image: Image,
    channels: int,
    affine_ras: ArrayLike | None = None,
    registered: bool = False,
    unit: str | None = None,
    masks: int = 0,
) -> CaseInput:
    """Return what a segmenter takes for an image of any kind that is known.

    Args:
        image: a path (image, or folder or file of one DICOM series), a nibabel or SimpleITK image, a numpy array
            (X, Y, Z) or (X, Y, Z, C), a volume of `segpipe.read_dicom`; or a list of these, one a channel.
        channels: of the bundle.
        affine_ras: (4, 4) of arrays: voxel index to mm, RAS+.
        unit: that a PET is to be in; see `segpipe.dicom.in_unit`.
        registered: the images lie in one space: those on another grid than the first are resampled to it.
        masks: how many of the last channels are masks, which may be constant.

    Raises:
        UsageError: no such file, an image of another kind, or an affine that is missing or belongs to nothing.
        DataError: as `segpipe.common.nifti.read_header`, `source.read_source` and `segpipe.read_dicom`.
    """
    images: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
    arrays = [isinstance(single, np.ndarray) for single in images]
    if any(arrays) and affine_ras is None:
        raise UsageError(
            "an array does not say where it lies",
            expected="affine_ras=, (4, 4): voxel index to mm, RAS+",
            hint="give the affine of the image that the array was taken from",
        )
    if affine_ras is not None and not _is_numbers(affine_ras):
        raise UsageError(
            "affine_ras is not a matrix of numbers",
            found=f"{type(affine_ras).__name__} {str(affine_ras)[:40]}",
            expected="(4, 4): voxel index to mm, RAS+",
        )
    if affine_ras is not None and not all(arrays):
        raise UsageError("affine_ras belongs to a numpy array", found=_kind(images[0]) if images else "no image")
    if images and all(_is_image_path(single) for single in images):
        paths = [os.fspath(single) for single in images]
        return RegisteredFiles(paths) if registered else paths
    if len(images) == 1 and isinstance(images[0], (str, os.PathLike)):
        images = [read_dicom(absolute_path(images[0], "a file of an image, a DICOM folder, or one of its files"))]
    if len(images) == 1 and isinstance(images[0], Volume):
        return _of_volume(volume_in_unit(images[0], unit), channels)
    read = [_read(single, affine_ras) for single in images]
    return _of_channels(_on_one_grid(read) if registered else read, channels, masks)


def _of_volume(volume: Volume, channels: int) -> Source:
    header = header_of_array(volume.array.shape, volume.array.dtype, volume.affine_ras, Path(volume.series.case_id))
    if channels != 1:
        raise DataError("wrong number of channels", found="one series", expected=channels)
    require_channels([header], channels)
    judge_voxels(volume.array, header.path)
    return Source(
        header, np.array(volume.array, order="K")[None], volume.series, modality=volume.modality, notes=volume.notes
    )


def _on_one_grid(images: list[tuple[Header, NDArray[Any]]]) -> list[tuple[Header, NDArray[Any]]]:
    """Return registered images on the grid of the first."""
    first = images[0][0]
    notes = [registered_note(first, header, index) for index, (header, _) in enumerate(images)]
    return [
        (replace(first, path=header.path), on_grid_of(first, header, values)) if note else (header, values)
        for note, (header, values) in zip(notes, images, strict=True)
    ]


def _of_channels(images: list[tuple[Header, NDArray[Any]]], channels: int, masks: int) -> Source:
    if not images:
        raise UsageError("there is no image", expected="one, or one a channel")
    headers = [header for header, _ in images]
    require_channels(headers, channels)
    for index, (header, values) in enumerate(images):
        judge_voxels(values, header.path, masks_in_file(index, len(images), masks))
    if len(images) > 1:
        return Source(headers[0], np.stack([values for _, values in images]))
    values = images[0][1]
    return Source(headers[0], np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None])


def _read(image: Any, affine_ras: ArrayLike | None) -> tuple[Header, NDArray[Any]]:
    path = Path(_kind(image))  # what errors call it
    if isinstance(image, np.ndarray) and not isinstance(image, np.ma.MaskedArray):
        header = header_of_array(image.shape, image.dtype, affine_ras, path)
        return header, array_voxels(image, header)
    if _is_image_path(image):
        header = read_header(image)
        return header, read_voxels(header)
    if _is_of("nibabel", "spatialimages.SpatialImage", image):
        header = header_of_image(image, path)
        return header, image_voxels(image, header)
    if _is_of("SimpleITK", "Image", image):
        return _of_simpleitk(image, path)
    if isinstance(image, (str, os.PathLike)):
        raise UsageError("a channel is not a file of an image", path=os.fspath(image), expected=EXPECTED)
    raise UsageError(
        "no image of a kind that is known",
        found=_kind(image),
        expected="a file, a nibabel or SimpleITK image, a numpy array with affine_ras=, or one DICOM series",
    )


def _of_simpleitk(image: Any, path: Path) -> tuple[Header, NDArray[Any]]:
    import SimpleITK

    if all(image.HasMetaDataKey(key) and image.GetMetaData(key).strip() == "0" for key in FORM_CODES):
        raise DataError(
            "the file of the image does not say how it lies",
            path=path,
            found="qform_code 0 and sform_code 0, for which SimpleITK guesses an orientation",
            expected="a NIfTI file with a qform or an sform",
            hint="give the path of the file, or its nibabel image; the flag orientation_unknown then says so",
        )
    size = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(
            "voxels are not plain numbers",
            path=path,
            found=image.GetPixelIDTypeAsString(),
            expected="whole or real numbers",
            hint="colour images and vector images are not segmented here; give a list with an image a channel",
        )
    values = SimpleITK.GetArrayFromImage(image).T
    direction = np.array(image.GetDirection()).reshape(size, size)
    if not np.allclose(direction[3:, :3], 0) or not np.allclose(direction[:3, 3:], 0):
        raise DataError("the fourth axis of the image leaves its own direction", path=path, found=direction)
    affine = np.eye(4)
    if size >= 3:  # 2D is refused by its shape
        affine[:3, :3] = direction[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    header = header_of_array(values.shape, values.dtype, LPS_TO_RAS @ affine, path)
    return header, array_voxels(values, header)


def _is_numbers(matrix: Any) -> bool:
    try:
        return np.asarray(matrix).dtype.kind in "iuf"
    except ValueError:  # rows of different lengths
        return False


def _is_image_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike)) and is_image(os.fspath(image))


def _is_of(package: str, kind: str, image: Any) -> bool:
    """Return whether it is an object of a package, which is not imported for it."""
    scope: Any = sys.modules.get(package)
    for name in kind.split("."):
        scope = getattr(scope, name, None)
    return scope is not None and isinstance(image, scope)


def _kind(image: Any) -> str:
    return f"{type(image).__module__.partition('.')[0]} {type(image).__name__}"
