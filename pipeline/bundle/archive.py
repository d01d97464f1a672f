"""A bundle as a folder or as one zip file: only plain files, within bounds, and unpacked into a fresh folder."""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundle.finding import Finding, shown
from pipeline.errors import UsageError

MOST_FILES = 10_000
LARGEST = 8 * 2**30
HIGHEST_RATIO = 100  # unpacked by packed size; deflate itself ends near 1000
SMALL = 2**20  # whatever its ratio
METADATA = "configs/metadata.json"
_BLOCK = 1 << 20
_BROKEN = (
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, FileExistsError,
    NotADirectoryError,
)  # fmt: skip


@contextmanager
def unpacked(path: str | Path) -> Iterator[tuple[Path | None, list[Finding]]]:
    """A bundle's folder while the block runs, and what speaks against its form; no folder where anything does.

    Raises:
        UsageError: neither a bundle folder nor a zip file with one.
    """
    path = Path(path)
    if path.is_dir():
        findings = list(vet_folder(path))
        yield _root(path, path) if not findings else None, findings
        return
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise UsageError(
            "not a bundle", path=path, expected=f"a folder with {METADATA}, or a zip file of one"
        )
    with tempfile.TemporaryDirectory(prefix="segpipe-bundle-") as fresh:
        findings = _unpack(path, Path(fresh))
        findings = findings or list(vet_folder(Path(fresh)))
        yield _root(Path(fresh), path) if not findings else None, findings


def _root(folder: Path, shown_as: Path) -> Path:
    """The bundle itself, which a zip file may hold as its one folder."""
    below = list(folder.iterdir())
    for root in (folder, *(below if len(below) == 1 and folder != shown_as else [])):
        if (root / METADATA).is_file():
            return root
    raise UsageError("not a MONAI bundle", path=shown_as, expected=f"{METADATA} in it")


def vet_folder(root: Path) -> Iterator[Finding]:
    """Links, special files, and names that are not safe everywhere, without following anything."""
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
    elif (
        "\\" in name
        or ":" in name
        or not name.isprintable()
        or any(part != part.rstrip(". ") for part in parts)
    ):
        yield Finding(name, "", shown(name), "a name that another system reads as another path")
    elif len(name) > 1000 or len(parts) > 30:
        yield Finding(name, "", shown(name), "too long a path")
    known = unicodedata.normalize("NFKC", name.rstrip("/")).casefold()
    if known in seen:
        yield Finding(
            name, "", shown(name), f"the same as {seen[known]}, or the same where case does not count"
        )
    seen.setdefault(known, name)


def _unpack(path: Path, fresh: Path) -> list[Finding]:
    try:
        with zipfile.ZipFile(path) as archive:
            findings = list(_vet_members(archive.infolist(), path.stat().st_size))
            if not findings:
                _extract(archive, fresh)
            return findings
    except _BROKEN as error:
        return [Finding(path.name, "", shown(str(error)), "an archive that cannot be unpacked as it says")]


def _vet_members(members: list[zipfile.ZipInfo], packed: int) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    total = sum(member.file_size for member in members)
    if len(members) > MOST_FILES:
        yield Finding("", "", f"{len(members)} files", f"more than {MOST_FILES} files")
        return
    if total > LARGEST or (total > SMALL and total > HIGHEST_RATIO * packed):
        yield Finding(
            "", "", f"{total} bytes in {packed}", "it would unpack to far more than it is: a zip bomb"
        )
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


def _extract(archive: zipfile.ZipFile, fresh: Path) -> None:
    """Write the members, none over another, and none longer than it was said to be."""
    for member in archive.infolist():
        target = fresh / member.filename
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        left = member.file_size
        with archive.open(member) as source, target.open("xb") as stream:
            while block := source.read(min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise ValueError(f"{member.filename} is longer than the archive says")
                stream.write(block)
