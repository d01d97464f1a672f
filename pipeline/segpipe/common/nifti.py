"""Headers and voxels of images, NIfTI above all, read strictly: what is doubtful is refused with its reason.

Affines map voxel indices to RAS+ millimetres, as nibabel and MONAI have it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_whole
from segpipe.common.nifti_bytes import judge_stored, packing_error, require_end
from segpipe.common.rasters import is_raster, raster_voxels, read_raster
from segpipe.common.rounded_quaternions import nibabel_that_shortens
from segpipe.errors import DataError, SegpipeError, UsageError

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its header remarks would reach the terminal

GEOMETRY_TOLERANCE_MM, GEOMETRY_SHARE = 0.01, 0.1  # and not more than this part of a voxel's smallest edge
FORMS_TOLERANCE_MM, FORMS_SHARE = 0.1, 0.5
LAST_CODE = 5  # of sform and qform: template
UNIT_MM = 2  # of xyzt_units
INTENT_LABEL = 1002  # NIFTI_INTENT_LABEL: values are labels, not intensities
REWRITE = "write the header again from the original scan"
GZIP_LEVEL = 2  # of 0 to 3
PART = 1 << 22  # bytes that are unpacked at once
PLAIN_TYPES = ("uint8", "int8", "int16", "int32", "float32")  # that torch computes with


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI header says.

    Attributes:
        path: the file.
        shape: all dimensions, trailing ones of size 1 removed beyond the third.
        affine: (4, 4) float64, voxel index to RAS mm.
        spacing_mm: length of a voxel's edges.
        dtype: type on disk.
        sform_code: what the affine's millimetres refer to (1 scanner, 2 aligned, ...); 0 where the sform is not used.
        qform_code: the same of the qform.
        qform: (4, 4), None where the file has none.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    dtype: str
    sform_code: int = 1
    qform_code: int = 0
    qform: NDArray[np.float64] | None = None

    @property
    def is_oriented(self) -> bool:
        """Return whether the file says at all where the patient's left, front and head are."""
        return bool(self.sform_code or self.qform_code)

    @cached_property
    def orientation(self) -> str:
        """Return the nearest axis codes, e.g. ``RAS``."""
        import nibabel as nib

        return "".join(str(code) for code in nib.orientations.aff2axcodes(self.affine))


def read_header(path: str | Path) -> Header:
    """Read a header and judge its geometry.

    Raises:
        UsageError: no such file, or none that can be opened.
        DataError: not NIfTI, another packing than the name says, no voxels, voxels that are colours or complex, voxels
            that begin in the header or end elsewhere than the file, an affine that is singular or not finite, lengths
            that are not in mm, or qform and sform that place a corner more than 0.1 mm apart.
    """
    path = Path(path)
    try:
        if is_raster(path):
            raster = read_raster(path)
            return header_of_array(raster.shape, raster.dtype.newbyteorder("="), raster.affine, path)
        judge_stored(path)
        return header_of_image(nibabel_that_shortens().load(path), path)
    except SegpipeError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def header_of_image(image: Any, path: Path) -> Header:
    """Return the header of a nibabel image, judged as `read_header` judges a file's.

    Args:
        image: of a file, or made in memory.
        path: names it where it is refused.

    Raises:
        DataError: as `read_header`; or affine and header of the image disagree.
    """
    import nibabel as nib

    shape, affine, header = image.shape, image.affine, image.header
    stored = image.header.get_data_dtype() if nib.is_proxy(image.dataobj) else np.asanyarray(image.dataobj).dtype  # type: ignore[attr-defined, unused-ignore]
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair)):  # type: ignore[attr-defined, unused-ignore]
        raise DataError("not a NIfTI image", path=path, found=type(image).__name__)
    grid = header_of_array(shape, stored, affine, path)
    unit = int(header["xyzt_units"]) % 8
    if unit not in (0, UNIT_MM):  # nibabel and MONAI would take the numbers for mm, ITK would not
        raise DataError(
            "the header's lengths are not in mm",
            path=path,
            found={1: "metres", 3: "micrometres"}.get(unit, unit),
            expected="mm",
            hint="write the header again in mm",
        )
    codes_and_qform = _compare_forms(path, header, grid.shape)
    apart = corners_apart_mm(grid.affine, header.get_best_affine(), grid.shape)
    limit = geometry_limit_mm(grid.affine)
    if not apart <= limit:  # of an image in memory, whose header was changed by hand
        raise DataError(
            "affine and header of the image disagree",
            path=path,
            found=f"corners {apart:.3g} mm apart",
            expected=f"at most {limit:.3g} mm",
            hint="set both by image.set_sform and image.set_qform",
        )
    return Header(path, grid.shape, grid.affine, grid.spacing_mm, grid.dtype, *codes_and_qform)


