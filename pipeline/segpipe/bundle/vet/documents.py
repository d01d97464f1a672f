"""What the documents of a bundle say of it, and what speaks against them.

- SHA256SUMS: what a bundle consists of, in the format that ``sha256sum --check`` reads.
- ``metadata.json`` against its schema, ours where it is a bundle of ours, else the core of MONAI's specification; and
  the versions that a bundle was made with against those installed. ``golden.json`` has a schema too.
- ``logging.conf``, which `logging.config.fileConfig` evaluates and may open files and sockets for: a small subset.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from segpipe.bundle.vet.bundle_files import (
    DEEPEST,
    LARGEST_FOLDER,
    METADATA,
    MOST_FILES,
    MOST_FINDINGS,
    Finding,
    entries,
    is_text,
    printable,
    shown,
)
from segpipe.common.files import write_text
from segpipe.errors import RefusedError

LARGEST_SUMS = 16 * 2**20
LARGEST_LOGGING = 64 * 2**10
MOST_PACKAGES = 200
SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # at the root; over all files, SHA256SUMS included
_LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")
_MAIN = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_DECIDE = ("monai", "torch")  # what runs the configs; an older one may lack what they rely on
State = Literal["same", "newer here", "older here", "not installed", "not said", "no version"]
_OURS = {"commands", "config_requirements", "evaluate_section"}
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
# https://docs.monai.io/en/stable/mb_specification.html: what a bundle must say, without which nobody can run it
CORE: Mapping[str, Any] = {
    "type": "object",
    "required": ["version", "monai_version", "pytorch_version", "network_data_format"],
    "properties": {
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), _TEXT),
        **dict.fromkeys(("changelog", "required_packages_version", "optional_packages_version"), _OBJECT),
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _OBJECT, "outputs": _OBJECT},
        },
    },
}


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
    sums = {}
    for name in sorted(_files(root)):
        if name not in (SUMS, SIGNATURE):
            with (root / name).open("rb") as stream:
                sums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


def _files(root: Path) -> Iterator[str]:
    """Yield the path of each file, also of one that is a link."""
    total = 0
    for count, (name, status) in enumerate(entries(root)):
        path, total = root / name, total + status.st_size
        if not path.is_dir():
            if path.is_file():
                yield name
        elif path.is_symlink():
            raise RefusedError("a folder of the bundle is a link", path=path, hint="copy the folder itself")
        if total > LARGEST_FOLDER or count >= MOST_FILES or name.count("/") >= DEEPEST or not is_text(name):
            raise RefusedError(
                "the folder is no bundle: too many, too deep or too large files, or a name that is no text",
                path=root,
                found=shown(printable(name)),
                expected=f"{MOST_FILES} files, {DEEPEST} folders deep, {LARGEST_FOLDER >> 30} GiB, names in UTF-8",
                hint="take away what does not belong to it",
            )


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


def check_sums(root: Path) -> tuple[dict[str, str], bool | None]:
    """Return what `hash_files` does, and whether the files are those of SHA256SUMS (None: it has no such file).

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
    return hashes, None if differences is None else True


def compare_sums(root: Path, hashes: dict[str, str]) -> list[Difference] | None:
    """Return how a bundle's files, as `hash_files` gives them, differ from SHA256SUMS; None where there is none.

    Raises:
        RefusedError: SHA256SUMS cannot be read, or lists a file twice.
    """
    path = root / SUMS
    if not path.is_file():
        return None
    listed: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size <= LARGEST_SUMS else "too large"
    for number, line in enumerate(text.splitlines(), 1):
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


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Return whether metadata was written by `segpipe export`."""
    return set(metadata) >= _OURS


def vet_schema(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield each place where metadata is not as its schema says."""
    yield from _breaches(metadata, _packaged("bundle_metadata") if is_ours(metadata) else CORE, METADATA)


def vet_golden_schema(document: Any, file: str) -> Iterator[Finding]:
    """Yield each place where ``golden.json`` is not as its schema says."""
    yield from _breaches(document, _packaged("golden"), file)


def _breaches(document: Any, schema: Mapping[str, Any], file: str) -> Iterator[Finding]:
    from jsonschema import Draft202012Validator

    for error in islice(Draft202012Validator(schema).iter_errors(document), MOST_FINDINGS):
        place = "::".join(str(part) for part in error.absolute_path)
        yield Finding(file, place, shown(error.instance) if place else "", shown(error.message))


