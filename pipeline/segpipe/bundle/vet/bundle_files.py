"""What vetting finds, and the files of a bundle looked at as bytes: nothing is unpickled, imported or followed.

- Its form, a folder or one zip file: only plain files, within bounds, unpacked into a fresh folder.
- What each file is: a document, weights, data, or code that could be imported or run.
- Weights and arrays: what a pickle would call is read from its opcodes.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import pickletools
import stat
import struct
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from segpipe.errors import UsageError

Kind = Literal["target", "expression", "import", "macro", "argument", "file"]
SHOWN = 300
MOST_FILES = 10_000
LARGEST = 8 * 2**30
HIGHEST_RATIO = 100  # unpacked by packed size; deflate itself ends near 1000
SMALL = 2**20  # whatever its ratio
METADATA = "configs/metadata.json"
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)
_UNREADABLE = (*_BAD_ZIP, OSError)
_NOT_UNPACKED = (*_BAD_ZIP, ValueError, FileExistsError, IsADirectoryError, NotADirectoryError)
DOCUMENTS = (".json", ".yaml", ".yml")
LOGGING = (".conf", ".ini", ".cfg")
TORCH = (".pt", ".pth", ".ckpt", ".bin")
_DATA = ".md .txt .rst .csv .tsv .cff .png .jpg .jpeg .gif .nii .gz .nrrd .mha .dcm .onnx .safetensors .sig .pem .pub"
_PLAIN_NAMES = "license licence notice readme changelog authors sha256sums .gitignore .gitattributes"
_NEVER = {
    "compiled Python, which nobody can read": ".pyc .pyo",
    "a program library": ".so .pyd .dll .dylib",
    "a pickle, which is code": ".pkl .pickle .joblib .dill",
    "packed Python": ".egg .whl .pyz",
    "an archive in the archive": ".zip .tar .7z",
}
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
LARGEST_PICKLE = 2**28


@dataclass(frozen=True)
class Finding:
    """Something in a bundle that is not admitted.

    Attributes:
        file: path within the bundle.
        place: id path in a config (``evaluator::network``), section of an INI file, or member of an archive.
        text: what stands there, cut to `SHOWN` characters.
        reason: why it is refused.
        name: what ``--allow`` must say to admit it; None where nothing admits it.
    """

    file: str
    place: str
    text: str
    reason: str
    name: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Return plain values, as in the JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Use:
    """One place where a bundle would run code: a target, an expression, an import, a file of code.

    Attributes:
        file: path within the bundle.
        place: as in `Finding`.
        kind: what it is.
        text: what stands there.
        names: each name that it uses, resolved to where it is defined.
        findings: what speaks against it; empty where all of it is admitted.
    """

    file: str
    place: str
    kind: Kind
    text: str
    names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def shown(value: object) -> str:
    """Return a value in one line of bounded length, whatever it is."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def printable(text: str) -> str:
    """Return text for a terminal: control characters and those that turn the reading order are shown by their code."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def plain(findings: Iterable[Finding]) -> list[dict[str, str | None]]:
    """Return findings as a refusal carries them to a terminal."""
    return [{key: text and printable(text) for key, text in finding.as_dict().items()} for finding in findings]


@contextmanager
def unpacked(path: str | Path) -> Iterator[tuple[Path | None, list[Finding]]]:
    """Yield a bundle's folder, None where anything speaks against its form, and what does.

    Raises:
        UsageError: neither a bundle folder nor a zip file with one.
    """
    path = Path(path)
    if path.is_dir():
        findings = list(vet_folder(path))
        yield _root(path, path) if not findings else None, findings
        return
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise UsageError("not a bundle", path=path, expected=f"a folder with {METADATA}, or a zip file of one")
    with tempfile.TemporaryDirectory(prefix="segpipe-bundle-") as fresh:
        findings = _unpack(path, Path(fresh))
        findings = findings or list(vet_folder(Path(fresh)))
        yield _root(Path(fresh), path) if not findings else None, findings


def _root(folder: Path, shown_as: Path) -> Path:
    """Return the bundle itself, which a zip file may hold as its one folder."""
    below = list(folder.iterdir())
    for root in (folder, *(below if len(below) == 1 and folder != shown_as else [])):
        if (root / METADATA).is_file():
            return root
    raise UsageError("not a MONAI bundle", path=shown_as, expected=f"{METADATA} in it")


def vet_folder(root: Path) -> Iterator[Finding]:
    """Yield links, special files, and names that are not safe everywhere, without following anything."""
    seen: dict[str, str] = {}
    for count, (name, mode) in enumerate(_entries(root)):
        if count >= MOST_FILES:
            yield Finding("", "", f"more than {MOST_FILES} files", "too many files")
            return
        if stat.S_ISLNK(mode):
            yield Finding(name, "", shown(str((root / name).readlink())), "a link, which may lead anywhere")
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            yield Finding(name, "", stat.filemode(mode), "neither a file nor a folder")
        yield from _vet_name(name, seen)


def _entries(root: Path, below: str = "") -> Iterator[tuple[str, int]]:
    with os.scandir(root / below) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        yield name, entry.stat(follow_symlinks=False).st_mode
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(root, name)


def _vet_name(name: str, seen: dict[str, str]) -> Iterator[Finding]:
    parts = name.rstrip("/").split("/")
    if name.startswith(("/", "~")) or any(part in ("", ".", "..") for part in parts):
        yield Finding(name, "", shown(name), "a path that leads out of the bundle")
    elif "\\" in name or ":" in name or not name.isprintable() or any(part != part.rstrip(". ") for part in parts):
        yield Finding(name, "", shown(name), "a name that another system reads as another path")
    elif len(name) > 1000 or len(parts) > 30:
        yield Finding(name, "", shown(name), "too long a path")
    known = unicodedata.normalize("NFKC", name.rstrip("/")).casefold()
    if known in seen:
        yield Finding(name, "", shown(name), f"the same as {seen[known]}, or the same where case does not count")
    seen.setdefault(known, name)


def _unpack(path: Path, fresh: Path) -> list[Finding]:
    try:
        with zipfile.ZipFile(path) as archive:
            findings = list(_vet_members(archive.infolist(), path.stat().st_size))
            if not findings:
                archive.extractall(fresh)  # none is longer than it was said to be, or its CRC is wrong
            return findings
    except _NOT_UNPACKED as error:
        return [Finding(path.name, "", shown(str(error)), "an archive that cannot be unpacked as it says")]


def _vet_members(members: list[zipfile.ZipInfo], packed: int) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    total = sum(member.file_size for member in members)
    if len(members) > MOST_FILES:
        yield Finding("", "", f"{len(members)} files", f"more than {MOST_FILES} files")
        return
    if total > LARGEST or (total > SMALL and total > HIGHEST_RATIO * packed):
        yield Finding("", "", f"{total} bytes in {packed}", "it would unpack to far more than it is: a zip bomb")
    for member in members:
        name = member.orig_filename
        yield from _vet_name(name, seen)
        mode = member.external_attr >> 16
        kind = stat.S_IFMT(mode)
        if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
            yield Finding(name, "", stat.filemode(mode), "a link or a special file")
        if member.flag_bits & 1:
            yield Finding(name, "", shown(name), "encrypted")
        if member.file_size > SMALL and member.file_size > HIGHEST_RATIO * max(member.compress_size, 1):
            why = "it would unpack to far more than it is: a zip bomb"
            yield Finding(name, "", f"{member.file_size} bytes in {member.compress_size}", why)


def vet_contents(root: Path) -> Iterator[Finding]:
    """Yield weights that are more than tensors, arrays of objects, code, and files of no known kind."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield from _vet_file(path, path.relative_to(root).as_posix())


