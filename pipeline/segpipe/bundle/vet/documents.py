"""The documents of a bundle read as data, and what speaks against them.

- JSON and YAML, more strictly than their readers do, so that two readers cannot see two documents.
- SHA256SUMS: what a bundle consists of, in the format that ``sha256sum --check`` reads.
- ``metadata.json`` against its schema, ours where it is a bundle of ours, else the core of MONAI's specification; and
  the versions that a bundle was made with against those installed. ``golden.json`` has a schema too.
- ``logging.conf``, which `logging.config.fileConfig` evaluates and may open files and sockets for: a small subset.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from segpipe.bundle.vet.bundle_files import DOCUMENTS, METADATA, Finding, shown
from segpipe.common.files import write_text
from segpipe.errors import DataError, RefusedError

LARGEST = 256 * 2**20
DEEPEST = 60
MOST_OF_JSON, MOST_OF_YAML = 5_000_000, 500_000  # values in one document, with what YAML aliases repeat
PLAIN = (dict, list, str, int, float, bool, date, type(None))  # date also of time
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
    paths = sorted(root.rglob("*"))
    linked = next((path for path in paths if path.is_symlink() and path.is_dir()), None)
    if linked is not None:
        raise RefusedError("a folder of the bundle is a link", path=linked, hint="copy the folder itself")
    sums = {}
    for name in sorted(path.relative_to(root).as_posix() for path in paths if path.is_file()):
        if name not in (SUMS, SIGNATURE):
            with (root / name).open("rb") as stream:
                sums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


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


class NotReadableError(Exception):
    """Why a document is refused as a whole."""


def read_documents(paths: Mapping[str, Path]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the JSON and YAML documents among some files, and those that cannot be read without doubt."""
    documents: dict[str, Any] = {}
    unreadable: list[Finding] = []
    for file, path in paths.items():
        if path.suffix.lower() in DOCUMENTS:
            try:
                documents[file] = read_document(path)
            except NotReadableError as error:
                unreadable.append(Finding(file, "", shown(str(error)), "it cannot be read without doubt"))
    return documents, unreadable


def read_document(path: Path) -> Any:
    """Read a JSON or YAML document as plain values.

    Raises:
        NotReadableError: it cannot be parsed, repeats a key, holds NaN, or is too large or nested too deeply.
    """
    if path.stat().st_size > LARGEST:
        raise NotReadableError(f"more than {LARGEST // 2**20} MB")
    parse, most = (_json, MOST_OF_JSON) if path.suffix.lower() == ".json" else (_yaml, MOST_OF_YAML)
    try:
        document = parse(path.read_text(encoding="utf-8"))
        _check(document, most)
    except (ValueError, OSError) as error:
        raise NotReadableError(str(error).replace("\n", " ")) from error
    except RecursionError as error:
        raise NotReadableError("nested too deeply") from error
    return document


def read_mapping(path: Path, noun: str) -> dict[str, Any]:
    """Return a document as JSON could hold it, as the worker is handed it.

    Raises:
        DataError: it cannot be read, or is no mapping.
    """
    try:
        document = json.loads(json.dumps(read_document(path), default=str))  # dates of YAML, and keys that are numbers
    except NotReadableError as error:
        raise DataError(f"the {noun} cannot be read", path=path, found=error) from error
    if not isinstance(document, dict):
        raise DataError(f"the {noun} is not a mapping", path=path, found=type(document).__name__)
    return document


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_once(key for key, _ in items)
        return dict(items)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, with each key of a mapping once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _require_once(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, OverflowError) as error:
        raise ValueError(f"{error}") from error


def _require_once(keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {key!r} stands twice in one mapping")
        seen.add(key)


def _check(document: Any, most: int) -> None:
    stack, count = [(0, document)], 0
    while stack:
        (depth, value), count = stack.pop(), count + 1
        if count > most:
            raise ValueError(f"more than {most} values")
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("NaN or an infinite number")
        if not isinstance(value, PLAIN):
            raise ValueError(f"a value of the type {type(value).__name__}")
        below = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
        stack += [(depth + 1, part) for part in below]


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

    for error in Draft202012Validator(schema).iter_errors(document):
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
        named.update(packages if isinstance(packages, dict) else {})
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
    except InvalidVersion:
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
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, ValueError, OSError) as error:
        yield Finding(file, "", shown(str(error).replace("\n", " ")), "it cannot be read as a logging configuration")
        return
    for key, value in parser.defaults().items():
        yield Finding(file, "DEFAULT", f"{key}={shown(value)}", "defaults are put into every other section")
    for section in parser.sections():
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
