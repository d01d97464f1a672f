"""``metadata.json`` against its schema, and the versions that a bundle was made with against those installed.

The schema is ours where it is a bundle of ours, else the core of MONAI's specification. ``golden.json`` has one too.
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

from segpipe.bundle.vet.files import METADATA
from segpipe.bundle.vet.finding import Finding, shown

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
        here: str | None = version(package)
    except (PackageNotFoundError, ValueError):
        here = None
    if not isinstance(made_with, str) or not made_with:
        return Requirement(package, None, here, "not said")
    wanted, installed = _parsed(made_with), _parsed(here)
    if wanted is None:
        return Requirement(package, made_with, here, "no version")
    if installed is None:
        return Requirement(package, made_with, here, "not installed")
    wanted, installed = Version(wanted.public), Version(installed.public)
    state: State = "same" if installed == wanted else "newer here" if installed > wanted else "older here"
    return Requirement(package, made_with, here, state)


def vet_versions(metadata: Mapping[str, Any], allows: Callable[[str], bool]) -> Iterator[Finding]:
    """Yield a MONAI or torch here that is a release or more behind, what is no version, and a bundle's own downgrade.

    Args:
        metadata: of the bundle.
        allows: whether the user admits a finding of this name, which is the metadata's key.
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
        text, why = (
            f"version {metadata.get('version')}, changelog up to {max(known)}",
            "an older version than its own changelog: a downgrade",
        )
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
