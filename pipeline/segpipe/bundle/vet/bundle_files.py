"""What vetting finds, and the form of a bundle: nothing in it is unpickled, imported or followed.

A folder, or one zip file that is unpacked into a fresh folder: only plain files, within bounds, under names that every
system reads alike.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from segpipe.bundle.vet.archives import MOST_MEMBERS, STORED, Archive, BadArchiveError, Member
from segpipe.common.files import cannot_write
from segpipe.common.partial import temporary_folder
from segpipe.errors import UsageError

Kind = Literal["target", "expression", "import", "macro", "argument", "file"]
SHOWN = 300
LONGEST = 1000  # characters of a field of a finding, and bytes of a path
LONGEST_PART = 255  # bytes of a file's name, as most file systems have it
DEEPEST = 30  # folders
MOST_FILES = MOST_MEMBERS
MOST_FINDINGS = 100  # of one check; of more, how many there are
LARGEST = 8 * 2**30
LARGEST_FOLDER = 4 * LARGEST
HIGHEST_RATIO = 100  # unpacked by packed size; deflate itself ends near 1000
SMALL = 2**20  # whatever its ratio
METADATA = "configs/metadata.json"
FIRST_STAGE = "first_stage"  # folder of a bundle of its own, whose label maps are the last channels
DOCUMENTS = (".json", ".yaml", ".yml")
LOGGING = (".conf", ".ini", ".cfg")
SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
TWO_ARCHIVES = "an archive that programs may read in different ways"
# Names that this system cannot write, or a file where a folder should be; anything else is the disk's fault.
_OF_NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)


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

    def __post_init__(self) -> None:
        """Keep each field short, and such that it can be written: what a bundle holds may be neither."""
        for field, text in self.as_dict().items():
            bounded = text and text[:LONGEST].encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, field, bounded if field != "name" or bounded == text else None)

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


def is_text(text: str) -> bool:
    """Return whether it can be written: halves of characters, as of a file name in no known encoding, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(findings: Iterable[Finding]) -> list[dict[str, str | None]]:
    """Return findings as a refusal carries them to a terminal."""
    return [{key: text and printable(text) for key, text in finding.as_dict().items()} for finding in findings]


def bounded(findings: Iterable[Finding]) -> tuple[list[Finding], int]:
    """Return the first of some findings, with one that says how many more there are, and how many they are in all."""
    listed: list[Finding] = []
    count = 0
    for finding in findings:
        count += 1
        if count <= MOST_FINDINGS:
            listed.append(finding)
    if count > MOST_FINDINGS:
        listed.append(Finding("", "", f"and {count - MOST_FINDINGS} more", "they are not listed: see to these first"))
    return listed, count


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
    with temporary_folder() as fresh:
        findings = _unpack(path, fresh)
        findings = findings or list(vet_folder(fresh))
        yield _root(fresh, path) if not findings else None, findings


def _root(folder: Path, shown_as: Path) -> Path:
    """Return the bundle itself, which a zip file may hold as its one folder."""
    below = list(folder.iterdir())
    for root in (folder, *(below if len(below) == 1 and folder != shown_as else [])):
        if (root / METADATA).is_file():
            return root
    raise UsageError("not a MONAI bundle", path=shown_as, expected=f"{METADATA} in it")


def vet_folder(root: Path) -> Iterator[Finding]:
    """Yield links, special files and bits, and names that are not safe everywhere, without following anything."""
    seen: dict[str, str] = {}
    total = 0
    for count, (name, status) in enumerate(entries(root)):
        mode, total = status.st_mode, total + status.st_size
        if count >= MOST_FILES or total > LARGEST_FOLDER:
            yield Finding("", "", f"{count} files, {total} bytes", "too many files, or too large ones")
            return
        if stat.S_ISLNK(mode):
            yield Finding(name, "", shown(str((root / name).readlink())), "a link, which may lead anywhere")
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            yield Finding(name, "", stat.filemode(mode), "neither a file nor a folder")
        elif mode & SPECIAL and stat.S_ISREG(mode):
            yield Finding(name, "", stat.filemode(mode), "a bit that gives whoever runs it the rights of another")
        yield from _vet_name(name, seen)


def entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the status of all that is in a folder, sorted, links not followed, `DEEPEST` folders deep."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(root / below) as found:
            inside = sorted(found, key=lambda entry: entry.name)
        folders = []
        for entry in inside:
            name = f"{below}/{entry.name}" if below else entry.name
            yield name, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False) and name.count("/") < DEEPEST:
                folders.append(name)
        waiting += reversed(folders)


def _vet_name(name: str, seen: dict[str, str]) -> Iterator[Finding]:
    path = name.removesuffix("/")
    parts = path.split("/")
    sizes = [len(part.encode("utf-8", "replace")) for part in parts]
    if name.startswith(("/", "~")) or any(part in ("", ".", "..") for part in parts):
        yield Finding(name, "", shown(name), "a path that leads out of the bundle")
    elif "\\" in name or ":" in name or not name.isprintable() or any(part != part.rstrip(". ") for part in parts):
        yield Finding(name, "", shown(name), "a name that another system reads as another path")
    elif max(sizes) > LONGEST_PART or sum(sizes) + len(sizes) > LONGEST or len(parts) > DEEPEST:
        yield Finding(name, "", shown(name), f"too long: over {LONGEST_PART} bytes in a name, or {LONGEST} in a path")
    known = unicodedata.normalize("NFKC", path).casefold()
    if known in seen:
        yield Finding(name, "", shown(name), f"the same as {seen[known]}, or the same where case does not count")
    seen.setdefault(known, name)


def _unpack(path: Path, fresh: Path) -> list[Finding]:
    try:
        with path.open("rb") as stream:
            archive = Archive(stream)
            if findings := list(_vet_members(archive.members, path.stat().st_size)):
                return findings
            for member in archive.members:
                _write(archive, member, fresh / member.name)
    except BadArchiveError as error:
        return [Finding(path.name, error.member, shown(error.found), TWO_ARCHIVES)]
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise cannot_write(fresh, error) from error
        text = shown(error.strerror or "")
        return [Finding(path.name, "", text, "an archive that cannot be unpacked as it says")]
    return []


def _write(archive: Archive, member: Member, place: Path) -> None:
    """Unpack a file, and of its permissions whether it can be run: that is judged as in a folder."""
    if member.is_folder:
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as stream:
        for chunk in archive.chunks(member):
            stream.write(chunk)
    place.chmod(0o700 if member.mode & 0o111 else 0o600)


def _vet_members(members: Sequence[Member], packed: int) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    total = sum(member.size for member in members)
    if total > LARGEST or (total > SMALL and total > HIGHEST_RATIO * packed):
        yield Finding("", "", f"{total} bytes in {packed}", "it would unpack to far more than it is: a zip bomb")
    for member in members:
        name, kind = member.name, stat.S_IFMT(member.mode)
        yield from _vet_name(name, seen)
        if kind not in (0, stat.S_IFDIR if member.is_folder else stat.S_IFREG):
            yield Finding(name, "", stat.filemode(member.mode), "a link or a special file")
        elif member.mode & SPECIAL and not member.is_folder:
            yield Finding(name, "", stat.filemode(member.mode), "a bit that gives whoever runs it other rights")
        if member.descriptor and member.method == STORED and member.size:
            yield Finding(name, "", "stored, with its size behind it", TWO_ARCHIVES)
        if member.size > SMALL and member.size > HIGHEST_RATIO * max(member.packed, 1):
            why = "it would unpack to far more than it is: a zip bomb"
            yield Finding(name, "", f"{member.size} bytes in {member.packed}", why)
