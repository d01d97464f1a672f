"""Files that are two things: what two programs could read as two files is refused, what one writes as usual is not."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_zip import Part, descriptor, parts_of, raw_zip, zip64_end
from small_bundle import copy, small_bundle

from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.archives import Archive, BadArchiveError
from segpipe.bundle.vet.arrays import vet_array_file, vet_arrays
from segpipe.bundle.vet.bundle_files import Finding
from segpipe.bundle.vet.contents import vet_contents
from segpipe.bundle.vet.documents import write_sums
from segpipe.bundle.vet.weights import vet_onnx, vet_safetensors, vet_torch_file
from segpipe.cli.app import run
from segpipe.errors import REFUSED

Vet = Callable[[Path, str], Any]
Spoil = Callable[[list[Part]], bytes]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("sound") / "tiny")


def changed(part: int = 0, *, both: bool = False, **said: Any) -> Spoil:
    """An archive in which one header of a member says something else than the other, or both something wrong."""

    def spoil(parts: list[Part]) -> bytes:
        parts[part].local = said
        parts[part].central = said if both else {}
        return raw_zip(parts)

    return spoil


def _two_ends(parts: list[Part]) -> bytes:
    archive = raw_zip(parts)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, len(archive), 0)
    return archive + end


def _an_end_that_covers_another(parts: list[Part]) -> bytes:
    shown, hidden = raw_zip(parts[:1]), raw_zip(parts)
    return hidden[:-2] + struct.pack("<H", len(shown)) + shown


def _overlapping(parts: list[Part]) -> bytes:
    first = parts[0]
    inner = raw_zip([Part(b"x", b"y")])[:32]
    first.content = inner
    offset = 30 + len(first.name)
    return raw_zip([first, *parts[1:], Part(b"x", b"y", central={"offset": offset}, local={})])


def _more(**said: Any) -> Spoil:
    return lambda parts: raw_zip([*parts, Part(**{"name": parts[0].name.rpartition(b"/")[0] + b"/more.txt", **said})])


ARCHIVES: dict[str, Spoil] = {
    "a pickle in front": lambda parts: raw_zip(parts, front=pickle.dumps({"a": 1})),
    "a pickle in front that the offsets pass over": lambda parts: raw_zip(parts, front=b"\x80\x02.", shift=3),
    "bytes between": lambda parts: raw_zip(parts, gap=b"hidden"),
    "bytes behind a member": lambda parts: raw_zip([Part(p.name, p.content, behind=b"PK\3\4") for p in parts]),
    "bytes behind it all": lambda parts: raw_zip(parts) + b"hidden",
    "two ends": _two_ends,
    "an archive in the comment": _an_end_that_covers_another,
    "an archive before the archive": lambda parts: raw_zip(parts[:1]) + raw_zip(parts),
    "an end in the comment": lambda parts: raw_zip(parts, comment=b"PK\5\6" + bytes(18)),
    "another name": changed(name=b"another"),
    "another method": changed(method=8),
    "another size": changed(size=7),
    "another packed size": changed(packed=7),
    "another checksum": changed(crc=3),
    "other flags": changed(flags=0x800),
    "a wrong checksum": changed(crc=3, both=True),
    "a wrong size": changed(size=7, packed=7, both=True),
    "encrypted": changed(flags=1, both=True),
    "patched": changed(flags=0x20, both=True),
    "strongly encrypted": changed(flags=0x40, both=True),
    "masked headers": changed(flags=0x2000, both=True),
    "bzip2": changed(method=12, both=True),
    "lzma": changed(method=14, both=True),
    "a second name": changed(extra=struct.pack("<HHBI", 0x7075, 9, 1, 0) + b"evil", both=True),
    "a cut field": changed(extra=b"\1\0\xff\0", both=True),
    "a field twice": changed(extra=2 * b"FB\0\0", both=True),
    "a ZIP64 field of another size": changed(extra=struct.pack("<2H2Q", 1, 16, 7, 7)),
    "a ZIP64 size in one header": changed(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2H2Q", 1, 16, 7, 7)),
    "a ZIP64 end of other numbers": lambda parts: zip64_end(raw_zip(parts), count=1),
    "a ZIP64 end of another place": lambda parts: zip64_end(raw_zip(parts), start=1),
    "overlapping": _overlapping,
    "one place for two": lambda parts: raw_zip([*parts, Part(b"x", central={"offset": 0})]),
    "a descriptor that lies": _more(content=b"abc", flags=8, behind=descriptor(b"xyz")),
    "a descriptor that is not said": _more(content=b"abc", behind=descriptor(b"abc")),
    "a descriptor that is not there": _more(content=b"abc", flags=8),
    "a name that is not UTF-8": _more(name=b"\xff\xfe.txt", flags=0x800),
    "half a character": _more(name=b"\xed\xa0\x80.txt", flags=0x800),
    "a name in no known encoding": _more(name=b"\x81.txt"),
    "NUL in a name": _more(name=b"more.txt\0.md"),
    "a folder with content": _more(name=b"more/", content=b"abc"),
    "fewer than it says": lambda parts: _with_count(raw_zip(parts), len(parts) + 1),
    "more than it says": lambda parts: _with_count(raw_zip(parts), len(parts) - 1),
    "in two parts": lambda parts: raw_zip(parts)[:-18] + b"\1\0" + raw_zip(parts)[-16:],
    "deflated with more behind": lambda parts: raw_zip([_with_more(part) for part in parts]),
}


def _with_count(archive: bytes, count: int) -> bytes:
    return archive[:-14] + struct.pack("<2H", count, count) + archive[-10:]


def _with_more(part: Part) -> Part:
    import zlib

    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(part.content) + deflate.flush() + b"hidden"
    said: dict[str, bytes | int] = {"method": 8, "size": len(part.content), "crc": zlib.crc32(part.content)}
    return Part(part.name, packed, local=said, central=said)


@pytest.mark.parametrize("attack", ARCHIVES)
def test_a_bundle_in_a_file_that_could_be_two_archives(attack: str, sound: Path, tmp_path: Path) -> None:
    parts = [Part(f"tiny/{p.relative_to(sound)}".encode(), p.read_bytes()) for p in sound.rglob("*") if p.is_file()]
    (tmp_path / "good.zip").write_bytes(raw_zip(parts))
    assert verify_bundle(tmp_path / "good.zip").findings == []
    (tmp_path / "tiny.zip").write_bytes(ARCHIVES[attack](parts))
    verdict = verify_bundle(tmp_path / "tiny.zip")
    assert verdict.exit_code == REFUSED and verdict.checks[0].status == "refused"
    json.dumps(verdict.as_dict(), ensure_ascii=False).encode()
    assert run(["bundle", "verify", str(tmp_path / "tiny.zip"), "--json"]) == REFUSED


@pytest.mark.parametrize("attack", ARCHIVES)
def test_weights_that_could_be_two_archives(attack: str, sound: Path, tmp_path: Path) -> None:
    wrong_content = ("a wrong checksum",)  # torch looks at it when it loads
    parts = parts_of((sound / "models/model.pt").read_bytes())
    path = tmp_path / "model.pt"
    path.write_bytes(raw_zip(parts))
    assert list(vet_torch_file(path, "m")) == []
    parts[0].method = 0
    path.write_bytes(ARCHIVES[attack](parts))
    assert list(vet_torch_file(path, "m")) or attack in wrong_content


def torch_zip(**members: bytes) -> bytes:
    """What torch.save writes, with members replaced or added; an underscore is a slash."""
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    parts = {part.name: part.content for part in parts_of(buffer.getvalue())}
    return raw_zip(Part(name, content) for name, content in {**parts, **_named(members)}.items())


def _named(members: dict[str, bytes]) -> dict[bytes, bytes]:
    return {f"archive/{name}".encode(): content for name, content in members.items()}


class Harmless:
    def __reduce__(self) -> Any:
        return os.getpid, ()


def _tar() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def _legacy() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "a tar file": _tar,
    "a bare pickle": _legacy,
    "nothing": lambda: b"",
    "another pickle": lambda: torch_zip(**{"other.pkl": pickle.dumps(Harmless())}),
    "a pickle of another case": lambda: torch_zip(**{"DATA.PKL": pickle.dumps(Harmless(), 2)}),
    "a pickle in place of a tensor": lambda: torch_zip(**{"data/x": pickle.dumps(Harmless())}),
    "TorchScript": lambda: torch_zip(**{"code/__torch__.py": b"import os"}),
    "TorchScript by its constants": lambda: torch_zip(**{"constants.pkl": b"."}),
    "more behind the pickle": lambda: torch_zip(**{"data.pkl": pickle.dumps({}, 2) + pickle.dumps(Harmless())}),
    "a memo that calls": lambda: torch_zip(**{"data.pkl": pickle.dumps(Harmless(), 2)}),
    "a second folder": lambda: raw_zip([*parts_of(torch_zip()), Part(b"other/data.pkl", pickle.dumps(Harmless()))]),
}


@pytest.mark.parametrize("attack", WEIGHTS)
def test_weights_that_are_something_else_as_well(attack: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_zip())
    assert list(vet_torch_file(path, "m")) == []
    path.write_bytes(WEIGHTS[attack]())
    assert list(vet_torch_file(path, "m"))


def test_what_torch_saves_is_taken(tmp_path: Path) -> None:
    import torch

    for state in (
        {},
        {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.zeros(2, 2))},
        OrderedDict(a=torch.zeros(2, dtype=torch.float16)),
        {"model": {"a": torch.ones(1)}, "epoch": 3},
    ):
        torch.save(state, tmp_path / "model.pt")
        assert list(vet_torch_file(tmp_path / "model.pt", "m")) == []


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """A .npy of a header that numpy would not write."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


