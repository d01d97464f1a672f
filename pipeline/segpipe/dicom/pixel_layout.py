"""Do the pixels of a file have the length, frames and bits that its header says? Nothing is decoded for it.

Length, offset tables, number of frames and what compressed frames say of themselves have to agree with the header:
what is longer than it says is as wrong as what is shorter.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from pydicom import Dataset

from segpipe.dicom.codestream import JPEG_FAMILIES, Codestream, begins_frame, family_meant, family_of, read_codestream
from segpipe.dicom.frames import whole_number
from segpipe.dicom.model import Problem

END_OF_STREAM = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
PADDING = b"\0\xff"  # what writers fill a fragment with to an even length
CODESTREAM_HEADER = 4096  # bytes, in which a frame mostly says its matrix; the decoding looks at all of it
CONTRADICTS = "the file contradicts itself: export the series again from its source"
AGAIN = "copy the file again from where it came from"
NOT_ITS_HEADER = "pixels and header are not of one image: export the series again from its source"


@dataclass(frozen=True)
class Layout:
    """What a header says of its pixels, where absent values have the standard's or the usual meaning."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool

    @classmethod
    def of(cls, dataset: Dataset) -> Layout:
        def number(name: str, otherwise: int) -> int:
            value = whole_number(dataset, name)
            return otherwise if value is None else value

        allocated = number("BitsAllocated", 16)
        stored = number("BitsStored", allocated)
        return cls(
            number("Rows", 0),
            number("Columns", 0),
            number("SamplesPerPixel", 1) or 1,
            number("NumberOfFrames", 1) or 1,
            allocated,
            stored,
            number("HighBit", stored - 1),
            bool(number("PixelRepresentation", 0)),
        )

    @property
    def bytes_needed(self) -> int:
        """Bytes of the pixels when they are not compressed, without padding."""
        return (self.rows * self.columns * self.samples * self.frames * self.allocated + 7) // 8

    @property
    def note(self) -> str:
        """What a user should know of values that are read all the same; empty where there is nothing."""
        lowest = self.high + 1 - self.stored
        if self.stored >= self.allocated or not lowest:
            return ""
        return f"HighBit {self.high} of {self.stored} bits stored: values are read from bits {lowest} to {self.high}"

    def length_problem(self, there: int, declared: int) -> Problem | None:
        """Judge pixels that are not compressed: ``declared`` bytes by their element, ``there`` of them in the file."""
        need = self.bytes_needed
        expected = f"{need} bytes of pixels" if need > 0 else "pixels"
        if there < need or there < declared:
            return Problem("truncated", f"{there} bytes of pixels", expected, AGAIN)
        if need <= 0 or declared <= need + 1:  # one byte makes it even
            return None
        words = f"{self.rows} x {self.columns} pixels of {self.samples * self.allocated} bits in {self.frames} frame(s)"
        return Problem("pixel_layout", f"{declared} bytes of pixels", f"{need}: {words}", NOT_ITS_HEADER)

    def bits_problem(self, high_bit_is_read: bool) -> Problem | None:
        """Judge BitsStored and HighBit: where a value lies among its bits.

        Args:
            high_bit_is_read: values can be read wherever HighBit says they are.
        """
        high, stored, allocated = self.high, self.stored, self.allocated
        found = f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}"
        if stored > allocated or high >= allocated:
            return Problem("pixel_layout", found, "values that fit into their bits", NOT_ITS_HEADER)
        if stored < allocated and (high < stored - 1 or (high != stored - 1 and not high_bit_is_read)):
            return Problem("pixel_layout", found, f"HighBit {stored - 1}, the last of the bits stored", NOT_ITS_HEADER)
        return None

    def codestream_problem(self, codestream: Codestream | None) -> Problem | None:
        """Judge what a compressed frame says of itself."""
        if codestream is None:
            return None
        if codestream.rows is None:
            planes = self.samples * self.allocated // 8
            if codestream.samples == planes:
                return None
            found, expected = f"{codestream.samples} run-length segment(s) a frame", f"{planes}: one a byte of a pixel"
            return Problem("pixel_layout", found, expected, NOT_ITS_HEADER)
        theirs = (codestream.rows, codestream.columns, codestream.samples)
        lost_sign = self.signed and not codestream.signed and codestream.bits < self.stored
        if theirs == (self.rows, self.columns, self.samples) and codestream.bits <= self.allocated and not lost_sign:
            return None
        found = (
            "a compressed frame of {} rows, {} columns, {} sample(s)".format(*theirs) + f" of {codestream.bits} bits"
        )
        sign = "signed " if lost_sign else ""
        expected = (
            f"{self.rows} rows, {self.columns} columns, {self.samples} {sign}sample(s) of {self.stored} bits "
            f"in {self.allocated}"
        )
        return Problem("pixel_layout", found, expected, NOT_ITS_HEADER)


