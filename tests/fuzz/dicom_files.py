"""DICOM: one slice of a series of three, or a multi-frame image alone."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import Any

import numpy as np
from guard import BrokenPromiseError, Room
from hypothesis import strategies as st
from mutation import Change, made, of_bytes, of_parts, several
from target import Target


def dicom(scratch: Path) -> Target:
    """One slice of a series of three, or a multi-frame image alone."""
    from pydicom.uid import RLELossless

    from dicom.make import Grid, enhanced, series, write

    grid = Grid(rows=4, columns=3, slices=3)
    images = series(grid)
    packed = copy.deepcopy(images[1])
    for image in (*images, packed):
        image.PixelData = (np.frombuffer(image.PixelData, "<i2") % 100 + 1000).astype("<i2").tobytes()
    packed.compress(RLELossless, generate_instance_uid=False)
    whole = enhanced(grid)
    whole.PixelData = (np.frombuffer(whole.PixelData, "<i2") % 100 + 1000).astype("<i2").tobytes()
    folder = scratch / "dicom"
    one, two, three = (path.read_bytes() for path in write(images, folder))
    rle = write([packed], folder, "rle")[0].read_bytes()
    frames = write([whole], folder, "frames")[0].read_bytes()
    sound = [(".dcm", two), (".rle.dcm", rle), (".frames.dcm", frames)]
    inputs = st.one_of([_of_elements(data).map(lambda changed, end=end: (end, changed)) for end, data in sound])

    def use(path: Path, room: Room) -> None:
        from segpipe.dicom import convert_folder, load_series, scan

        if not path.name.endswith(".frames.dcm"):
            (path.parent / "a.dcm").write_bytes(one)
            (path.parent / "c.dcm").write_bytes(three)
        for found in scan(path.parent).series:
            if found.state == "loaded":
                volume = load_series(found)
                _require_plausible(path.read_bytes(), volume.array)
        convert_folder(path.parent, room.output / "converted", overwrite=True)

    return Target("dicom", sound, inputs, use)


def _of_elements(data: bytes) -> st.SearchStrategy[bytes]:
    """The file with some elements of its data set given another value, left out, doubled or moved; or bytes of it."""
    start, parts = _split(data)
    values = [value for _, value in parts if len(value) <= 64]
    odd = [
        b"",
        b"0 ",
        b"-1",
        b"nan ",
        b"1e999 ",
        b"\\",
        b"1\\2\\3 ",
        b"\0\0",
        b"\xff\xff",
        b"\1\0",
        b"\x1b$B",
        b"9" * 64,
    ]
    kinds = [b"US", b"DS", b"IS", b"SQ", b"UI", b"OW", b"OB", b"UN", b"FD", b"PN", b"??"]

    def given(value: bytes) -> Change:
        return lambda part: (part[0], value)

    def named(vr: bytes) -> Change:
        return lambda part: (part[0][:4] + vr, part[1])

    def within(change: Change) -> Change:
        return lambda part: (part[0], change(part[1]))

    inside = several(of_bytes(), 1).map(within)
    part = st.one_of(st.sampled_from([*odd, *values]).map(given), st.sampled_from(kinds).map(named), inside)
    changed = made(parts, several(of_parts(part), 1))
    whole = changed.map(lambda parts: start + b"".join(_element(*each) for each in parts))
    return st.one_of(whole, whole, made(data, several(of_bytes(), 1)))


def _split(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Take a file in explicit little endian apart: preamble and meta group, then tag with VR, and value, of each."""
    at = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    start, parts = data[:at], []
    while at < len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
        length = struct.unpack_from("<I", data, at + 8)[0] if long else struct.unpack_from("<H", data, at + 6)[0]
        behind = at + (12 if long else 8)
        length = len(data) - behind if length == 0xFFFFFFFF else length
        parts.append((data[at : at + 6], data[behind : behind + length]))
        at = behind + length
    return start, parts


def _element(head: bytes, value: bytes) -> bytes:
    if head[4:6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"):
        endless = value.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
        return head + b"\0\0" + struct.pack("<I", 0xFFFFFFFF if endless else len(value)) + value
    return head + struct.pack("<H", len(value) % 65536) + value


_UNTOUCHED = {  # where these stand as they did, stored values are those of the image
    "bits": b"\x28\0\0\1US\2\0\x10\0\x28\0\1\1US\2\0\x10\0\x28\0\2\1US\2\0\x0f\0\x28\0\3\1US\2\0\1\0",
    "rescale": b"\x28\0\x52\x10DS\2\x000 \x28\0\x53\x10DS\2\x001 ",
    "syntax": b"1.2.840.10008.1.2.1\0",
    "photometric": b"MONOCHROME2 ",
}


def _require_plausible(data: bytes, voxels: np.ndarray[Any, Any]) -> None:
    """Sound slices hold 1000 to 1099 alone: where only the header was changed, so does every voxel."""
    marks = [data.count(mark) for mark in _UNTOUCHED.values()]
    pixels = data[-24:] if 24 <= len(data) < 2000 else b""
    kept = pixels and all(1000 <= value < 1100 for value in np.frombuffer(pixels, "<i2"))
    once = all(data.count(tag) == 1 for tag in (b"\xe0\x7f\x10\0", b"\x28\0\x52\x10"))
    if kept and once and marks == [1] * 4 and (voxels.min() < 1000 or voxels.max() > 1099):
        raise BrokenPromiseError(f"voxels from {voxels.min()} to {voxels.max()}, of 1000 to 1099")