@cache
def _packaged(name: str) -> Any:
    return json.loads((files("segpipe") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Requirement:
    """One package: what the bundle names, what is here, and how they compare."""

    package: str
    made_with: str | None
    installed: str | None
    state: State


def requirements(metadata: Mapping[str, Any]) -> list[Requirement]:
    """Return the packages of a bundle's metadata, MONAI, torch and numpy first."""
    named: dict[str, Any] = {package: metadata.get(key) for key, package in _MAIN.items()}
    for key in ("required_packages_version", "optional_packages_version"):
        packages = metadata.get(key)
        named.update(islice(packages.items(), MOST_PACKAGES) if isinstance(packages, dict) else {})
    return [_compare(str(package), made_with) for package, made_with in named.items()]


def _compare(package: str, made_with: Any) -> Requirement:
    try:
        installed: str | None = version(package)
    except (PackageNotFoundError, ValueError):
        installed = None
    if not isinstance(made_with, str) or not made_with:
        return Requirement(package, None, installed, "not said")
    recorded, parsed = _parsed(made_with), _parsed(installed)
    if recorded is None:
        return Requirement(package, made_with, installed, "no version")
    if parsed is None:
        return Requirement(package, made_with, installed, "not installed")
    recorded, parsed = Version(recorded.public), Version(parsed.public)
    state: State = "same" if parsed == recorded else "newer here" if parsed > recorded else "older here"
    return Requirement(package, made_with, installed, state)


def vet_versions(metadata: Mapping[str, Any], allows: Callable[[str], bool]) -> Iterator[Finding]:
    """Yield a MONAI or torch here that is a release or more behind, what is no version, and a bundle's own downgrade.

    A finding has the metadata's key as its name; what ``allows`` says that the user admits is passed over.
    """
    yield from (finding for finding in _downgrades(metadata) if finding.name is None or not allows(finding.name))


def _downgrades(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    keys = {package: key for key, package in _MAIN.items()}
    for needed in requirements(metadata):
        key = keys.get(needed.package, needed.package)
        text = f"{needed.package} {needed.made_with}; installed: {needed.installed}"
        if needed.state == "no version":
            yield Finding(METADATA, key, shown(needed.made_with), "not a version", key)
        elif needed.state == "older here" and needed.package in _DECIDE and _behind(needed):
            yield Finding(METADATA, key, shown(text), "made with a newer one than is installed: a downgrade", key)
    own, logged = _parsed(metadata.get("version")), metadata.get("changelog")
    known = [found for entry in (logged if isinstance(logged, dict) else ()) if (found := _parsed(entry))]
    if own is not None and known and own < max(known):
        text = f"version {metadata.get('version')}, changelog up to {max(known)}"
        why = "an older version than its own changelog: a downgrade"
        yield Finding(METADATA, "version", shown(text), why, "version")


def _behind(needed: Requirement) -> bool:
    """Return whether the installed one differs in more than the last number."""
    wanted, installed = _parsed(needed.made_with), _parsed(needed.installed)
    return wanted is not None and installed is not None and installed.release[:2] < wanted.release[:2]


def _parsed(text: object) -> Version | None:
    try:
        return Version(str(text))
    except ValueError:  # InvalidVersion is one, and a number of too many digits
        return None


_LISTS = {"loggers": {"keys"}, "handlers": {"keys"}, "formatters": {"keys"}}
_KEYS = {
    "logger": {"level", "handlers", "propagate", "qualname"},
    "handler": {"class", "level", "formatter", "args"},
    "formatter": {"format", "datefmt", "class"},
}
_VALUES = {
    ("handler", "class"): re.compile(r"(logging\.)?StreamHandler"),
    ("handler", "args"): re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?\s*)?\)"),
    ("formatter", "class"): re.compile(r"(logging\.)?Formatter"),
}
_WORDS = re.compile(r"[\w ,.-]*", re.ASCII)


def vet_logging(path: Path, file: str) -> Iterator[Finding]:
    """Yield what in an INI file for `fileConfig` is more than handlers that write to standard output or error."""
    parser = configparser.RawConfigParser()
    try:
        if path.stat().st_size > LARGEST_LOGGING:
            raise ValueError(f"more than {LARGEST_LOGGING >> 10} KiB")
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, ValueError, OSError) as error:
        yield Finding(file, "", shown(str(error).replace("\n", " ")), "it cannot be read as a logging configuration")
        return
    for key, value in parser.defaults().items():
        yield Finding(file, "DEFAULT", f"{key}={shown(value)}", "defaults are put into every other section")
    for section in () if parser.defaults() else parser.sections():
        kind = section.partition("_")[0]
        known = _LISTS.get(section) or (_KEYS.get(kind) if "_" in section else None)
        if known is None:
            yield Finding(file, section, section, "a section that a logging configuration has no use for")
            continue
        for key, value in parser.items(section):
            if key not in known:
                why = f"{key} is not one of {', '.join(sorted(known))}"
            elif not _is_in_subset(kind, key, value):
                why = "only StreamHandler to sys.stdout or sys.stderr, and plain words, are admitted"
            else:
                continue
            yield Finding(file, f"{section}::{key}", f"{key}={shown(value)}", why)


def _is_in_subset(kind: str, key: str, value: str) -> bool:
    as_it_is = key in ("format", "datefmt")  # never evaluated
    return as_it_is or (_VALUES.get((kind, key)) or _WORDS).fullmatch(value) is not None