def described(kind: str, shape: str = "(1,)") -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}", bytes(8))


PICKLED = pickle.dumps([Harmless()], 2)
ARRAYS = {
    "O": described("'O'"),
    "|O": described("'|O'"),
    "|O8": described("'|O8'"),
    "object": described("'object'"),
    "object_": described("'object_'"),
    "two fields in a text": described("'<f4,O'"),
    "a field of objects": described("[('a', '<f4'), ('b', '|O')]"),
    "a field in a field": described("[('a', [('b', 'object')])]"),
    "a field of many": described("[('a', 'O', (2,))]"),
    "a mapping": described("{'names': ['a'], 'formats': ['O']}"),
    "a tuple": described("('O', (1,))"),
    "escaped": described("'\\x4f'"),
    "in two halves": described("'|' 'O'"),
    "a type that numpy does not write": described("'float64'"),
    "a key twice": npy("{'descr': '<f8', 'descr': 'O', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "a key too many": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'x': 1}", bytes(8)),
    "a key too few": npy("{'descr': '<f8', 'shape': (1,)}", bytes(8)),
    "keys from elsewhere": npy("{**{'descr': '<f8', 'fortran_order': False}, 'shape': (1,)}", bytes(8)),
    "an expression": npy("dict(descr='<f8', fortran_order=False, shape=(1,))", bytes(8)),
    "two lines": npy("{'descr': '<f8', 'fortran_order': False,\n 'shape': (1,)}", bytes(8)),
    "a comment": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}\n#", bytes(8)),
    "a shape below zero": described("'<f8'", "(-1,)"),
    "a shape that is no tuple": described("'<f8'", "[1]"),
    "a pickle behind it": described("'<f8'") + PICKLED,
    "too few numbers": described("'<f8'", "(2,)"),
    "another version": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8), 4),
    "a header without end": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "a long header": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)" + " " * 20_000 + "}", bytes(8), 2),
    "a pickle": PICKLED,
    "an archive": raw_zip([Part(b"a.npy", described("'<f8'"))]),
    "deep": npy("{'descr': " + "[" * 3000 + ", 'fortran_order': False, 'shape': (1,)}", bytes(8)),
}


