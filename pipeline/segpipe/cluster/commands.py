"""A command of ours as its own parser reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """The words of a command, and what they mean.

    Attributes:
        words: without ``segpipe``: the verb, then its arguments and options in any order.
        places: arguments that were given, by name.
        options: those that were given, by name such as ``--out``; a list where they may be repeated.
        names: every spelling of an option to its name, and whether a value follows.

    >>> names = {"-o": ("--out", True), "--out": ("--out", True), "--json": ("--json", False)}
    >>> Command(("next", "-o", "a", "b", "--json", "--out=c"), names=names).without("--out")
    ['next', 'b', '--json']
    """

    words: tuple[str, ...]
    places: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        """Return the first word."""
        return self.words[0] if self.words else ""

    def text(self, option: str) -> str | None:
        """Return the value of an option as a word; None where it was not given."""
        value = self.options.get(option)
        return None if value is None else str(value)

    def without(self, *options: str) -> list[str]:
        """Return the words without some options and their values."""
        kept: list[str] = []
        words = iter(self.words)
        for word in words:
            if word == "--":
                return [*kept, word, *words]
            name, joined = (word.partition("=")[0], "=" in word) if word.startswith("--") else (word[:2], len(word) > 2)
            option, takes_value = self.names.get(name, ("", False))
            span = [word, *([next(words)] if takes_value and not joined else [])]
            kept += [] if option in options else span
        return kept