class Fragment(NamedTuple):
    """Where a part of the compressed pixels lies in its file: its item, its value, and how long that is."""

    item: int
    value: int
    length: int
    begins: bool


def encapsulation_problem(stream: BinaryIO, size: int, syntax: str, layout: Layout, header: Dataset) -> Problem | None:
    """Judge the items of encapsulated pixels (PS3.5 A.4), of which ``stream`` is at the first, the offset table."""
    base, table, fragments, whole = _walk(stream, size, syntax)
    frames = layout.frames
    if fragments:
        stream.seek(fragments[0].value)
        found, meant = family_of(stream.read(min(fragments[0].length, 8))), family_meant(syntax)
        if found and meant and found != meant:
            words = f"pixels that are compressed as {found}"
            return Problem(
                "transfer_syntax", words, f"{meant}, as the transfer syntax {syntax} of the file says", CONTRADICTS
            )
    if not whole or len(fragments) < frames:
        found = f"{len(fragments)} complete compressed part(s)"
        return Problem("truncated", found, f"{frames}, and an end mark", AGAIN)
    begun = [fragment for fragment in fragments if fragment.begins] or fragments[:1]
    if len(begun) != frames:
        return Problem(
            "pixel_layout", f"{len(begun)} compressed frame(s)", f"{frames} by NumberOfFrames", NOT_ITS_HEADER
        )
    begins = [fragment.item - base for fragment in begun]
    extended = _value(header, "ExtendedOffsetTable")
    for offsets, width in ((table, 4), (extended, 8)):
        if offsets and _numbers(offsets, width, frames) != begins:
            found = f"an offset table of {len(offsets) // width} frame(s)"
            return Problem("pixel_layout", found, f"where each of {frames} frame(s) begins", NOT_ITS_HEADER)
    lengths = _numbers(_value(header, "ExtendedOffsetTableLengths"), 8, frames) if extended else []
    if extended and [(length + 1) // 2 for length in lengths] != [fragment.length // 2 for fragment in begun]:
        return Problem("pixel_layout", "a table of other lengths", "the lengths of the frames", NOT_ITS_HEADER)
    stream.seek(begun[0].value)
    head = stream.read(min(begun[0].length, CODESTREAM_HEADER))
    return layout.codestream_problem(read_codestream(head, syntax))


def _walk(stream: BinaryIO, size: int, syntax: str) -> tuple[int, bytes, list[Fragment], bool]:
    """Return where offsets count from, the basic offset table, the complete fragments, and whether nothing is cut."""
    base, table, fragments = 0, b"", list[Fragment]()
    end = 0
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        value = stream.tell()
        if (group, element) == (0xFFFE, 0xE0DD):
            return base, table, fragments, _codestream_ends(stream, end, syntax)
        if (group, element) != (0xFFFE, 0xE000) or value + length > size:
            return base, table, fragments, False
        end = value + length
        if not base:
            base, table = end, stream.read(length)
        else:
            begins = begins_frame(stream.read(min(length, 8)), syntax)
            fragments.append(Fragment(value - 8, value, length, begins))
            stream.seek(end)
    # some writers leave the end mark out
    return base, table, fragments, not head and _codestream_ends(stream, end, syntax)


def _codestream_ends(stream: BinaryIO, end: int, syntax: str) -> bool:
    """Return whether the last fragment of a kind of JPEG, which ends at ``end``, holds the end of its stream."""
    if not syntax.startswith(JPEG_FAMILIES):
        return True
    stream.seek(max(end - 16, 0))
    return stream.read(16).rstrip(PADDING).endswith(END_OF_STREAM)


def _value(header: Dataset, name: str) -> bytes:
    value = header.get(name)
    return value if isinstance(value, bytes) else b""


def _numbers(table: bytes, width: int, count: int) -> list[int]:
    """Return the numbers of a table of so many; none of a table of another length, however long."""
    if len(table) != width * count:
        return []
    return [int.from_bytes(table[at : at + width], "little") for at in range(0, len(table), width)]
