"""A folder that a study was begun in goes on with the same settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.errors import UsageError


def differing(asked: Mapping[str, Any], begun: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that are other ones than a study was begun with."""
    return [name for name, value in asked.items() if begun.get(name) != value]


def require_same(asked: Mapping[str, Any], begun: Mapping[str, Any], folder: Path, what: str) -> None:
    """Refuse other settings than a study was begun with, by name.

    Args:
        asked: settings by name.
        begun: those that its folder records.
        folder: of the study.
        what: it was begun with, for the error.

    Raises:
        UsageError: one differs.
    """
    if names := differing(asked, begun):
        raise UsageError(
            f"the folder was begun with {what}",
            path=folder,
            found="; ".join(f"{name}: {_short(asked[name])}" for name in names),
            expected="; ".join(f"{name}: {_short(begun.get(name))}" for name in names),
            hint="give the same command to go on, or another folder for the results",
        )


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
