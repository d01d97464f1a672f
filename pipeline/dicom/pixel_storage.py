"""Where a file's pixels lie, whether they are all there, and whether they can be decoded; nothing is decoded."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

import pydicom
from pydicom.uid import UID

from pipeline.dicom.frames import text, whole_number

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)
LOSSY = ("4.50", "4.51", "4.81", "4.91", "4.93", "4.100", "4.101", "4.102", "4.103", "4.203")
PIXEL_TAGS = {(0x7FE0, 0x0010): 1, (0x7FE0, 0x0008): 1, (0x7FE0, 0x0009): 1}
UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class PixelStorage:
    """Pixels as stored.

    Attributes:
        transfer_syntax: UID.
        offset: of the first byte of the element's value in the file; -1 where that is not known.
        length: bytes from there on that belong to the value; -1 to the end of the file.
        missing: what was found where pixels are missing; empty where all are there.
        expected: what should have been there.
        decodable: by the libraries installed here.
    """

    transfer_syntax: str
    offset: int = -1
    length: int = -1
    missing: str = ""
    expected: str = ""
    decodable: bool = True


def is_lossy(transfer_syntax: str) -> bool:
    """Whether this transfer syntax always loses values."""
    return transfer_syntax.startswith("1.2.840.10008.1.2.4.") and transfer_syntax.endswith(LOSSY)


def find_pixels(dataset: FileDataset, stream: BinaryIO) -> PixelStorage:
    """Look at what follows a header read with ``stop_before_pixels`` from ``stream``."""
    syntax = text(dataset.file_meta, "TransferSyntaxUID") or _guessed_syntax(dataset)
    decodable = _decodable(syntax)
    rows, columns = whole_number(dataset, "Rows") or 0, whole_number(dataset, "Columns") or 0
    frames = whole_number(dataset, "NumberOfFrames") or 1
    bits = rows * columns * (whole_number(dataset, "SamplesPerPixel") or 1) * frames
    need = (bits * (whole_number(dataset, "BitsAllocated") or 16) + 7) // 8
    expected = f"{need} bytes of pixels"
    if syntax == DEFLATED:
        return _deflated(stream, need)
    value = _value_of_pixels(dataset, stream)
    if value is None:
        return PixelStorage(syntax, missing="no pixels: the file ends before them", expected=expected)
    offset, length = value
    there = os.fstat(stream.fileno()).st_size - offset
    if length == UNDEFINED:
        fragments, whole = _fragments(stream, there + offset)
        if not whole or fragments < frames:
            words = f"{fragments} complete compressed frame(s)"
            return PixelStorage(syntax, offset, -1, words, f"{frames}, and an end mark", decodable)
        return PixelStorage(syntax, offset, -1, decodable=decodable)
    missing = f"{min(length, there)} bytes of pixels" if min(length, there) < need else ""
    return PixelStorage(syntax, offset, length, missing, expected, decodable)


def _guessed_syntax(dataset: FileDataset) -> str:
    implicit, little = dataset.original_encoding
    return NATIVE[0] if implicit else NATIVE[1] if little else NATIVE[2]


def _value_of_pixels(dataset: FileDataset, stream: BinaryIO) -> tuple[int, int] | None:
    """Offset and length of the element that the reading stopped at, or None where that is no pixel element."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(12)
    if len(head) < 12 or struct.unpack(order + "HH", head[:4]) not in PIXEL_TAGS:
        return None
    if implicit:
        return stream.seek(-4, os.SEEK_CUR), struct.unpack(order + "L", head[4:8])[0]
    return stream.tell(), struct.unpack(order + "L", head[8:12])[0]


def _fragments(stream: BinaryIO, size: int) -> tuple[int, bool]:
    """Walk the items of encapsulated pixels (PS3.5 A.4): complete fragments, and whether nothing is cut off."""
    count = -1  # the first item is the table of offsets
    while True:
        head = stream.read(8)
        if len(head) < 8:
            return max(count, 0), not head and count > 0  # some writers leave the end mark out
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return max(count, 0), True
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > size:
            return max(count, 0), False
        stream.seek(length, os.SEEK_CUR)
        count += 1


def _deflated(stream: BinaryIO, need: int) -> PixelStorage:
    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True)
    there = len(dataset.get("PixelData", None) or b"")
    missing = f"{there} bytes of pixels" if there < need else ""
    return PixelStorage(DEFLATED, missing=missing, expected=f"{need} bytes of pixels")


@lru_cache
def _decodable(transfer_syntax: str) -> bool:
    if transfer_syntax in NATIVE:
        return True
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(UID(transfer_syntax)).is_available
    except NotImplementedError:
        return False