def header_of_array(shape: Sequence[int], dtype: np.dtype[Any], affine: Any, path: Path) -> Header:
    """Return the header of voxels on a grid, judged.

    Args:
        shape: of the array; trailing axes of size 1 are passed over beyond the third.
        dtype: of the voxels.
        affine: (4, 4), voxel index to RAS mm.
        path: names the image where it is refused.

    Raises:
        DataError: no voxels, voxels that are colours or complex, or an affine that is singular or not finite.
    """
    shape, affine = tuple(int(size) for size in shape), np.asarray(affine, dtype=np.float64)
    if min(shape, default=0) < 1:
        raise DataError("the header tells of no voxels", path=path, found=f"shape {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iuf":
        raise DataError(
            "voxels are not plain numbers",
            path=path,
            found=str(dtype),
            expected="whole or real numbers",
            hint="colour images and complex images are not segmented here",
        )
    if (
        affine.shape != (4, 4)
        or not np.isfinite(affine).all()
        or not np.array_equal(affine[3], (0, 0, 0, 1))
        or abs(np.linalg.det(affine[:3, :3])) < 1e-9
    ):
        raise DataError(
            "the affine cannot be used",
            path=path,
            found=np.array2string(affine, precision=3),
            expected="(4, 4), finite, invertible, with the last row 0 0 0 1",
            hint=REWRITE,
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    spacing_mm = (float(lengths[0]), float(lengths[1]), float(lengths[2]))
    return Header(path, shape, affine, spacing_mm, str(dtype))


def read_volume(header: Header) -> NDArray[np.generic]:
    """Return the scaled voxels of a header's file, in the header's shape.

    Raises:
        DataError: the data is truncated or cannot be decoded.
    """
    if is_raster(header.path):
        return _raster_voxels(header)
    with _opened(header.path) as image:
        return np.asanyarray(image.dataobj).reshape(header.shape)


def read_voxels(header: Header) -> NDArray[np.generic]:
    """Return the same voxels in as few bytes as they need: as the file has them where it does not scale them.

    Scaled voxels and types that torch lacks become float32, a part at a time.

    Raises:
        DataError: the data is truncated or cannot be decoded.
    """
    if is_raster(header.path):
        return array_voxels(_raster_voxels(header), header)
    with _opened(header.path) as image:
        return image_voxels(image, header)


def image_voxels(image: Any, header: Header) -> NDArray[np.generic]:
    """Return the same of a nibabel image; of one in memory it is a copy."""
    import nibabel as nib

    if not nib.is_proxy(image.dataobj):  # type: ignore[attr-defined, unused-ignore]
        return array_voxels(image.dataobj, header)
    raw = np.asanyarray(image.dataobj.get_unscaled())
    return _lean(raw, image.dataobj.slope, image.dataobj.inter).reshape(header.shape, order="F")


def array_voxels(values: Any, header: Header) -> NDArray[np.generic]:
    """Return the same of an array in memory, as a copy."""
    return _lean(np.array(values, order="K"), 1, 0).reshape(header.shape, order="F")


def _lean(raw: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    from nibabel.volumeutils import apply_read_scaling

    scaled = (slope, inter) != (1, 0)
    if not scaled and raw.dtype.name in PLAIN_TYPES:
        return raw if raw.dtype.isnative else raw.astype(raw.dtype.newbyteorder("="))
    values = np.empty(raw.shape, np.float32, order="F")
    for index in range(raw.shape[-1]):
        values[..., index] = apply_read_scaling(raw[..., index], slope, inter) if scaled else raw[..., index]
    return values


def _raster_voxels(header: Header) -> NDArray[np.generic]:
    return raster_voxels(read_raster(header.path)).reshape(header.shape)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file as nibabel reads it; what is packed through igzip, in half the time, and to the file's very end.

    Raises:
        UsageError: the file cannot be opened.
        DataError: it cannot be read, or does not end after its voxels.
    """
    from isal import igzip

    try:
        stored, nib = judge_stored(path), nibabel_that_shortens()
        if not stored.compressed:
            yield nib.load(path)
            return
        kind = type(nib.load(path))
        with igzip.open(path, "rb") as stream:
            yield kind.from_stream(_InParts(stream))
            require_end(stream, path)
    except SegpipeError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


class _InParts(io.BufferedIOBase):
    """A packed stream whose voxels arrive in the array that was made for them, without a second one beside it."""

    def __init__(self, stream: Any) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell  # type: ignore[method-assign]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, array: Any) -> int:
        view, done = memoryview(array), 0
        while part := self.read(min(PART, len(view) - done)):
            view[done : done + len(part)] = part
            done += len(part)
        return done


def write_nifti(image: Any, path: str | Path) -> None:
    """Save a nibabel image; ``.nii.gz`` in bytes that repeat, compressed by igzip in a third of zlib's time.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    with Path(path).open("wb") as file:
        _write_to(file, image, str(path).endswith(".gz"))


def write_nifti_whole(image: Any, path: Path) -> None:
    """Save as `write_nifti` does, whole or not at all, in a folder that is made where there is none.

    Raises:
        UsageError: it cannot be written, or the disk is full.
    """
    with write_whole(path) as file:
        _write_to(file, image, str(path).endswith(".gz"))


def _write_to(file: BinaryIO, image: Any, compressed: bool) -> None:
    from isal import igzip

    if compressed:
        with igzip.IGzipFile("", "wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as stream:
            image.to_stream(stream)
    else:
        image.to_stream(file)


def require_3d(header: Header) -> None:
    """Refuse what is not one volume.

    Raises:
        DataError: 2D, or 4D and more.
    """
    shape = header.shape
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise DataError(
            "not a volume",
            path=header.path,
            found=f"shape {shape}",
            expected="three axes of at least 2 voxels",
            hint="2D images are not segmented here; stack the slices to a volume first",
        )
    if len(shape) > 3:
        raise DataError(
            "more than three dimensions",
            path=header.path,
            found=f"shape {shape}",
            expected="one 3D volume a file",
            hint="split time points or channels into a file each",
        )


def grid_difference(first: Header, second: Header, tolerance_mm: float | None = None) -> str | None:
    """Say how two grids differ, or return None where every corner agrees within `geometry_limit_mm` or a tolerance."""
    if first.shape != second.shape:
        return f"shape {first.shape} against {second.shape}"
    apart = corners_apart_mm(first.affine, second.affine, first.shape)
    if not apart <= (
        geometry_limit_mm(first.affine) if tolerance_mm is None else tolerance_mm
    ):  # so that NaN differs from everything
        return f"corners up to {apart:.3g} mm apart"
    return None


def geometry_limit_mm(affine: NDArray[np.float64]) -> float:
    """Return how far the corners of one grid may lie apart: 0.01 mm, or a tenth of a smaller voxel's edge."""
    return min(GEOMETRY_TOLERANCE_MM, GEOMETRY_SHARE * _smallest_edge_mm(affine))


def forms_limit_mm(affine: NDArray[np.float64]) -> float:
    """Return the same for what a single precision quaternion loses: 0.1 mm, or half of a smaller voxel's edge."""
    return min(FORMS_TOLERANCE_MM, FORMS_SHARE * _smallest_edge_mm(affine))


def _smallest_edge_mm(affine: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(affine[:3, :3], axis=0).min())


def corners_apart_mm(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance between the places that two affines give a corner of the grid."""
    sizes = (*shape, 1, 1)[:3]
    grid = np.stack(np.meshgrid(*[(0, size - 1) for size in sizes], indexing="ij")).reshape(3, -1)
    corners = np.vstack([grid, np.ones((1, grid.shape[1]))])
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def _compare_forms(path: Path, header: object, shape: tuple[int, ...]) -> tuple[int, int, NDArray[np.float64] | None]:
    """Return the code of the sform, the code of the qform, and the qform; they must agree."""
    sform, s_code = header.get_sform(coded=True)  # type: ignore[attr-defined]
    try:
        qform, q_code = header.get_qform(coded=True)  # type: ignore[attr-defined]
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DataError("the qform cannot be used", path=path, found=str(error), hint=REWRITE) from error
    codes = _known_code(s_code), _known_code(q_code)
    if not all(codes) or len(shape) < 3:
        return *codes, qform
    if not np.isfinite(qform).all():
        raise DataError("the qform cannot be used", path=path, found="numbers that are not finite", hint=REWRITE)
    apart = corners_apart_mm(sform, qform, shape)
    limit = forms_limit_mm(sform)
    if apart > limit:
        raise DataError(
            "qform and sform of the header disagree",
            path=path,
            found=f"corners {apart:.3g} mm apart",
            expected=f"at most {limit:.3g} mm",
            hint="which one is right cannot be told from the file; write it again from the original scan",
        )
    return *codes, qform


def _known_code(code: int) -> int:
    return 0 if code <= 0 else code if code <= LAST_CODE else 1


def _unreadable(path: Path, error: Exception) -> SegpipeError:
    if isinstance(error, PermissionError):
        return UsageError("no permission to read the file", path=path)
    if isinstance(error, EOFError) or type(error).__name__ == "BadGzipFile":
        return packing_error(path, error)
    words = str(error).replace(str(path), "the file").strip() or type(error).__name__  # reports name no file
    return DataError(
        "cannot read the NIfTI file",
        path=path,
        found=words.splitlines()[0],
        expected="a complete NIfTI-1 or NIfTI-2 file",
        hint="copy it again from its source",
    )
