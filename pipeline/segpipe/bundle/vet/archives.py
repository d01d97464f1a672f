"""Zip archives read once and strictly: one that two programs could read as two different archives is no archive here.

A zip says everything twice, in front of each file and in the directory at its end, and programs differ in which of the
two they follow, where they look for the directory, and what they pass over in between. Here both have to agree to the
last byte: the file begins with its first member, the members follow one another without a gap or an overlap, the
directory follows the last one, and the one end record the directory. What is handed out is read at the places that were
checked, and is as long, and has the checksum, that was said. (APPNOTE.TXT 6.3.10; ``4.3`` ff. are its sections.)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

STORED, DEFLATED = 0, 8
ENCRYPTED, DESCRIPTOR, UTF8 = 1, 8, 0x800
_FLAGS = 0b110 | DESCRIPTOR | UTF8  # two bits say how hard deflate tried
_LOCAL, _DIRECTORY, _END, _END64, _LOCATOR, _FOLLOWS = (
    b"PK" + bytes(kind) for kind in ((3, 4), (1, 2), (5, 6), (6, 6), (6, 7), (7, 8))
)
_ZIP64, _OTHER_NAME = 0x0001, 0x7075
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # the number stands in a ZIP64 field
MOST_MEMBERS = 10_000
_LARGEST_DIRECTORY = 16 * 2**20
_CHUNK = 2**20


class BadArchiveError(Exception):
    """Why a file is no archive that every program reads alike: what was found, and of which member."""

    def __init__(self, found: str, member: str = "") -> None:
        super().__init__(found)
        self.found, self.member = found, member


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive, as both of its headers describe it.

    Attributes:
        name: its path; that of a folder ends in a slash.
        method: how it is packed, one of ``STORED`` and ``DEFLATED``.
        crc: CRC-32 of its content.
        packed: bytes in the archive.
        size: bytes of its content.
        start: where its packed bytes begin.
        mode: kind and permissions of a Unix system; 0 where it was packed on another.
        descriptor: whether its sizes are repeated behind it.
    """

    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int
    mode: int
    descriptor: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has a name only."""
        return self.name.endswith("/")


class Archive:
    """An open archive whose whole structure was checked.

    Args:
        stream: the file; it is read as long as members are.

    Raises:
        BadArchiveError: it is no zip file, or one that could be read in two ways.
        OSError: it cannot be read.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.members = _members(stream)

    def chunks(self, member: Member) -> Iterator[bytes]:
        """Yield the content of a member, which comes out as long, and with the checksum, as it was said.

        Raises:
            BadArchiveError: it does not.
        """
        crc = size = 0
        for chunk in self._inflated(member) if member.method == DEFLATED else self._packed(member):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            if size > member.size:
                break
            yield chunk
        if (size, crc) != (member.size, member.crc):
            raise BadArchiveError("its content is not what its size and checksum say", member.name)

    def read(self, member: Member) -> bytes:
        """Return the content of a member as a whole.

        Raises:
            BadArchiveError: as `chunks`.
        """
        return b"".join(self.chunks(member))

    def _packed(self, member: Member) -> Iterator[bytes]:
        for start in range(member.start, member.start + member.packed, _CHUNK):
            yield _read(self._stream, start, min(_CHUNK, member.start + member.packed - start))

    def _inflated(self, member: Member) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for packed in self._packed(member):
                while packed and not inflate.eof:
                    yield inflate.decompress(packed, _CHUNK)
                    packed = inflate.unconsumed_tail
                if inflate.eof and (packed or inflate.unused_data):
                    raise BadArchiveError("packed bytes behind the end of its content", member.name)
            while not inflate.eof and (rest := inflate.decompress(b"", _CHUNK)):
                yield rest
        except zlib.error as error:
            raise BadArchiveError(str(error), member.name) from error
        if not inflate.eof:
            raise BadArchiveError("its content has no end", member.name)


