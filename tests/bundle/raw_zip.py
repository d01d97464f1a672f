"""Zip archives made byte by byte, so that each place of them can say what it should not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from zipfile import ZipFile


@dataclass
class Part:
    """A member: what both headers say of it, and what one of them says instead."""

    name: bytes
    content: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0o100644
    behind: bytes = b""
    local: dict[str, bytes | int] = field(default_factory=dict)
    central: dict[str, bytes | int] = field(default_factory=dict)


def raw_zip(
    parts: Iterable[Part], *, front: bytes = b"", gap: bytes = b"", shift: int = 0, comment: bytes = b""
) -> bytes:
    """Return an archive of some members; bytes in front of it and of its directory, and shifted offsets, spoil it."""
    body, directory, count = front, b"", 0
    for part in parts:
        count += 1
        packed = _deflated(part.content) if part.method == 8 else part.content
        said: dict[str, bytes | int] = {
            "name": part.name,
            "flags": part.flags,
            "method": part.method,
            "crc": zlib.crc32(part.content),
            "packed": len(packed),
            "size": len(part.content),
            "extra": b"",
            "offset": len(body) - shift,
        }
        directory += _header({**said, **part.central}, part.mode)
        body += _header({**said, **part.local}) + packed + part.behind
    body += gap
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body) - shift, len(comment))
    return body + directory + end + comment


def parts_of(archive: bytes) -> list[Part]:
    """Return the members of an archive."""
    with ZipFile(BytesIO(archive)) as found:
        return [Part(member.filename.encode(), found.read(member)) for member in found.infolist()]


def descriptor(content: bytes) -> bytes:
    """Return what stands behind a stored member whose sizes were not known in front of it."""
    return struct.pack("<4s3I", b"PK\7\10", zlib.crc32(content), len(content), len(content))


def zip64_end(archive: bytes, **other: int) -> bytes:
    """Return an archive with a ZIP64 end as well, which may say other numbers."""
    count, size, start = struct.unpack("<H2I", archive[-12:-2])
    said = {"count": count, "size": size, "start": start, **other}
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, said["count"], said["count"], said["size"], said["start"]
    )
    return archive[:-22] + record + struct.pack("<4sIQI", b"PK\6\7", 0, len(archive) - 22, 1) + archive[-22:]


def _header(said: dict[str, bytes | int], mode: int | None = None) -> bytes:
    name, extra = said["name"], said["extra"]
    assert isinstance(name, bytes) and isinstance(extra, bytes)
    numbers = (said["flags"], said["method"], 0, 33, said["crc"], said["packed"], said["size"], len(name), len(extra))
    if mode is None:
        return struct.pack("<4s5H3I2H", b"PK\3\4", 20, *numbers) + name + extra
    tail = (0, 0, 0, mode << 16, said["offset"])
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", 0x314, 20, *numbers, *tail) + name + extra


def _deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(content) + deflate.flush()
