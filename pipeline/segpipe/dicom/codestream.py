"""What a compressed frame says of itself: its matrix and bits, which the header has to agree with.

A decoder that is told another matrix fills it from a frame of any size, so nothing else shows that they differ.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

RLE = "1.2.840.10008.1.2.5"
JPEG_FAMILIES = "1.2.840.10008.1.2.4."  # JPEG, JPEG-LS and JPEG 2000
JPEG_2000_BEGINS = b"\xff\x4f\xff\x51"  # SOC, SIZ
BOX_BEGINS = b"\0\0\0\x0cjP  "  # JPEG 2000 in a file format of its own
NO_LENGTH = frozenset([0x01, *range(0xD0, 0xDA)])
START_OF_FRAME = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}
START_OF_SCAN = 0xDA
JPEG_LS_FRAME = 0xF7
JPEG_TABLES = (START_OF_FRAME - {JPEG_LS_FRAME}) | {0xC4, 0xDB}


@dataclass(frozen=True)
class Codestream:
    """A frame by its own words.

    Attributes:
        rows, columns: None of RLE, which does not know them.
        samples: a pixel; of RLE bytes a pixel.
        bits: a sample.
        signed: of JPEG 2000, which alone knows it.
    """

    rows: int | None
    columns: int | None
    samples: int
    bits: int
    signed: bool = False


def begins_frame(head: bytes, syntax: str) -> bool:
    """Return whether a fragment that starts with these eight bytes is the first of a frame."""
    if syntax == RLE:  # the first segment follows a table of 64 bytes
        count, first = struct.unpack("<LL", head.ljust(8, b"\0"))
        return 1 <= count <= 15 and first == 64
    return head.startswith((b"\xff\xd8", JPEG_2000_BEGINS, BOX_BEGINS))


def family_of(head: bytes) -> str:
    """Return which codec wrote a frame that starts so, by PS3.5's name; empty where it cannot be told."""
    if head.startswith((JPEG_2000_BEGINS, BOX_BEGINS)):
        return "JPEG 2000"
    if head.startswith(b"\xff\xd8\xff") and len(head) > 3:  # with others both may begin
        return "JPEG-LS" if head[3] == JPEG_LS_FRAME else "JPEG" if head[3] in JPEG_TABLES else ""
    return "RLE" if begins_frame(head, RLE) else ""


def family_meant(syntax: str) -> str:
    """Return which codec a transfer syntax stands for, by PS3.5's name; empty where it is another."""
    if syntax == RLE:
        return "RLE"
    number = syntax.removeprefix(JPEG_FAMILIES)
    if number == syntax or not number.isdigit() or not 50 <= int(number) < 94:
        return ""
    return "JPEG" if int(number) < 80 else "JPEG-LS" if int(number) < 90 else "JPEG 2000"


def read_codestream(stream: bytes, syntax: str) -> Codestream | None:
    """Read what the beginning of a frame says (ITU T.81 B.2.2, T.87 C.2.2, T.800 A.5.1, PS3.5 G.5).

    Returns:
        None where ``stream`` does not reach that far, or is damaged.
    """
    try:
        if syntax == RLE:
            return Codestream(None, None, struct.unpack_from("<L", stream)[0], 8)
        at = stream.find(JPEG_2000_BEGINS)
        return _jpeg_2000(stream, at) if at >= 0 else _jpeg(stream)
    except (struct.error, IndexError):
        return None


def _jpeg_2000(stream: bytes, at: int) -> Codestream:
    right, bottom, left, top = struct.unpack_from(">4L", stream, at + 8)
    samples, depth = struct.unpack_from(">HB", stream, at + 40)
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, depth > 0x7F)


def _jpeg(stream: bytes) -> Codestream | None:
    at = 2
    while stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == START_OF_SCAN:
            return None
        if marker in START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", stream, at + 4)
            return Codestream(rows, columns, samples, bits)
        if marker == 0xFF:
            at += 1
        elif marker in NO_LENGTH:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None
