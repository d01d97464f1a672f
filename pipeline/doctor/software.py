"""The packages that segpipe says it needs, and whether those that are installed are among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any, Literal

OWN = "segpipe"
State = Literal["ok", "missing", "conflict"]


@dataclass(frozen=True)
class Need:
    """One requirement of segpipe.

    Attributes:
        package: its name.
        required: range of versions, empty where any will do.
        installed: version that is here.
        extra: the extra of segpipe that it belongs to; None where segpipe needs it anyhow.
        state: whether what is installed is within the range.
    """

    package: str
    required: str
    installed: str | None
    extra: str | None
    state: State


def needs() -> list[Need]:
    """Every requirement of the installed segpipe; empty where it is not installed as a package."""
    return list(_needs())


def extras(found: list[Need]) -> list[dict[str, Any]]:
    """Each extra of segpipe, and what of it is missing."""
    names = dict.fromkeys(each.extra for each in found if each.extra)
    return [
        {
            "name": name,
            "missing": [each.package for each in found if each.extra == name and each.state == "missing"],
        }
        for name in names
    ]


def as_dicts(found: list[Need]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(each) for each in found]


def supported_pythons() -> str | None:
    """The range of Python versions, as the installed segpipe says it."""
    try:
        return metadata(OWN)["Requires-Python"]
    except (PackageNotFoundError, KeyError):
        return None


def _needs() -> Iterator[Need]:
    from packaging.requirements import Requirement

    try:
        lines = requires(OWN) or []
    except PackageNotFoundError:
        return
    for line in lines:
        need = Requirement(line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if need.marker and not need.marker.evaluate({"extra": extra[1] if extra else ""}):
            continue  # for another Python or system
        here = _version(need.name)
        fits = here is not None and need.specifier.contains(here, prereleases=True)
        state: State = "missing" if here is None else "ok" if fits else "conflict"
        yield Need(need.name, str(need.specifier), here, extra[1] if extra else None, state)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
