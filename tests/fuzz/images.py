"""Images: NIfTI of both versions and byte orders, NRRD, MetaImage, MGH."""

from __future__ import annotations

import gzip
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from guard import BrokenPromiseError, Room
from hypothesis import strategies as st
from mutation import Change, made, of_bytes, of_parts, several
from target import TURNED, VOXELS, Input, Target


def nifti() -> Target:
    """Headers of NIfTI files, packed and not."""
    kinds: list[tuple[Any, Any]] = [
        (nib.Nifti1Image(VOXELS.astype(np.int16), TURNED), "<"),
        (nib.Nifti1Image(VOXELS.astype(np.float32), TURNED), ">"),
        (nib.Nifti2Image(VOXELS.astype(np.uint16), TURNED), "<"),
    ]
    sound, changed = [], []
    for image, order in kinds:
        image.set_qform(TURNED, 1)
        image = type(image)(np.asanyarray(image.dataobj), TURNED, image.header.as_byteswapped(order))
        data = image.to_bytes()
        sound.append((".nii", data))
        header = several(_of_field(image.header.template_dtype.newbyteorder(order)), 1)
        changed.append(made(data, header, several(of_bytes())))
    packed = made(gzip.compress(sound[0][1], 9, mtime=0), several(of_bytes()))
    one = st.one_of(changed)
    inputs = st.one_of(
        one.map(lambda data: (".nii", data)),
        one.map(lambda data: (".nii.gz", gzip.compress(data, 1, mtime=0))),
        packed.map(lambda data: (".nii.gz", data)),
    )
    return Target("nifti", [*sound, (".nii.gz", gzip.compress(sound[0][1], 1, mtime=0))], inputs, _read_nifti)


def _of_field(dtype: np.dtype[Any]) -> st.SearchStrategy[Change]:
    """One field of a header set to a number that matters."""
    places = [
        (dtype.fields[name][1] + at, dtype[name].base)
        for name in dtype.names
        if dtype[name].base.kind in "iuf"
        for at in range(0, dtype[name].itemsize, dtype[name].base.itemsize)
    ]
    numbers = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64, 255, 256, 348, 352, 512, 540, 544, 32767, -1, -2, -32768])
    reals = st.sampled_from([0.0, 1.0, -1.0, 0.5, 351.0, 352.5, 1e30, 3e38, 1e-40, float("nan"), float("inf")])

    def build(place: tuple[int, np.dtype[Any]], number: int, real: float) -> Change:
        at, kind = place
        written = np.array(real if kind.kind == "f" else number).astype(kind, casting="unsafe").tobytes()
        return lambda data: data[:at] + written + data[at + len(written) :]

    return st.builds(build, st.sampled_from(places), numbers, reals)


def _read_nifti(path: Path, room: Room) -> None:
    from segpipe.common.nifti import read_header, read_volume, read_voxels, require_3d

    header = read_header(path)
    voxels = read_voxels(header)
    np.testing.assert_equal(read_volume(header).shape, header.shape)
    _require_own_voxels(path, voxels)
    require_3d(header)


def _require_own_voxels(path: Path, voxels: np.ndarray[Any, Any]) -> None:
    """Compare with the bytes behind the header, found without the readers."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.name.endswith(".gz") else data
    order = "<" if struct.unpack("<i", data[:4])[0] in (348, 540) else ">"
    first = struct.unpack(order + "i", data[:4])[0] == 348
    kind = struct.unpack(order + "h", data[70:72] if first else data[12:14])[0]
    offset = struct.unpack(order + ("f" if first else "q"), data[108:112] if first else data[168:176])[0]
    slope, inter = struct.unpack(order + ("2f" if first else "2d"), data[112:120] if first else data[176:192])
    if offset < (352 if first else 544):
        raise BrokenPromiseError(f"voxels from byte {offset} on, which is the header")
    stored = np.dtype(nib.nifti1.data_type_codes.dtype[kind]).newbyteorder(order)
    raw = np.frombuffer(data, stored, voxels.size, int(offset)).reshape(voxels.shape, order="F")
    if slope in (0, 1) and inter == 0 and not np.array_equal(raw.astype(voxels.dtype), voxels, equal_nan=True):
        raise BrokenPromiseError("voxels that are not those of the file")


def rasters() -> Target:
    """NRRD, MetaImage and MGH files, whose headers are text or numbers."""
    import SimpleITK as sitk  # noqa: N813 - its usual name

    image = sitk.GetImageFromArray(VOXELS.T.astype(np.int16))
    image.SetSpacing((1.5, 2.0, 3.0))
    mgh = nib.MGHImage(VOXELS.astype(np.int16), TURNED)
    sound = [(ending, _saved(lambda path: sitk.WriteImage(image, str(path)), ending)) for ending in (".nrrd", ".mha")]
    sound += [(ending, _saved(lambda path: nib.save(mgh, path), ending)) for ending in (".mgh", ".mgz")]
    words = [b" 0", b"-1", b"nan", b"1e999", b"none", b"\n", b"\r\n", b" (1,0,0)", b"9" * 11, b"../../x", b"LIST"]
    one = several(of_bytes(words))
    lines = several(of_parts(one))

    def of(ending: str, data: bytes) -> st.SearchStrategy[Input]:
        mark = {".nrrd": b"\n\n", ".mha": b"LOCAL\n"}.get(ending)
        if mark is None:
            return made(data, one).map(lambda changed: (ending, changed))
        head, _, rest = data.partition(mark)
        whole = made(head.split(b"\n"), lines).map(lambda parts: b"\n".join(parts) + mark + rest)
        return st.one_of(whole, made(data, one)).map(lambda changed: (ending, changed))

    return Target("rasters", sound, st.one_of([of(*each) for each in sound]), _read_raster)


def _saved(save: Callable[[Path], object], ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending}"
        save(path)
        return path.read_bytes()


def _read_raster(path: Path, room: Room) -> None:
    from segpipe.common.nifti import read_header, read_volume, read_voxels, require_3d

    header = read_header(path)
    np.testing.assert_equal(read_voxels(header).shape, header.shape)
    np.testing.assert_equal(read_volume(header).shape, header.shape)
    require_3d(header)