def _read(stream: BinaryIO, start: int, length: int) -> bytes:
    stream.seek(start)
    content = stream.read(length)
    if len(content) != length:
        raise BadArchiveError("the file ends before its time")
    return content


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory."""

    raw: bytes
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int


def _members(stream: BinaryIO) -> tuple[Member, ...]:
    count, start, end = _directory(stream)
    entries = sorted(_entries(_read(stream, start, end - start), count), key=lambda entry: entry.offset)
    bounds = [*(entry.offset for entry in entries), start]
    if bounds[0] != 0:
        raise BadArchiveError("bytes in front of the archive that belong to no member")
    return tuple(_member(stream, entry, following) for entry, following in zip(entries, bounds[1:], strict=True))


def _directory(stream: BinaryIO) -> tuple[int, int, int]:
    """Return how many members the directory has, where it begins and where it ends (4.3.14 to 4.3.16)."""
    whole = stream.seek(0, os.SEEK_END)
    tail = _read(stream, max(0, whole - 22 - _FULL16), min(whole, 22 + _FULL16))
    ends = [at for at in _places(tail, _END) if _reaches_end(tail, at)]
    if len(ends) != 1 or tail.rfind(_END) != ends[0]:
        raise BadArchiveError("no end of an archive at its end" if not ends else "two ends of an archive")
    at, end = ends[0], whole - len(tail) + ends[0]
    disk, first, here, count, size, start = struct.unpack_from("<4H2I", tail, at + 4)
    if end >= 20 and (locator := _read(stream, end - 20, 20)).startswith(_LOCATOR):
        fields = struct.unpack("<IQI", locator[4:])
        record = _read(stream, end - 76, 56) if end >= 76 else b""
        length, *_, disk64, first64, here64, count64, size64, start64 = struct.unpack(
            "<QHHIIQQQQ", record[4:] or bytes(52)
        )
        if not record.startswith(_END64) or length != 44 or fields != (0, end - 76, 1) or disk64 or first64:
            raise BadArchiveError("a ZIP64 end that is not one, or not where it should be")
        for short, long, full in (
            (here, here64, _FULL16),
            (count, count64, _FULL16),
            (size, size64, _FULL32),
            (start, start64, _FULL32),
        ):
            if short not in (full, long):
                raise BadArchiveError("the two ends of a ZIP64 archive do not say the same")
        here, count, size, start, end = here64, count64, size64, start64, end - 76
    if disk or first or here != count:
        raise BadArchiveError("a part of an archive in several files")
    if count > MOST_MEMBERS or size > _LARGEST_DIRECTORY:
        raise BadArchiveError(f"{count} files: more than {MOST_MEMBERS}, or too long a list of them")
    if start + size != end:
        raise BadArchiveError("the directory does not stand right before its end: bytes in front of or in the archive")
    return count, start, end


def _places(text: bytes, sought: bytes) -> Iterator[int]:
    at = text.find(sought)
    while at >= 0:
        yield at
        at = text.find(sought, at + 1)


def _reaches_end(tail: bytes, at: int) -> bool:
    return at + 22 <= len(tail) and at + 22 + struct.unpack_from("<H", tail, at + 20)[0] == len(tail)


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    """Yield the entries of the directory (4.3.12), which it has to consist of."""
    at = 0
    for number in range(count):
        if directory[at : at + 4] != _DIRECTORY or at + 46 > len(directory):
            raise BadArchiveError(f"entry {number} of the directory is none")
        (_made, _needed, flags, method, _time, _date, crc, packed, size, *lengths, disk, _inner, outer, offset) = (
            struct.unpack_from("<6H3I5H2I", directory, at + 4)
        )
        ends = [at + 46 + sum(lengths[:part]) for part in range(4)]
        raw, extra = directory[ends[0] : ends[1]], directory[ends[1] : ends[2]]
        if (at := ends[3]) > len(directory):
            raise BadArchiveError(f"entry {number} of the directory goes beyond its end")
        name = _name(raw, flags)
        size, packed, offset = _long([size, packed, offset], extra, name)
        if disk:
            raise BadArchiveError("in another file", name)
        if flags & ENCRYPTED or flags & ~_FLAGS or method not in (STORED, DEFLATED):
            raise BadArchiveError(f"flags {flags:#x}, method {method}: encrypted, or not stored or deflated", name)
        if (method == STORED and packed != size) or (name.endswith("/") and size):
            raise BadArchiveError(f"{size} bytes in {packed}, where these should be equal", name)
        yield _Entry(raw, name, flags, method, crc, packed, size, offset, outer >> 16)
    if at != len(directory):
        raise BadArchiveError("the directory goes on behind its last entry")


def _name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & UTF8 else "ascii")
    except UnicodeDecodeError as error:
        shown = raw.decode("utf-8", "backslashreplace")
        raise BadArchiveError("a name that is not ASCII, nor said to be UTF-8, or not UTF-8", shown) from error


def _long(numbers: Sequence[int], extra: bytes, name: str) -> list[int]:
    """Return numbers of a header, those that did not fit from the ZIP64 field among its further fields (4.5.3)."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        kind, length = struct.unpack_from("<HH", extra, at) if at + 4 <= len(extra) else (0, _FULL16)
        if at + 4 + length > len(extra) or kind in fields:
            raise BadArchiveError("further fields that are cut off, or twice there", name)
        fields[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    if _OTHER_NAME in fields:
        raise BadArchiveError("a second name in a further field", name)
    full, long = [number == _FULL32 for number in numbers], fields.get(_ZIP64, b"")
    if len(long) == 8 * len(numbers):  # all of them once more
        full = [True] * len(numbers)
    if len(long) != 8 * sum(full):
        raise BadArchiveError("a ZIP64 field that does not fit to its header", name)
    values = iter(struct.unpack(f"<{sum(full)}Q", long))
    found = [next(values) if elsewhere else number for number, elsewhere in zip(numbers, full, strict=True)]
    if any(number not in (_FULL32, other) for number, other in zip(numbers, found, strict=True)):
        raise BadArchiveError("a ZIP64 field that says something else than its header", name)
    return found


def _member(stream: BinaryIO, entry: _Entry, following: int) -> Member:
    """Return an entry whose other header, and all up to the next one, says the same (4.3.7, 4.3.9)."""
    head = _read(stream, entry.offset, 30)
    _needed, flags, method, _time, _date, crc, packed, size, named, further = struct.unpack("<5H3I2H", head[4:])
    names = _read(stream, entry.offset + 30, named + further)
    size, packed = _long([size, packed], names[named:], entry.name)
    start = entry.offset + 30 + named + further
    told = (entry.crc, entry.packed, entry.size)
    repeated = bool(flags & DESCRIPTOR)
    if (head[:4], names[:named], flags, method) != (_LOCAL, entry.raw, entry.flags, entry.method):
        raise BadArchiveError("its two headers differ in name, flags or method", entry.name)
    later = (0,) if repeated else ()  # what was not known yet
    if any(number not in (*later, known) for number, known in zip((crc, packed, size), told, strict=True)):
        raise BadArchiveError("its two headers differ in size or checksum", entry.name)
    behind = following - start - entry.packed
    if behind not in ((12, 16, 20, 24) if repeated else (0,)):
        raise BadArchiveError("bytes behind it that belong to no member, or to two", entry.name)
    if repeated:
        form = {12: "<III", 16: "<4sIII", 20: "<IQQ", 24: "<4sIQQ"}[behind]
        signature, *again = (b"", *struct.unpack(form, _read(stream, following - behind, behind)))[-4:]
        if tuple(again) != told or signature not in (b"", _FOLLOWS):
            raise BadArchiveError("what is repeated behind it differs in size or checksum", entry.name)
    return Member(entry.name, entry.method, *told, start, entry.mode, repeated)
