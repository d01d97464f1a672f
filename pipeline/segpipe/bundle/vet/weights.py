"""Weights looked at as bytes: plain tensors, and nothing that a program would run or look for elsewhere.

What a pickle would call is read from its opcodes, of which a state dict needs a few.
"""

from __future__ import annotations

import json
import math
import mmap
import pickletools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segpipe.bundle.vet.archives import STORED, Archive, BadArchiveError, Member
from segpipe.bundle.vet.bundle_files import TWO_ARCHIVES, Finding, shown

_TYPES = "Bool Byte Char Short Int Long Half BFloat16 Float Double ComplexFloat ComplexDouble"
TENSORS = frozenset(
    [
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        "torch.storage UntypedStorage",
        *(f"torch {name}Storage" for name in _TYPES.split()),
    ]
)
_NEEDED = """
    ADDITEMS APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINSTRING BINUNICODE
    BINUNICODE8 BUILD DUP EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE FRAME GLOBAL LONG1 LONG4
    LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE POP POP_MARK PROTO REDUCE SETITEM
    SETITEMS SHORT_BINSTRING SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""
_OPCODES = frozenset(_NEEDED.split())
LARGEST_PICKLE = 4 * 2**20  # some thousands of tensors take one
MOST_OPCODES = 1_000_000  # of which they take a third
MOST_IN_PICKLE = 20  # findings, after which it is not read on
_BESIDE = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
_STORAGE = re.compile(r"data/\d+", re.ASCII)
_OLDER = "not the zip format of torch.save: an older one is a bare pickle. Save it again with a current torch"
_LARGEST_HEADER = 100_000_000  # as safetensors has it
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# An entry of a tensor's external_data (onnx.proto: StringStringEntryProto) with the key "location"
_ELSEWHERE = re.compile(rb"\x0a(?:\x08|\x88\x80*\x00)location")


def vet_torch_file(path: Path, file: str) -> Iterator[Finding]:
    """Yield what keeps a file of `torch.save` from being a zip of plain tensors."""
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"  # as torch decides
        try:
            yield from _vet_torch_zip(Archive(stream), file)
        except BadArchiveError as error:
            yield Finding(file, error.member, shown(error.found), TWO_ARCHIVES if zipped else _OLDER)


def _vet_torch_zip(archive: Archive, file: str) -> Iterator[Finding]:
    members = archive.members
    names = [member.name for member in members]
    if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names):
        yield Finding(file, "", file, "TorchScript, which is code and not plain tensors", file)
        return
    for member in members:
        if member.method != STORED:
            yield Finding(file, member.name, member.name, "a compressed member, which torch.save never writes")
            return
    folder = names[0].partition("/")[0] if names else ""
    inside = [name.removeprefix(f"{folder}/") for name in names]
    if len({name.casefold() for name in inside}) < len(names):
        yield Finding(file, "", file, "a name stands twice in the archive, so that two readers may see two files")
    if "data.pkl" not in inside:
        yield Finding(file, "", file, "no data.pkl in it, so no state dict")
    for member, name in zip(members, inside, strict=True):
        if name == "data.pkl":
            yield from _vet_data(archive, member, file)
        elif name not in _BESIDE and not _STORAGE.fullmatch(name):
            yield Finding(file, member.name, member.name, "a member that torch.save does not write")


def _vet_data(archive: Archive, member: Member, file: str) -> Iterator[Finding]:
    if member.size > LARGEST_PICKLE:
        yield Finding(file, member.name, f"{member.size} bytes", "too large to be looked through")
    else:
        yield from vet_pickle(archive.read(member), file, member.name)


def vet_pickle(content: bytes, file: str, place: str) -> Iterator[Finding]:
    """Yield what a pickle has beyond plain values and tensors, with the byte where it stands."""
    found = end = 0
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            at, end = f"{place}: byte {position}", (position or 0) + 1
            if number == MOST_OPCODES:
                yield Finding(file, at, f"more than {number} opcodes", "too large to be looked through")
                return
            if opcode.name in ("GLOBAL", "INST") and argument not in TENSORS:
                named = shown(str(argument).replace(" ", "."))
                yield Finding(file, at, named, f"a pickle that would call {named} when it is loaded")
            elif opcode.name not in _OPCODES:
                yield Finding(file, at, opcode.name, "an opcode that a state dict of plain tensors does not need")
            else:
                continue
            if (found := found + 1) == MOST_IN_PICKLE:
                yield Finding(file, at, f"{found} found", "there may be more: it is not read on")
                return
    except Exception as error:  # noqa: BLE001 - bytes that nobody vouches for may break the parser anyhow
        yield Finding(file, place, shown(str(error)), "not a pickle that can be looked through")
        return
    if end != len(content):
        yield Finding(file, f"{place}: byte {end}", f"{len(content) - end} bytes", "more behind the end of the pickle")


def vet_safetensors(path: Path, file: str) -> Iterator[Finding]:
    """Yield what keeps a file from being of safetensors' format: a header, and tensors that follow one another."""
    whole = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(whole - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length).decode(), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("no header")
        header.pop("__metadata__", None)
        end = 0
        for start, stop, name, size in sorted(_places(header)):
            if start != end or stop - start != size:
                raise ValueError(f"{name} does not lie where the tensor before it ends, or is not as long as it says")
            end = stop
        if 8 + length + end != whole:
            raise ValueError(f"{whole - 8 - length - end} bytes that belong to no tensor")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        yield Finding(file, "", shown(str(error)), "not a safetensors file that every program reads alike")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _places(header: dict[str, Any]) -> Iterator[tuple[int, int, str, int]]:
    """Yield where each tensor begins and ends, its name, and how many bytes its type and shape take."""
    for name, tensor in header.items():
        start, stop = tensor["data_offsets"]
        bits = _BITS[tensor["dtype"]] * math.prod(tensor["shape"])
        if not all(type(number) is int and 0 <= number < 2**63 for number in (start, stop, *tensor["shape"])):
            raise ValueError(f"{name} has a place or a shape that is none")
        yield start, stop, name, -(-bits // 8)


def vet_onnx(path: Path, file: str) -> Iterator[Finding]:
    """Yield whether an ONNX model takes tensors from other files, which may lie anywhere."""
    if path.stat().st_size:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if _ELSEWHERE.search(content):
                yield Finding(file, "", path.name, "an ONNX model whose tensors lie in other files", file)
