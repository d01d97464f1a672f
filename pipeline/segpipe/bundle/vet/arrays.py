"""Arrays of numpy looked at by their headers: numbers, as many as the header says, and nothing behind them.

The header of a ``.npy`` is a Python literal (NEP 1), in which a type can be spelt in more ways than numpy ever writes
it; only what numpy writes, for numbers and text, is taken.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from segpipe.bundle.vet.archives import Archive, BadArchiveError
from segpipe.bundle.vet.bundle_files import HIGHEST_RATIO, TWO_ARCHIVES, Finding, shown

_LONGEST_HEADER = 10_000  # numpy refuses longer ones as well
_LENGTH = {b"\x93NUMPY\1\0": "<H", b"\x93NUMPY\2\0": "<I", b"\x93NUMPY\3\0": "<I"}
_PLAIN = re.compile(r"[<>|]([biufcSUVmM?])(\d{0,6})(\[\d{0,4}[A-Za-zμ]{1,2}\])?", re.ASCII)
_LARGEST_PACKED = 2**30  # beyond it a mask of zeros is taken for a bomb
_MOST_DIMENSIONS = 64
_OBJECTS = "an array that is not of plain numbers: loading objects would run what they name"
_NO_ARRAY = "not an array that can be looked through"


class _NotPlainError(Exception):
    """The type of an array that is not one of numbers."""


def vet_array_file(path: Path, file: str) -> Iterator[Finding]:
    """Yield what keeps a ``.npy`` from being an array of numbers."""
    with path.open("rb") as stream:
        yield from _vet_array(iter(lambda: stream.read(2**16), b""), path.stat().st_size, file, "")


def vet_arrays(path: Path, file: str) -> Iterator[Finding]:
    """Yield the same of an ``.npz``, an archive of such files."""
    try:
        with path.open("rb") as stream:
            archive = Archive(stream)
            for member in archive.members:
                if not member.name.endswith(".npy"):
                    yield Finding(file, member.name, member.name, "not an array, which an .npz consists of")
                elif member.size > _LARGEST_PACKED and member.size > HIGHEST_RATIO * member.packed:
                    text = f"{member.size} bytes in {member.packed}"
                    yield Finding(file, member.name, text, "it would unpack to far more than it is: a zip bomb")
                else:
                    yield from _vet_array(archive.chunks(member), member.size, file, member.name)
            names = [member.name.casefold() for member in archive.members]
            if len(set(names)) < len(names):
                yield Finding(file, "", file, "two arrays of one name, or of one where case does not count")
    except BadArchiveError as error:
        yield Finding(file, error.member, shown(error.found), TWO_ARCHIVES)


def _vet_array(chunks: Iterable[bytes], size: int, file: str, place: str) -> Iterator[Finding]:
    chunks = iter(chunks)
    head = b""
    while len(head) < 12 + _LONGEST_HEADER and (chunk := next(chunks, b"")):
        head += chunk
    try:
        start, header = _header(head)
        expected = start + _item_bytes(header["descr"]) * math.prod(header["shape"])
    except _NotPlainError as error:
        yield Finding(file, place, shown(str(error)), _OBJECTS)
        return
    except (ValueError, SyntaxError, TypeError, struct.error, RecursionError, MemoryError) as error:
        yield Finding(file, place, shown(str(error)), _NO_ARRAY)
        return
    if expected != size:
        yield Finding(file, place, f"{size} bytes, where its header says {expected}", _NO_ARRAY)


def _header(head: bytes) -> tuple[int, dict[str, Any]]:
    """Return where the numbers begin, and the header: each of three keys once, and nothing around them."""
    form = _LENGTH.get(head[:8])
    if form is None:
        raise ValueError("no header of numpy")
    start = 8 + struct.calcsize(form)
    (length,) = struct.unpack_from(form, head, 8)
    if length > _LONGEST_HEADER or start + length > len(head):
        raise ValueError(f"a header of {length} bytes")
    text = head[start : start + length].decode("utf-8" if head[6] == 3 else "latin-1").rstrip(" \n")
    if not text.isprintable():
        raise ValueError("a header of more than one line")
    written = ast.parse(text, mode="eval").body
    keys = [ast.literal_eval(key) for key in written.keys if key] if isinstance(written, ast.Dict) else []
    if sorted(keys) != ["descr", "fortran_order", "shape"]:
        raise ValueError("a header without descr, fortran_order and shape, each once")
    header: dict[str, Any] = ast.literal_eval(written)
    shape = header["shape"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError(f"the shape {shape!r}")
    if type(header["fortran_order"]) is not bool:
        raise ValueError("fortran_order is neither True nor False")
    return start + length, header


def _item_bytes(kind: Any) -> int:
    """Return the size of one item of a type as numpy writes it, alone or in a list of named fields."""
    if isinstance(kind, list):
        if not kind or not all(isinstance(field, tuple) and len(field) in (2, 3) for field in kind):
            raise _NotPlainError(repr(kind))
        shapes = [field[2] if len(field) == 3 else () for field in kind]
        return sum(_item_bytes(field[1]) * math.prod(shape) for field, shape in zip(kind, shapes, strict=True))
    match = _PLAIN.fullmatch(kind) if isinstance(kind, str) else None
    if match is None:
        raise _NotPlainError(repr(kind))
    return int(match[2] or 1) * (4 if match[1] == "U" else 1)
