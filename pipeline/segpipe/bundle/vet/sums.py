"""SHA256SUMS: what a bundle consists of, in the format that ``sha256sum --check`` reads."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from segpipe.common.files import sha256_of, write_text
from segpipe.errors import RefusedError

SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # at the root; over all files, SHA256SUMS included
_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")


@dataclass(frozen=True)
class Difference:
    """A file that is not as SHA256SUMS says: its SHA-256 as found, and as listed (None: not there, not listed)."""

    name: str
    found: str | None
    expected: str | None

    @property
    def problem(self) -> str:
        """In one word."""
        return "missing" if self.found is None else "added" if self.expected is None else "changed"


def hash_files(root: Path) -> dict[str, str]:
    """Return relative path to SHA-256 of every file of a bundle but SHA256SUMS and the signature, sorted.

    Raises:
        RefusedError: a folder in it is a link, so that its content lies elsewhere.
    """
    paths = sorted(root.rglob("*"))
    linked = next((path for path in paths if path.is_symlink() and path.is_dir()), None)
    if linked is not None:
        raise RefusedError("a folder of the bundle is a link", path=linked, hint="copy the folder itself")
    names = sorted(path.relative_to(root).as_posix() for path in paths if path.is_file())
    return {name: sha256_of(root / name) for name in names if name not in (SUMS, SIGNATURE)}


def fingerprint(sums: dict[str, str]) -> str:
    """Return one SHA-256 for a bundle's content: that of its sorted SHA256SUMS lines."""
    return hashlib.sha256(sums_text(sums).encode()).hexdigest()


def sums_text(sums: dict[str, str]) -> str:
    """Return the lines of SHA256SUMS."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def write_sums(root: Path) -> str:
    """Write SHA256SUMS over all files of a bundle and return its `fingerprint`."""
    sums = hash_files(root)
    write_text(root / SUMS, sums_text(sums))
    return fingerprint(sums)


def check_sums(root: Path) -> tuple[str, bool | None]:
    """Return the bundle's fingerprint, and whether its files are those of SHA256SUMS (None: it has no such file).

    Raises:
        RefusedError: a file was changed, is missing, or is not listed.
    """
    hashes = hash_files(root)
    differences = compare_sums(root, hashes)
    if differences:
        first = differences[0]
        raise RefusedError(
            f"the bundle is not as it was exported: {first.name} was {first.problem}",
            path=root / first.name,
            found=first.found or "no such file",
            expected=first.expected or f"not listed in {SUMS}",
            hint="get the bundle again from where it came from; do not use this copy",
        )
    return fingerprint(hashes), None if differences is None else True


def compare_sums(root: Path, hashes: dict[str, str]) -> list[Difference] | None:
    """Return how a bundle's files, as `hash_files` gives them, differ from SHA256SUMS; None where there is none.

    Raises:
        RefusedError: SHA256SUMS cannot be read, or lists a file twice.
    """
    path = root / SUMS
    if not path.is_file():
        return None
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = _LINE.match(line)
        if match is None or match[2] in listed:
            raise RefusedError(
                f"{SUMS} cannot be read",
                path=path,
                found=f"line {number}: {line[:80]}",
                expected="64 hex digits, two blanks and a relative path, each path once",
            )
        listed[match[2]] = match[1]
    names = sorted(name for name in {*hashes, *listed} if hashes.get(name) != listed.get(name))
    return [Difference(name, hashes.get(name), listed.get(name)) for name in names]
