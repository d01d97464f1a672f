"""What vetting says: a use of code that a config names, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["target", "expression", "import", "macro", "argument", "file"]
SHOWN = 300


@dataclass(frozen=True)
class Finding:
    """Something in a bundle that is not admitted.

    Attributes:
        file: path within the bundle.
        place: id path in a config (``evaluator::network``), section of an INI file, or member of an archive.
        text: what stands there, cut to `SHOWN` characters.
        reason: why it is refused.
        name: what ``--allow`` must say to admit it; None where nothing admits it.
    """

    file: str
    place: str
    text: str
    reason: str
    name: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Return plain values, as in the JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Use:
    """One place where a bundle would run code: a target, an expression, an import, a file of code.

    Attributes:
        file: path within the bundle.
        place: as in `Finding`.
        kind: what it is.
        text: what stands there.
        names: each name that it uses, resolved to where it is defined.
        findings: what speaks against it; empty where all of it is admitted.
    """

    file: str
    place: str
    kind: Kind
    text: str
    names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def shown(value: object) -> str:
    """Return a value in one line of bounded length, whatever it is."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def printable(text: str) -> str:
    """Return text for a terminal: control characters and those that turn the reading order are shown by their code."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def plain(findings: Iterable[Finding]) -> list[dict[str, str | None]]:
    """Return findings as a refusal carries them to a terminal."""
    return [{key: text and printable(text) for key, text in finding.as_dict().items()} for finding in findings]
