"""Images of NRRD, MetaImage and FreeSurfer (MGH): a header that says where and how voxels are stored, then the voxels.

Read by their own definitions, strictly: what says no orientation, counts in another unit than mm, or has other bytes
than its header tells of is refused. Affines are RAS+ mm; ITK's own LPS is turned.

Sources: the definition of the NRRD format (teem.sourceforge.net/nrrd/format.html); the MetaIO manual of ITK's wiki;
FreeSurfer's wiki page MghFormat.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.common.image_names import ending_of
from segpipe.common.nifti_bytes import require_file
from segpipe.errors import DataError

LONGEST_HEADER = 1 << 20
ORTHOGONAL = 1e-3  # of unit vectors
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
TO_NIFTI = (
    'convert it to NIfTI with its own program, or `SimpleITK.WriteImage(SimpleITK.ReadImage("FILE"), "NEW.nii.gz")`'
)
NRRD_SPACES = {  # to the signs that turn them to RAS
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
NRRD_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
MGH_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2"}
MGH_DATA = 284  # byte at which voxels begin


@dataclass(frozen=True, eq=False)
class Raster:
    """What a header says.

    Attributes:
        path: of the header.
        data: of the voxels, often the same.
        offset: byte in ``data`` at which they begin; unpacked ones, where the whole file is packed.
        packing: ``raw``, ``gzip`` (a stream), ``zlib``, or ``whole`` (the file is packed with gzip, as .mgz).
        dtype: with its byte order.
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to RAS mm.
        may_go_on: whether something else may follow the voxels.
    """

    path: Path
    data: Path
    offset: int
    packing: str
    dtype: np.dtype
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    may_go_on: bool = False


def is_raster(path: Path) -> bool:
    """Return whether a file is one of these by its name."""
    return ending_of(path) in _READERS


def read_raster(path: Path) -> Raster:
    """Read and judge a header.

    Raises:
        UsageError: a file cannot be opened.
        DataError: not of the format, no volume of plain numbers, no orientation or unit that is certain.
    """
    require_file(path)
    raster = _READERS[ending_of(path) or ""](path)
    edges = np.linalg.norm(raster.affine[:3, :3], axis=0)
    if not (np.isfinite(raster.affine).all() and (edges > 0).all()):
        raise _unusable(path, "voxel edges or an origin that are 0 or not finite", "lengths in mm")
    unit = raster.affine[:3, :3] / edges
    if np.abs(unit.T @ unit - np.eye(3)).max() > ORTHOGONAL:
        raise _unusable(path, "axes that are not at right angles", "an orthogonal grid")
    if raster.packing in ("raw", "gzip", "zlib") and raster.data != path:
        require_file(raster.data)
    return raster


def raster_voxels(raster: Raster) -> NDArray[np.generic]:
    """Return the voxels (X, Y, Z) in the machine's byte order.

    Raises:
        UsageError: the file cannot be opened.
        DataError: fewer or more bytes than the header tells of, or a packing that is damaged.
    """
    require_file(raster.data)
    try:
        content = raster.data.read_bytes()
        if raster.packing == "whole":
            content = gzip.decompress(content)[raster.offset :]
        elif raster.packing == "raw":
            content = content[raster.offset :]
        else:
            unpack: Callable[[bytes], bytes] = gzip.decompress if raster.packing == "gzip" else zlib.decompress
            content = unpack(content[raster.offset :])
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(raster.path, "packed voxels that are cut short or damaged", "a complete file") from error
    needed = math.prod(raster.shape) * raster.dtype.itemsize
    if len(content) < needed or (len(content) > needed and not raster.may_go_on):
        raise _unusable(raster.path, f"{len(content)} bytes of voxels", f"{needed}, from shape and type in the header")
    values = np.frombuffer(content, raster.dtype, math.prod(raster.shape)).reshape(raster.shape, order="F")
    return values.astype(raster.dtype.newbyteorder("="))


def _read_nrrd(path: Path) -> Raster:
    lines, end = _header_lines(path, lambda line: not line)
    if not lines[0].startswith("NRRD000"):
        raise _unusable(path, f"{lines[0][:20]!r} at the start", "an NRRD file")
    fields = {
        key.strip().lower(): value.strip()
        for key, _, value in (
            line.partition(":") for line in lines[1:] if not line.startswith("#") and ":=" not in line
        )
    }
    if fields.get("dimension") != "3":
        raise _unusable(path, f"dimension {fields.get('dimension')}", "one volume of three axes")
    space = fields.get("space", "").lower()
    if space not in NRRD_SPACES:
        found = f"space {space}" if space else "no `space`: it does not say what is left and what is right"
        raise _unusable(path, found, "left-posterior-superior, right-anterior-superior or left-anterior-superior")
    units = fields.get("space units", '"mm" "mm" "mm"').replace('"', "").split()
    if set(units) != {"mm"}:
        raise _unusable(path, f"space units {' '.join(units)}", "mm")
    vectors = [_numbers(path, part, 3) for part in fields.get("space directions", "").replace("(", " ").split(")")[:-1]]
    if len(vectors) != 3 or "space origin" not in fields:
        raise _unusable(path, "no `space directions` of three axes with a `space origin`", "both")
    signs = np.diag(NRRD_SPACES[space]).astype(float)
    origin = _numbers(path, fields["space origin"].strip("()"), 3)
    kind = next((kind for kind, words in NRRD_TYPES.items() if fields.get("type") in words.split("|")), None)
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if kind is None or packing is None:
        raise _unusable(path, f"type {fields.get('type')}, encoding {fields.get('encoding')}", "numbers, raw or gzip")
    if any(fields.get(key, "0") != "0" for key in ("byte skip", "byteskip", "line skip", "lineskip")):
        raise _unusable(path, "bytes or lines to be skipped", "voxels that begin where the header ends")
    if kind[1] != "1" and fields.get("endian", "").lower() not in ("little", "big"):
        raise _unusable(path, "no `endian`", "little or big")
    data = _detached(path, fields.get("data file", fields.get("datafile")))
    dtype = np.dtype(kind).newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")
    affine = _affine(signs @ np.array(vectors).T, signs @ origin)
    return Raster(path, data or path, 0 if data else end, packing, dtype, _shape(path, fields.get("sizes")), affine)


def _read_meta(path: Path) -> Raster:
    lines, end = _header_lines(path, lambda line: line.replace(" ", "").startswith("ElementDataFile="))
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    if fields.get("NDims") != "3" or fields.get("ElementNumberOfChannels", "1") != "1":
        found = f"NDims {fields.get('NDims')}, {fields.get('ElementNumberOfChannels', '1')} channels"
        raise _unusable(path, found, "one volume of three axes, one number a voxel")
    matrix = _first(fields, "TransformMatrix", "Rotation", "Orientation")
    origin = _first(fields, "Offset", "Position", "Origin")
    spacing = fields.get("ElementSpacing")
    if matrix is None or origin is None or spacing is None:
        found = "no TransformMatrix, Offset or ElementSpacing: it does not say how the voxels lie"
        raise _unusable(path, found, "all three")
    if fields.get("DistanceUnits", "mm") != "mm":
        raise _unusable(path, f"DistanceUnits {fields['DistanceUnits']}", "mm")
    kind = META_TYPES.get(fields.get("ElementType", ""))
    if kind is None or fields.get("BinaryData", "True").lower() != "true":
        raise _unusable(path, f"ElementType {fields.get('ElementType')}", "binary numbers of a fixed length")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise _unusable(path, f"HeaderSize {fields['HeaderSize']}", "voxels that begin where the header ends")
    name = fields["ElementDataFile"]
    data = None if name.upper() == "LOCAL" else _detached(path, name)
    compressed = fields.get("CompressedData", "False").lower() == "true"
    big = (_first(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") or "False").lower() == "true"
    directions = _numbers(path, matrix, 9).reshape(3, 3).T * _numbers(path, spacing, 3)
    affine = _affine(LPS_TO_RAS @ directions, LPS_TO_RAS @ _numbers(path, origin, 3))
    dtype = np.dtype(kind).newbyteorder(">" if big else "<")
    packing = "zlib" if compressed else "raw"
    return Raster(path, data or path, 0 if data else end, packing, dtype, _shape(path, fields.get("DimSize")), affine)


def _read_mgh(path: Path) -> Raster:
    packed = path.read_bytes()[:2] == b"\x1f\x8b" if ending_of(path) == ".mgh" else True
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            head = stream.read(MGH_DATA)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(
            path, "a packing that cannot be read", "an MGH file, packed with gzip where it is .mgz"
        ) from error
    if len(head) < MGH_DATA or struct.unpack(">i", head[:4]) != (1,):
        raise _unusable(path, "no header of an MGH file", "an MGH file of version 1")
    x, y, z, frames, code = struct.unpack(">5i", head[4:24])
    (has_orientation,) = struct.unpack(">h", head[28:30])
    if frames != 1 or code not in MGH_TYPES:
        raise _unusable(path, f"{frames} frames of type {code}", "one volume of plain numbers")
    if has_orientation != 1:
        raise _unusable(path, "no orientation (goodRASFlag is not 1)", "a header that says how the voxels lie")
    numbers = np.array(struct.unpack(">15f", head[30:90]))
    directions = numbers[3:12].reshape(3, 3).T * numbers[:3]
    centre = directions @ (np.array([x, y, z]) / 2)
    shape = _shape(path, f"{x} {y} {z}")
    dtype = np.dtype(MGH_TYPES[code]).newbyteorder(">")
    affine = _affine(directions, numbers[12:15] - centre)
    return Raster(path, path, MGH_DATA, "whole" if packed else "raw", dtype, shape, affine, may_go_on=True)


_READERS: Mapping[str, Callable[[Path], Raster]] = {
    ".nrrd": _read_nrrd,
    ".nhdr": _read_nrrd,
    ".mha": _read_meta,
    ".mhd": _read_meta,
    ".mgh": _read_mgh,
    ".mgz": _read_mgh,
}


def _header_lines(path: Path, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """Return the lines of a text header up to the last, and the byte that follows it."""
    with path.open("rb") as file:
        content = file.read(LONGEST_HEADER)
    lines: list[str] = []
    start = 0
    while start < len(content):
        stop = content.find(b"\n", start)
        stop = len(content) if stop < 0 else stop
        lines.append(content[start:stop].decode("latin-1").rstrip("\r"))
        start = stop + 1
        if is_last(lines[-1]) and len(lines) > 1:
            return lines, start
    if lines and path.suffix.lower() == ".nhdr":  # which may end with its last field
        return lines, start
    raise _unusable(path, "no end of the header", "a text header, then voxels")


def _detached(path: Path, name: str | None) -> Path | None:
    """Return the file of the voxels that a header names, in its own folder; None where it names none."""
    if name is None:
        return None
    if Path(name).name != name or name in ("..", ".") or name.upper().startswith("LIST") or "%" in name or " " in name:
        raise _unusable(path, "voxels in several files, or in a file of another folder", "one file beside the header")
    return path.with_name(name)


def _shape(path: Path, words: str | None) -> tuple[int, int, int]:
    sizes = _numbers(path, words or "", 3)
    if not all(size == int(size) and 0 < size < 1 << 31 for size in sizes):
        raise _unusable(path, f"sizes {words}", "three whole numbers above 0")
    x, y, z = (int(size) for size in sizes)
    return x, y, z


def _numbers(path: Path, words: str, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(word) for word in words.replace(",", " ").split()])
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _unusable(path, f"{words[:60]!r}", f"{count} finite numbers")
    return numbers


def _first(fields: Mapping[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _affine(directions: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, origin
    return affine


def _unusable(path: Path, found: str, expected: str) -> DataError:
    kind = (ending_of(path) or "").removeprefix(".")
    return DataError(f"the {kind} file cannot be used", path=path, found=found, expected=expected, hint=TO_NIFTI)
