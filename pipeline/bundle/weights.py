"""Weights and arrays looked at as bytes: what a pickle would call is read from its opcodes; nothing is unpickled."""

from __future__ import annotations

import ast
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.bundle.finding import Finding, shown

_TYPES = "Bool Byte Char Short Int Long Half BFloat16 Float Double ComplexFloat ComplexDouble"
TENSORS = frozenset(
    [
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
        "torch Size", "torch device", "torch.storage UntypedStorage",
        *(f"torch {name}Storage" for name in _TYPES.split()),
    ]
)  # fmt: skip
_NEEDED = """
    ADDITEMS APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINSTRING BINUNICODE
    BINUNICODE8 BUILD DUP EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE FRAME GLOBAL LONG1 LONG4
    LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE POP POP_MARK PROTO REDUCE SETITEM
    SETITEMS SHORT_BINSTRING SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""
_OPCODES = frozenset(_NEEDED.split())
LARGEST_PICKLE = 2**28


def vet_torch_file(path: Path, file: str) -> Iterator[Finding]:
    """What keeps a file of `torch.save` from being a zip of plain tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _vet_torch_zip(archive, file)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        why = "not the zip format of torch.save: an older one is a bare pickle. Save it again with a current torch"
        yield Finding(file, "", shown(str(error)), why)


def _vet_torch_zip(archive: zipfile.ZipFile, file: str) -> Iterator[Finding]:
    members = archive.infolist()
    names = [member.filename for member in members]
    for name in (
        sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else ()
    ):
        yield Finding(file, name, name, "stands twice in the archive, so that two readers may see two files")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        yield Finding(file, "", file, "a compressed or encrypted member, which torch.save never writes")
        return
    if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names):
        yield Finding(file, "", file, "TorchScript, which is code and not plain tensors", file)
        return
    pickles = [member for member in members if not _is_storage(member.filename)]
    if not pickles:
        yield Finding(file, "", file, "no data.pkl in it, so no state dict")
    for member in pickles:
        if member.file_size > LARGEST_PICKLE:
            yield Finding(
                file, member.filename, f"{member.file_size} bytes", "too large to be looked through"
            )
        else:
            yield from vet_pickle(archive.read(member), file, member.filename)


def _is_storage(name: str) -> bool:
    parts = name.split("/")
    plain = ("version", "byteorder", ".format_version", ".storage_alignment", "serialization_id")
    return parts[-1] in plain or (len(parts) > 2 and parts[-2] == "data" and parts[-1].isdigit())


def vet_pickle(content: bytes, file: str, place: str) -> Iterator[Finding]:
    """What a pickle has beyond plain values and tensors, with the byte where it stands."""
    try:
        for opcode, argument, position in pickletools.genops(content):
            at = f"{place}: byte {position}"
            if opcode.name in ("GLOBAL", "INST") and argument not in TENSORS:
                named = str(argument).replace(" ", ".")
                yield Finding(file, at, named, f"a pickle that would call {named} when it is loaded")
            elif opcode.name not in _OPCODES:
                yield Finding(
                    file, at, opcode.name, "an opcode that a state dict of plain tensors does not need"
                )
    except Exception as error:  # noqa: BLE001 - bytes that nobody vouches for may break the parser anyhow
        yield Finding(file, place, shown(str(error)), "not a pickle that can be looked through")


def vet_array(stream: BinaryIO, file: str, place: str = "") -> Iterator[Finding]:
    """Whether a ``.npy`` holds pickled objects, from its header (numpy's format specification, NEP 1)."""
    head = stream.read(8)
    size = {1: "<H", 2: "<I", 3: "<I"}.get(head[6] if len(head) == 8 else 0)
    try:
        if not head.startswith(b"\x93NUMPY") or size is None:
            raise ValueError("no header of numpy")
        (length,) = struct.unpack(size, stream.read(struct.calcsize(size)))
        header = ast.literal_eval(
            stream.read(min(length, 10_000)).decode("utf-8" if head[6] == 3 else "latin-1")
        )
        kind = header["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, RecursionError, MemoryError) as error:
        yield Finding(file, place, shown(str(error)), "not an array that can be looked through")
        return
    if "O" in repr(kind):
        yield Finding(
            file, place, repr(kind), "an array of pickled objects: loading it would run what they name"
        )


def vet_arrays(path: Path, file: str) -> Iterator[Finding]:
    """The same for ``.npz``, an archive of such files."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    yield from vet_array(stream, file, member.filename)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        yield Finding(file, "", shown(str(error)), "not an archive that can be looked through")