def _vet_file(path: Path, file: str) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    if suffix in TORCH:
        yield from vet_torch_file(path, file)
    elif suffix == ".npy":
        with path.open("rb") as stream:
            yield from vet_array(stream, file)
    elif suffix == ".npz":
        yield from vet_arrays(path, file)
    elif why := next((why for why, suffixes in _NEVER.items() if suffix in suffixes.split()), None):
        yield Finding(file, "", path.name, why)
    elif suffix == ".py":
        if shadowed := _shadowed(file):
            yield Finding(file, "", path.name, f"it would be imported in the place of the installed {shadowed}")
        else:
            yield Finding(file, "", path.name, "code of the bundle's own, which its targets or imports would run", file)
    elif suffix == ".ts":
        yield Finding(file, "", path.name, "TorchScript, which is code and not plain tensors", file)
    elif suffix not in (*_DATA.split(), *DOCUMENTS, *LOGGING) and path.name.lower() not in _PLAIN_NAMES.split():
        yield Finding(file, "", path.name, "a file of no known kind", file)


def _shadowed(file: str) -> str | None:
    """Return the installed or standard module that a file would come before, as the bundle's root is searched early."""
    parts = file.removesuffix(".py").removesuffix(".PY").split("/")
    if parts[0] == "scripts" or (len(parts) > 1 and parts[0] in ("configs", "docs", "models")):
        return None
    if parts[0] in sys.stdlib_module_names or parts[0] in ("sitecustomize", "usercustomize"):
        return parts[0]
    elsewhere = [entry for entry in sys.path if entry and Path(entry).name in ("site-packages", "dist-packages")]
    found = importlib.machinery.PathFinder.find_spec(parts[0], elsewhere)
    return parts[0] if found or parts[0] == "segpipe" else None


