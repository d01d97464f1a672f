"""What a NIfTI file is, told from its bytes before a library reads it: packing, header, where voxels begin and end.

Programs disagree about a header that contradicts itself, and some take header bytes for voxels. So every byte must be
accounted for: where voxels begin, plus what the dimensions need, is the length of the file.

Source of the fields: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from segpipe.errors import DataError, SegpipeError, UsageError

HEAD_BYTES = 544  # of the longer header, with the four that say whether extensions follow
FIRST_VOXEL = {348: 352, 540: 544}  # size of the header to where voxels begin at the earliest in a single file
MAGIC = {348: (b"n+1", b"ni1"), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}  # single file, pair
NUMBER_TYPES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}  # code to bytes a voxel
OTHER_TYPES = {
    0: "of no type",
    1: "single bits",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}
LAST_FORM_CODE = 5
UNPACK = "unpack it, then give it a name of its own: `{} FILE > NEW.nii`"
GARBAGE_HINT = "`gzip -dc FILE > NEW.nii` takes the image out and warns of the rest"
FOREIGN = (  # first bytes, what they are, what to do
    (b"BZh", "packed with bzip2", UNPACK.format("bzip2 -dc")),
    (b"\xfd7zXZ\0", "packed with xz", UNPACK.format("xz -dc")),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK.format("zstd -dc")),
    (b"\x04\x22\x4d\x18", "packed with lz4", UNPACK.format("lz4 -dc")),
    (b"\x1f\x9d", "packed with compress", UNPACK.format("uncompress -c")),
    (b"PK\x03\x04", "a zip archive", UNPACK.format("unzip -p")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it, and give the image in it"),
    (b"Rar!", "a RAR archive", "unpack it, and give the image in it"),
    (b"NRRD", "an NRRD image", "rename it to end in .nrrd"),
    (b"ObjectType", "a MetaImage", "rename it to end in .mha"),
    (b"\x89HDF", "HDF5, as MINC 2 is", "convert it to NIfTI with its own tools, e.g. `mnc2nii`"),
    (b"CDF", "NetCDF, as MINC 1 is", "convert it to NIfTI with its own tools, e.g. `mnc2nii`"),
    (b"\x89PNG", "a PNG picture", "slices of a volume are imported by `segpipe import --slices`"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the scan that it was drawn from"),
    (b"II*\0", "a TIFF picture", "slices of a volume are imported by `segpipe import --slices`"),
    (b"MM\0*", "a TIFF picture", "slices of a volume are imported by `segpipe import --slices`"),
    (b"%PDF", "a PDF document", "give the image itself"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file that it stands for: `git lfs pull`"),
    (b"/annex/objects/", "a pointer of git-annex", "fetch the file that it stands for: `git annex get FILE`"),
    (b"<", "a web page or other markup", "download it again: this is what a server answered"),
)


@dataclass(frozen=True)
class Stored:
    """Where a file's voxels are.

    Attributes:
        compressed: whether it is packed with gzip.
        end: bytes of the file, unpacked, up to the end of the voxels; of a pair those of the ``.img``.
    """

    compressed: bool
    end: int


def require_file(path: Path) -> None:
    """Refuse what is no file that can be opened, in words for each kind.

    Raises:
        UsageError: not there, a link to nothing or in a circle, a folder, a pipe, or no permission.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UsageError(
                "no permission to read the file", path=path, hint="ask for it, or copy the file"
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError("the path is too long to be opened", path=path, hint="move the file up") from error
        if not path.is_symlink():
            raise UsageError("no such file", path=path, hint="check the path") from error
        found = "a link in a circle" if error.errno == errno.ELOOP else "a link to a file that is not there"
        hint = "fetch what it links to (git annex get, or mount its disk), or remove the link"
        raise UsageError("the file cannot be opened", path=path, found=found, hint=hint) from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UsageError("not a file", path=path, found=found, expected="a file of an image", hint="check the path")
    if not os.access(path, os.R_OK):
        raise UsageError("no permission to read the file", path=path, hint="ask for it, or copy the file")


def judge_stored(path: Path) -> Stored:
    """Read the header of a file by its bytes, and refuse what readers could understand in different ways.

    Raises:
        UsageError: the file cannot be opened.
        DataError: another format or packing than its name says, a header that contradicts itself or cannot be used, or
            voxels that are not all there, or not all that is there.
    """
    require_file(path)
    name = path.name.lower()
    if name.endswith(".img"):
        return judge_stored(header_of_pair(path))
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    compressed = start.startswith(b"\x1f\x8b")
    if compressed:
        start = _unpacked_start(path)
    _require_nifti(start, path)
    if compressed != name.endswith(".gz"):
        raise DataError(
            "the name does not say how the file is packed",
            path=path,
            found="a NIfTI file packed with gzip" if compressed else "a NIfTI file that is not packed",
            expected="a name that ends in .nii.gz" if compressed else "a name that ends in .nii",
            hint=f"rename it to end in {'.nii.gz' if compressed else '.nii'}",
        )
    fields = _fields(start, path)
    _judge_numbers(fields, path)
    if name.endswith((".hdr", ".img")):
        return _judge_pair(fields, path)
    return _judge_single(fields, path, compressed, start)


def require_end(stream: IO[bytes], path: Path) -> None:
    """Refuse a packed file that goes on after its voxels; ``stream`` has read these.

    Raises:
        DataError: more voxels than the header tells of, or bytes after the packed ones.
    """
    more = len(stream.read(1 << 20))
    if more:
        words = f"{more} bytes more" if more < 1 << 20 else "a megabyte more, at least"
        raise _longer(path, words, "nothing more", "unpack it: `gzip -dc FILE > NEW.nii`, and try that")


def packing_error(path: Path, error: Exception) -> SegpipeError:
    """Return what is wrong with the packing of a ``.gz`` file that cannot be read to its end."""
    if _first_part_is_whole(path):
        return _badly_packed(path, "other bytes after the end of the packed image", GARBAGE_HINT)
    if isinstance(error, EOFError):
        return _badly_packed(path, "the packed file is cut short", "copy it again from its source, whole")
    return _badly_packed(path, "the packed bytes are damaged", "copy it again from its source")


def _first_part_is_whole(path: Path) -> bool:
    """Return whether what is wrong comes after the first packed part, which the image fills in nearly all files."""
    import zlib

    unpacking = zlib.decompressobj(wbits=31)
    try:
        with path.open("rb") as file:
            while not unpacking.eof and (packed := file.read(1 << 20)):
                unpacking.decompress(packed)
    except (OSError, zlib.error):
        return False
    return unpacking.eof


def _badly_packed(path: Path, found: str, hint: str) -> DataError:
    return DataError(
        "cannot read the NIfTI file", path=path, found=found, expected="one NIfTI file packed with gzip", hint=hint
    )


def _unpacked_start(path: Path) -> bytes:
    from isal import igzip

    try:
        with igzip.open(path, "rb") as stream:
            start: bytes = stream.read(HEAD_BYTES)
            return start
    except Exception as error:
        raise packing_error(path, error) from error


def _require_nifti(start: bytes, path: Path) -> None:
    """Refuse what is no NIfTI header, and say what it is."""
    if _header_size(start) is not None:
        return
    found, hint = "no header of a NIfTI file", "copy it again from its source"
    known = next(((words, what) for magic, words, what in FOREIGN if start.lstrip().startswith(magic)), None)
    if not start:
        found = "an empty file"
    elif known is not None:
        found, hint = known
    elif start[128:132] == b"DICM":
        found, hint = "a DICOM file", "give the folder of its series, under a name that does not end in .nii"
    elif start[257:262] == b"ustar":
        found, hint = "a tar archive", "unpack it with `tar -xf FILE`, and give the image in it"
    elif start.startswith(b"\x1f\x8b"):
        found, hint = "packed with gzip twice", "unpack it once: `gzip -dc FILE > NEW.nii.gz`"
    elif not start.strip(b"\0"):
        found = "zeros, as a copy that was cut off leaves them"
    elif len(start) < min(FIRST_VOXEL):
        found = f"{len(start)} bytes, fewer than a header has"
    elif _looks_like_analyze(start):
        found = "an Analyze 7.5 header, which does not say what is left and what is right"
        hint = "write it as NIfTI with the program that made it, or `segpipe convert` the scan that it was made from"
    raise DataError(
        "cannot read the NIfTI file", path=path, found=found, expected="a NIfTI-1 or NIfTI-2 file", hint=hint
    )


def _header_size(start: bytes) -> tuple[int, str] | None:
    """Return the size that the header has by its first field, and its byte order; None where it is no header."""
    for order in "<>":
        size = int(np.frombuffer(start[:4], f"{order}i4")[0]) if len(start) >= 4 else 0
        place = slice(344, 348) if size == 348 else slice(4, 12)
        if (
            size in MAGIC
            and len(start) >= size
            and start[place].rstrip(b"\0") in [magic.rstrip(b"\0") for magic in MAGIC[size]]
        ):
            return size, order
    return None


def _looks_like_analyze(start: bytes) -> bool:
    return any(int(np.frombuffer(start[:4], f"{order}i4")[0]) == 348 for order in "<>")


def _fields(start: bytes, path: Path) -> Any:
    """Return the header's fields as they stand in the file, in the machine's byte order."""
    import nibabel as nib

    size, order = _header_size(start) or (348, "<")
    kind: Any = nib.nifti1.header_dtype if size == 348 else nib.nifti2.header_dtype
    fields = np.frombuffer(start[:size], kind.newbyteorder(order))[0]
    dimensions = int(fields["dim"][0])
    if not 1 <= dimensions <= 7:
        raise _contradiction(path, f"dim[0] = {dimensions}", "1 to 7 dimensions")
    shape = [int(length) for length in fields["dim"][1 : dimensions + 1]]
    if min(shape) < 1:
        raise DataError("the header tells of no voxels", path=path, found=f"shape {tuple(shape)}")
    return fields


def _judge_numbers(fields: Any, path: Path) -> None:
    code = int(fields["datatype"])
    if code not in NUMBER_TYPES:
        raise DataError(
            "voxels are not plain numbers",
            path=path,
            found=OTHER_TYPES.get(code, f"datatype {code}, which NIfTI does not know"),
            expected="whole or real numbers of up to 64 bits",
            hint="colour images and complex images are not segmented here; write others as float32",
        )
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if np.isinf(slope) or (np.isfinite(slope) and slope and not np.isfinite(inter)):  # NaN and 0 mean: not scaled
        raise _contradiction(path, f"scl_slope = {slope:g}, scl_inter = {inter:g}", "finite numbers, or a slope of 0")
    for name in ("qform_code", "sform_code"):
        if int(fields[name]) > LAST_FORM_CODE:  # some readers use such a form, others do not
            raise _contradiction(path, f"{name} = {int(fields[name])}", f"0 to {LAST_FORM_CODE}")
    edges = [float(edge) for edge in fields["pixdim"][1:4]][: int(fields["dim"][0])]
    made_of_edges = int(fields["qform_code"]) > 0 or int(fields["sform_code"]) <= 0  # the affine, or one to compare
    if made_of_edges and not all(np.isfinite(edge) and edge > 0 for edge in edges):
        words = ", ".join(f"{edge:g}" for edge in edges)
        raise _contradiction(path, f"voxel edges (pixdim) of {words} mm", "lengths above 0")
    side = float(fields["pixdim"][0])
    if int(fields["qform_code"]) > 0 and not (side == -1 or 0 <= side < np.inf):
        raise _contradiction(path, f"pixdim[0] = {side:g}, which tells left from right", "1 or -1")


def _judge_single(fields: Any, path: Path, compressed: bool, start: bytes) -> Stored:
    size = int(fields["sizeof_hdr"])
    if bytes(fields["magic"])[:2] != b"n+":
        raise _contradiction(path, "a header whose voxels are in another file (.img)", "header and voxels in one file")
    first, at = FIRST_VOXEL[size], float(fields["vox_offset"])
    end_at_first = first + _voxel_bytes(fields)
    if not np.isfinite(at) or at != int(at) or at < first:
        length = None if compressed else path.stat().st_size
        fits = f"; its length fits voxels from byte {first} on" if length == end_at_first else ""
        raise DataError(
            "the header does not say where the voxels begin",
            path=path,
            found=f"vox_offset = {at:g}{fits}",
            expected=f"a whole number of at least {first}",
            hint=f"write it again from its source, or set vox_offset to {first} where the length fits that",
        )
    end = int(at) + _voxel_bytes(fields)
    if not compressed:
        _require_length(path, path.stat().st_size, end)
    if start[size : size + 1] not in (b"", b"\0") and int(at) > first:
        _judge_extensions(path, compressed, size, int(at), fields)
    return Stored(compressed, end)


def _judge_extensions(path: Path, compressed: bool, size: int, end: int, fields: Any) -> None:
    """Refuse a chain of extensions that does not end where voxels begin."""
    from isal import igzip

    order = fields.dtype["dim"].base.byteorder
    place = size + 4
    with igzip.open(path, "rb") if compressed else path.open("rb") as stream:
        while end - place >= 16:
            stream.seek(place)
            length = stream.read(4)
            step = int(np.frombuffer(length, np.dtype("i4").newbyteorder(order))[0]) if len(length) == 4 else 0
            if not 8 <= step <= end - place:
                raise _contradiction(
                    path,
                    f"an extension of {step} bytes at byte {place}",
                    f"extensions that end at byte {end}, where voxels begin",
                )
            place += step


def _judge_pair(fields: Any, path: Path) -> Stored:
    if bytes(fields["magic"])[:2] != b"ni":
        raise DataError(
            "the name does not say what the file is",
            path=path,
            found="header and voxels in one file",
            expected="a name that ends in .nii",
            hint="rename it to end in .nii",
        )
    voxels = voxels_of_pair(path)
    require_file(voxels)
    at = float(fields["vox_offset"])
    if not np.isfinite(at) or at != int(at) or at < 0:
        raise _contradiction(path, f"vox_offset = {at:g}", "a whole number of at least 0")
    end = int(at) + _voxel_bytes(fields)
    _require_length(path, voxels.stat().st_size, end)
    return Stored(False, end)


def header_of_pair(path: Path) -> Path:
    """Return the header of a pair, whichever of its files is named, in the letters that the name has."""
    return _sibling(path, ".hdr")


def voxels_of_pair(path: Path) -> Path:
    """Return the file of the voxels of a pair, whichever of its files is named."""
    return _sibling(path, ".img")


def _sibling(path: Path, ending: str) -> Path:
    if path.suffix.lower() == ending:
        return path
    return next((other for word in (ending, ending.upper()) if (other := path.with_suffix(word)).exists()), None) or (
        path.with_suffix(ending)
    )


def _voxel_bytes(fields: Any) -> int:
    count = NUMBER_TYPES[int(fields["datatype"])]
    for length in fields["dim"][1 : int(fields["dim"][0]) + 1]:
        count *= int(length)
    return count


def _contradiction(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        "the header cannot be used",
        path=path,
        found=found,
        expected=expected,
        hint="write the file again from the original scan",
    )


def _require_length(path: Path, found: int, end: int) -> None:
    if found < end:
        raise DataError(
            "cannot read the NIfTI file",
            path=path,
            found=f"{found} bytes: it is cut short",
            expected=f"{end} bytes, from the header to the last voxel",
            hint="copy it again from its source",
        )
    if found > end:
        raise _longer(path, f"{found} bytes", f"{end} bytes", f"cut it there: `truncate -s {end} FILE`")


def _longer(path: Path, found: str, expected: str, remedy: str) -> DataError:
    return DataError(
        "the file is longer than its header says",
        path=path,
        found=found,
        expected=f"{expected}, from the header to the last voxel",
        hint=f"write it again from its source; if it only has something else after the image, {remedy}",
    )
