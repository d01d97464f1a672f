"""Is a data set written as its transfer syntax says? A reader that believes a wrong one takes lengths for values.

pydicom notices some of it, reads on in the other encoding, and says so in a warning; where the pixels begin is then
two pixels off. So it is looked at here, before anything else is read.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset

from segpipe.dicom.codecs import DECODED, DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE
from segpipe.dicom.frames import items
from segpipe.dicom.model import Problem
from segpipe.dicom.pixel_storage import UNDEFINED, VRS, not_as_declared

WORDS = {
    IMPLICIT_LITTLE: "implicit VR, little endian",
    EXPLICIT_LITTLE: "explicit VR, little endian",
    EXPLICIT_BIG: "explicit VR, big endian",
    DEFLATED: "deflated",
}
PEEK = 512
EXPLICIT_ITEM = re.compile(rb"\xfe\xff\x00\xe0.{8}(?:" + b"|".join(sorted(VRS)) + rb")", re.DOTALL)
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@dataclass(frozen=True)
class Misdeclared:
    """A data set that is written otherwise than declared.

    Attributes:
        dataset: its header, read as it is written, to know which series it is of.
        problem: why its pixels are not read.
    """

    dataset: FileDataset
    problem: Problem


def misdeclared(stream: BinaryIO) -> Misdeclared | None:
    """Look at how the first element after the file's meta information is written.

    Returns:
        None where it is as declared, where nothing is declared, or where it cannot be told.
    """
    declared, start = _meta_information(stream)
    if declared not in DECODED:
        return None
    expected = declared if declared in (IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED) else EXPLICIT_LITTLE
    stream.seek(start)
    written = _written(stream.read(PEEK), expected == DEFLATED)
    if written in ("", expected):
        return None
    stream.seek(start)
    content = stream.read()
    if written == DEFLATED:
        content = zlib.decompress(content, -zlib.MAX_WBITS)
    dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    problem = not_as_declared(f"a data set that is {WORDS[written]}", declared, f"{WORDS[expected]},")
    return Misdeclared(dataset, problem)


def groups_misread(dataset: Dataset, declared: str) -> Problem | None:
    """Return the problem of functional groups that cannot be read as declared; pydicom would pass over them."""
    if all(_is_whole(item) for name in FUNCTIONAL_GROUPS for item in items(dataset, name)):
        return None
    return not_as_declared("functional groups that are written otherwise", declared, "all of the data set written")


def has_explicit_items(stream: BinaryIO) -> bool:
    """Return whether a sequence of a file with implicit VR is written with explicit VR, which no reader gets over."""
    if _meta_information(stream)[0] != IMPLICIT_LITTLE:
        return False
    stream.seek(0)
    return EXPLICIT_ITEM.search(stream.read()) is not None


def _is_whole(dataset: Dataset) -> bool:
    """Return whether every value is as long as it says; of a wrong encoding lengths are wrong."""
    for element in list(dataset.values()):
        if isinstance(element, RawDataElement):
            if element.length not in (UNDEFINED, len(element.value or b"")):
                return False
            try:
                element = dataset[element.tag]
            except Exception:  # noqa: BLE001 - pydicom raises what it likes; a broken value is an absent one
                continue
        if element.VR == "SQ" and not all(_is_whole(item) for item in element.value or ()):
            return False
    return True


def _meta_information(stream: BinaryIO) -> tuple[str, int]:
    """Return the declared transfer syntax (empty without one), and where the data set begins (PS3.10 7.1)."""
    stream.seek(128)
    start = 132 if stream.read(4) == b"DICM" else 0
    declared = ""
    stream.seek(start)
    while len(head := stream.read(8)) == 8 and head[:2] == b"\x02\0":
        element, vr, length = struct.unpack("<2xH2sH", head)
        if vr in (b"OB", b"UN", b"UT"):
            length = struct.unpack("<L", stream.read(4).ljust(4, b"\0"))[0]
        value = stream.read(length)
        if element == 0x0010:
            declared = value.decode("latin-1").strip("\0 ")
        start = stream.tell()
    return declared, start


def _written(head: bytes, inflate_first: bool = False) -> str:
    """Return the encoding in which a data set begins, as a transfer syntax; empty where it cannot be told."""
    plain = _written_plainly(head)
    if plain and not inflate_first:
        return plain
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, PEEK)
    except zlib.error:
        return plain
    return DEFLATED if _written_plainly(inflated) else plain


def _written_plainly(head: bytes) -> str:
    if len(head) < 8 or (head[0] == 0) == (head[1] == 0):  # the first groups are 0004 to 00FF
        return ""
    if head[4:6] in VRS:
        return EXPLICIT_BIG if head[0] == 0 else EXPLICIT_LITTLE
    return IMPLICIT_LITTLE if head[1] == 0 and int.from_bytes(head[4:8], "little") < 1 << 16 else ""
