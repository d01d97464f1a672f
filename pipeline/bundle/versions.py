"""Versions that a bundle was made with, and those that are installed, compared as versions and not as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from pipeline.bundle.finding import Finding, shown

FILE = "configs/metadata.json"
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
            yield Finding(
                FILE,
                key,
                shown(text),
                "made with a newer one than is installed: a downgrade",
                key,
            )
    own, logged = _parsed(metadata.get("version")), metadata.get("changelog")
    known = [found for entry in (logged if isinstance(logged, dict) else ()) if (found := _parsed(entry))]
    if own is not None and known and own < max(known):
        text = f"version {metadata.get('version')}, changelog up to {max(known)}"
        yield Finding(
            FILE, "version", shown(text), "an older version than its own changelog: a downgrade", "version"
        )


def _behind(each: Requirement) -> bool:
    """Whether the installed one differs in more than the last number."""
    wanted, found = _parsed(each.made_with), _parsed(each.installed)
    return wanted is not None and found is not None and found.release[:2] < wanted.release[:2]


def _parsed(text: object) -> Version | None:
    try:
        return Version(str(text))
    except InvalidVersion:
        return None