def vet_torch_file(path: Path, file: str) -> Iterator[Finding]:
    """Yield what keeps a file of `torch.save` from being a zip of plain tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _vet_torch_zip(archive, file)
    except _UNREADABLE as error:
        why = "not the zip format of torch.save: an older one is a bare pickle. Save it again with a current torch"
        yield Finding(file, "", shown(str(error)), why)


def _vet_torch_zip(archive: zipfile.ZipFile, file: str) -> Iterator[Finding]:
    members = archive.infolist()
    names = [member.filename for member in members]
    for name in sorted(name for name, times in Counter(names).items() if times > 1):
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
            yield Finding(file, member.filename, f"{member.file_size} bytes", "too large to be looked through")
        else:
            yield from vet_pickle(archive.read(member), file, member.filename)


def _is_storage(name: str) -> bool:
    parts = name.split("/")
    plain = ("version", "byteorder", ".format_version", ".storage_alignment", "serialization_id")
    return parts[-1] in plain or (len(parts) > 2 and parts[-2] == "data" and parts[-1].isdigit())


def vet_pickle(content: bytes, file: str, place: str) -> Iterator[Finding]:
    """Yield what a pickle has beyond plain values and tensors, with the byte where it stands."""
    try:
        for opcode, argument, position in pickletools.genops(content):
            at = f"{place}: byte {position}"
            if opcode.name in ("GLOBAL", "INST") and argument not in TENSORS:
                named = str(argument).replace(" ", ".")
                yield Finding(file, at, named, f"a pickle that would call {named} when it is loaded")
            elif opcode.name not in _OPCODES:
                yield Finding(file, at, opcode.name, "an opcode that a state dict of plain tensors does not need")
    except Exception as error:  # noqa: BLE001 - bytes that nobody vouches for may break the parser anyhow
        yield Finding(file, place, shown(str(error)), "not a pickle that can be looked through")


def vet_array(stream: BinaryIO, file: str, place: str = "") -> Iterator[Finding]:
    """Tell from its header whether a ``.npy`` holds pickled objects (numpy's format specification, NEP 1)."""
    head = stream.read(8)
    size = {1: "<H", 2: "<I", 3: "<I"}.get(head[6] if len(head) == 8 else 0)
    try:
        if not head.startswith(b"\x93NUMPY") or size is None:
            raise ValueError("no header of numpy")
        (length,) = struct.unpack(size, stream.read(struct.calcsize(size)))
        header = ast.literal_eval(stream.read(min(length, 10_000)).decode("utf-8" if head[6] == 3 else "latin-1"))
        kind = header["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, RecursionError, MemoryError) as error:
        yield Finding(file, place, shown(str(error)), "not an array that can be looked through")
        return
    if "O" in repr(kind):
        yield Finding(file, place, repr(kind), "an array of pickled objects: loading it would run what they name")


def vet_arrays(path: Path, file: str) -> Iterator[Finding]:
    """Tell the same of an ``.npz``, an archive of such files."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    yield from vet_array(stream, file, member.filename)  # type: ignore[arg-type]
    except _UNREADABLE as error:
        yield Finding(file, "", shown(str(error)), "not an archive that can be looked through")
