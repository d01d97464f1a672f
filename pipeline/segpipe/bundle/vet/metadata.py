"""``metadata.json`` against our schema where it is a bundle of ours, else against the core of MONAI's specification.

``golden.json`` against the schema of golden cases.

Versions that a bundle was made with, and those that are installed, compared as versions and not as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from segpipe.bundle.vet.finding import Finding, shown

FILE = "configs/metadata.json"
_OURS = {"commands", "config_requirements", "evaluate_section"}
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
# https://docs.monai.io/en/stable/mb_specification.html: what a bundle must say, without which nobody can run it
CORE: Mapping[str, Any] = {
    "type": "object",
    "required": ["version", "monai_version", "pytorch_version", "network_data_format"],
    "properties": {
        "version": _TEXT,
        "monai_version": _TEXT,
        "pytorch_version": _TEXT,
        "numpy_version": _TEXT,
        "changelog": _OBJECT,
        "required_packages_version": _OBJECT,
        "optional_packages_version": _OBJECT,
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _OBJECT, "outputs": _OBJECT},
        },
    },
}


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether metadata was written by `segpipe export`."""
    return set(metadata) >= _OURS


def vet_schema(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Each place where metadata is not as its schema says."""
    yield from breaches(metadata, _packaged("bundle_metadata") if is_ours(metadata) else CORE, FILE)


def vet_golden_schema(document: Any, file: str) -> Iterator[Finding]:
    """The same of ``golden.json``."""
    yield from breaches(document, _packaged("golden"), file)


def breaches(document: Any, schema: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Each place where a document is not as a schema says."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(document):
        place = "::".join(str(part) for part in error.absolute_path)
        yield Finding(file, place, shown(error.instance) if place else "", shown(error.message))


@cache
def _packaged(name: str) -> dict[str, Any]:
    text = (files("segpipe") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


_MAIN = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_DECIDE = ("monai", "torch")  # what runs the configs; an older one may lack what they rely on
State = Literal["same", "newer here", "older here", "not installed", "not said", "no version"]


@dataclass(frozen=True)
class Requirement:
    """One package: what the bundle names, what is here, and how they compare."""

    package: str
    made_with: str | None
    installed: str | None
    state: State


def requirements(metadata: Mapping[str, Any]) -> list[Requirement]:
    """Packages of a bundle's metadata, MONAI, torch and numpy first."""
    named: dict[str, Any] = {package: metadata.get(key) for key, package in _MAIN.items()}
    for key in ("required_packages_version", "optional_packages_version"):
        more = metadata.get(key)
        named.update(more if isinstance(more, dict) else {})
    return [_compare(str(package), made_with) for package, made_with in named.items()]


def _compare(package: str, made_with: Any) -> Requirement:
    try:
        here: str | None = version(package)
    except (PackageNotFoundError, ValueError):
        here = None
    if not isinstance(made_with, str) or not made_with:
        return Requirement(package, None, here, "not said")
    wanted = _parsed(made_with)
    if wanted is None:
        return Requirement(package, made_with, here, "no version")
    found = _parsed(here) if here else None
    if found is None:
        return Requirement(package, made_with, here, "not installed")
    wanted, found = Version(wanted.public), Version(found.public)
    state: State = "same" if found == wanted else "newer here" if found > wanted else "older here"
    return Requirement(package, made_with, here, state)


def vet_versions(metadata: Mapping[str, Any], allows: Callable[[str], bool]) -> Iterator[Finding]:
    """A MONAI or torch here that is a release or more behind, no version at all, and a bundle older than its changelog.

    Args:
        metadata: of the bundle.
        allows: whether the user admits a finding of this name, which is the metadata's key.
    """
    yield from (each for each in _downgrades(metadata) if each.name is None or not allows(each.name))


def _downgrades(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for each in requirements(metadata):
        key = next((key for key, package in _MAIN.items() if package == each.package), each.package)
        text = f"{each.package} {each.made_with}; installed: {each.installed}"
        if each.state == "no version":
            yield Finding(FILE, key, shown(each.made_with), "not a version", key)
        elif each.state == "older here" and each.package in _DECIDE and _behind(each):
            yield Finding(FILE, key, shown(text), "made with a newer one than is installed: a downgrade", key)
    own, logged = _parsed(metadata.get("version")), metadata.get("changelog")
    known = [found for entry in (logged if isinstance(logged, dict) else ()) if (found := _parsed(entry))]
    if own is not None and known and own < max(known):
        text = f"version {metadata.get('version')}, changelog up to {max(known)}"
        yield Finding(FILE, "version", shown(text), "an older version than its own changelog: a downgrade", "version")


def _behind(each: Requirement) -> bool:
    """Whether the installed one differs in more than the last number."""
    wanted, found = _parsed(each.made_with), _parsed(each.installed)
    return wanted is not None and found is not None and found.release[:2] < wanted.release[:2]


def _parsed(text: object) -> Version | None:
    try:
        return Version(str(text))
    except InvalidVersion:
        return None