@pytest.mark.parametrize("attack", ARRAYS)
def test_arrays_that_are_more_than_numbers(attack: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(ARRAYS[attack])
    assert list(vet_array_file(tmp_path / "a.npy", "a"))
    for method in (0, 8):
        (tmp_path / "a.npz").write_bytes(raw_zip([Part(b"a.npy", ARRAYS[attack], method)]))
        assert list(vet_arrays(tmp_path / "a.npz", "a"))


@pytest.mark.parametrize("attack", ["a pickle in front", "another name", "two ends", "overlapping", "a second name"])
def test_archives_of_arrays_that_could_be_two(attack: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(ARCHIVES[attack]([Part(b"a.npy", described("'<f8'")), Part(b"b.npy")]))
    assert list(vet_arrays(tmp_path / "a.npz", "a"))


@pytest.mark.parametrize("names", [["a.npy", "A.npy"], ["a.npy", "a"], ["a.npy", "a.pkl"]])
def test_archives_of_arrays_with_names_that_numpy_takes_for_one(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(raw_zip(Part(name.encode(), described("'<f8'")) for name in names))
    assert list(vet_arrays(tmp_path / "a.npz", "a"))


KINDS: list[Any] = ["<f4", ">f8", "?", "<i2", "<u8", "<c8", "U5", "S3", "M8[ns]", [("a", "<f4"), ("b", "<i8", (2, 3))]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_what_numpy_writes_of_numbers_and_text_is_taken(kind: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.asfortranarray(np.zeros(shape, kind))
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", one=array, two=np.zeros(10**6))
    np.savez_compressed(tmp_path / "b.npz", one=array, two=np.zeros(10**6))
    assert list(vet_array_file(tmp_path / "a.npy", "a")) == []
    for packed in ("a.npz", "b.npz"):
        assert list(vet_arrays(tmp_path / packed, "a")) == []


def tensors(header: str, content: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + content


ONE = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
SAFETENSORS = {
    "a name twice": tensors(f"{{{ONE}, {ONE}}}"),
    "more behind it": tensors(f"{{{ONE}}}", bytes(8) + PICKLED),
    "fewer bytes": tensors(f"{{{ONE}}}", bytes(7)),
    "two tensors in one place": tensors(f"{{{ONE}, {ONE.replace('a', 'b', 1)}}}"),
    "another size": tensors(f"{{{ONE.replace('F32', 'F64')}}}"),
    "a gap": tensors(f"{{{ONE.replace('[0, 8]', '[4, 12]')}}}", bytes(12)),
    "no such type": tensors(f"{{{ONE.replace('F32', 'O')}}}"),
    "a header without end": struct.pack("<Q", 2**62),
    "a pickle": PICKLED,
    "nothing": b"",
    "deep": tensors("[" * 10**5),
}


@pytest.mark.parametrize("attack", SAFETENSORS)
def test_safetensors_that_two_programs_could_read_differently(attack: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(tensors(f"{{{ONE}}}"))
    assert list(vet_safetensors(tmp_path / "a.safetensors", "a")) == []
    (tmp_path / "a.safetensors").write_bytes(SAFETENSORS[attack])
    assert list(vet_safetensors(tmp_path / "a.safetensors", "a"))


def test_what_safetensors_writes_is_taken(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {str(kind): torch.zeros(3, 2).to(kind) for kind in (torch.float32, torch.bool, torch.float8_e4m3fn)}
    save_file({**state, "none": torch.zeros(0, 2), "one": torch.tensor(1.0)}, tmp_path / "a", metadata={"a": "b"})
    assert list(vet_safetensors(tmp_path / "a", "a")) == []


def test_onnx_whose_tensors_lie_elsewhere(tmp_path: Path) -> None:
    """StringStringEntryProto {key: "location", value: "../x"} in the external_data of a tensor (onnx.proto)."""
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a\x3a\x05graph: relocation")
    assert list(vet_onnx(tmp_path / "a.onnx", "a")) == []
    for key in (b"\x0a\x08location", b"\x0a\x88\x80\x00location"):
        (tmp_path / "a.onnx").write_bytes(bytes(5000) + b"\x6a\x10" + key + b"\x12\x04../x")
        (found,) = vet_onnx(tmp_path / "a.onnx", "a.onnx")
        assert found.name == "a.onnx"


@pytest.mark.parametrize(
    "content",
    [b"#!/bin/sh\ntouch x\n", b"\x7fELF\2\1", raw_zip([Part(b"a")]), pickle.dumps(1), described("'<f8'")],
    ids=["script", "program", "archive", "pickle", "array"],
)
@pytest.mark.parametrize("name", ["docs/tool.md", "LICENSE", "docs/figure.PNG"])
def test_a_file_under_the_name_of_something_else(content: bytes, name: str, sound: Path, tmp_path: Path) -> None:
    root = copy(sound, tmp_path / "b")
    (root / name).write_bytes(content)
    write_sums(root)
    found: list[Finding] = list(vet_contents(root))
    assert [(each.file, each.name) for each in found] == [(name, name)] and "under the name" in found[0].reason
    assert verify_bundle(root, [name]).findings == []


def see(archive: bytes) -> dict[str, bytes]:
    opened = Archive(io.BytesIO(archive))
    return {member.name: opened.read(member) for member in opened.members}


class NoSeek(io.RawIOBase):
    """Standard output, say: a writer cannot go back on it."""

    content = b""

    def writable(self) -> bool:
        return True

    def write(self, more: Any) -> int:
        self.content += bytes(more)
        return len(more)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
CONTENTS = st.dictionaries(NAMES.filter(lambda name: not name.endswith("/")), st.binary(max_size=3000), max_size=5)


@given(CONTENTS, st.sampled_from([0, 8]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_python_packs_is_read_as_it_was(content: dict[str, bytes], method: int, seekable: bool) -> None:
    stream: Any = io.BytesIO() if seekable else NoSeek()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, each in content.items():
            archive.writestr(name, each)
    assert see(stream.getvalue() if seekable else stream.content) == content


@given(st.binary(max_size=200), st.integers(0, 10**6), st.sampled_from(["insert", "replace", "cut"]))
@settings(deadline=None, max_examples=150)
def test_an_archive_that_was_changed_anywhere_is_refused_or_holds_the_same(more: bytes, at: int, how: str) -> None:
    content = {"a": b"some text" * 20, "b/": b"", "b/c": bytes(300)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", 8) as archive:
        for name, each in content.items():
            archive.writestr(name, each)
    whole = stream.getvalue()
    at %= len(whole)
    rest = whole[at:] if how == "insert" else whole[at + (len(more) if how == "replace" else 1) :]
    try:
        found = see(whole[:at] + (b"" if how == "cut" else more) + rest)
    except BadArchiveError:
        return
    assert set(found.values()) == set(content.values())


@pytest.mark.parametrize("command", ["zip -qr a.zip t", "zip -qr -0 a.zip t", "zip -qr - t | cat > a.zip"])
def test_what_zip_packs_is_read_as_it_was(command: str, tmp_path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("needs zip")
    (tmp_path / "t/empty").mkdir(parents=True)
    (tmp_path / "t/a").write_text("{}" * 5000)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert see((tmp_path / "a.zip").read_bytes()) == {"t/": b"", "t/empty/": b"", "t/a": b"{}" * 5000}


def test_zip64_that_agrees_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", 8) as archive, archive.open("a", "w", force_zip64=True) as writing:
        writing.write(b"abc")
    assert see(zip64_end(stream.getvalue())) == {"a": b"abc"} == see(stream.getvalue())
