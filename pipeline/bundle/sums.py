"""SHA256SUMS: what a bundle consists of, in the format that ``sha256sum --check`` reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipeline.errors import RefusedError
from pipeline.files import sha256_of, write_text

SUMS = "SHA256SUMS"
_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")


def hash_files(root: Path) -> dict[str, str]:
    """Relative path to SHA-256 of every file of a bundle but ``SHA256SUMS``, sorted.

    Raises:
        RefusedError: a folder in it is a link, so that its content lies elsewhere.
    """
    linked = next((path for path in sorted(root.rglob("*")) if path.is_symlink() and path.is_dir()), None)
    if linked is not None:
        raise RefusedError("a folder of the bundle is a link", path=linked, hint="copy the folder itself")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {name: sha256_of(root / name) for name in names if name != SUMS}


def fingerprint(sums: dict[str, str]) -> str:
    """One SHA-256 for a bundle's content: that of its sorted SHA256SUMS lines."""
    return hashlib.sha256(_lines(sums).encode()).hexdigest()


def write_sums(root: Path) -> str:
    """Write SHA256SUMS over all files of a bundle and return its `fingerprint`."""
    sums = hash_files(root)
    write_text(root / SUMS, _lines(sums))
    return fingerprint(sums)


def check_sums(root: Path) -> tuple[str, bool | None]:
    """The bundle's fingerprint, and whether its files are those of SHA256SUMS (None: it has no such file).

    Raises:
        RefusedError: a file was changed, is missing, or is not listed.
    """
    found = hash_files(root)
    if not (root / SUMS).is_file():
        return fingerprint(found), None
    expected = _read(root / SUMS)
    hint = "get the bundle again from where it came from; do not use this copy"
    for name in sorted({*found, *expected}):
        if found.get(name) == expected.get(name):
            continue
        problem = (
            "changed" if name in found and name in expected else "missing" if name in expected else "added"
        )
        raise RefusedError(
            f"the bundle is not as it was exported: {name} was {problem}", path=root / name,
            found=found.get(name, "no such file"), expected=expected.get(name, f"not listed in {SUMS}"), hint=hint,
        )  # fmt: skip
    return fingerprint(found), True


def _read(path: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = _LINE.match(line)
        if match is None or match[2] in sums:
            raise RefusedError(
                f"{SUMS} cannot be read", path=path, found=f"line {number}: {line[:80]}",
                expected="64 hex digits, two blanks and a relative path, each path once",
            )  # fmt: skip
        sums[match[2]] = match[1]
    return sums


def _lines(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
