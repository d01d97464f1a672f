"""Which DICOM region or segment becomes which label: ``PATTERN=VALUE`` or ``PATTERN=VALUE:NAME``, as the user says it.

A pattern is compared with a whole name, without regard to upper and lower case; ``*`` stands for any characters, ``?``
for one. The first pattern that fits decides. Value 0 leaves a region out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from segpipe.errors import UsageError

RULE = re.compile(r"(?P<pattern>.+)=(?P<value>\d{1,3})(?::(?P<name>[^=]+))?", re.DOTALL)
EXPECTED = "PATTERN=VALUE or PATTERN=VALUE:NAME, e.g. 'GTV*=1:tumour'"


@dataclass(frozen=True)
class LabelRules:
    """The user's rules.

    Attributes:
        patterns: pattern and value, in the order given.
        names: value to name, from 1 on without gaps.
    """

    patterns: tuple[tuple[str, int], ...]
    names: dict[int, str]

    def value_of(self, name: str) -> int | None:
        """Return the value of the first pattern that fits; None where none does."""
        for pattern, value in self.patterns:
            if _fits(pattern, name):
                return value
        return None

    def unused(self, names: Iterable[str]) -> list[str]:
        """Return patterns that fit none of the names."""
        names = list(names)
        return [pattern for pattern, _ in self.patterns if not any(_fits(pattern, name) for name in names)]


def parse_label_rules(words: Sequence[str]) -> LabelRules:
    """Read the rules.

    A value has the NAME that one of its rules gives, or its first pattern where that is a plain word.

    Raises:
        UsageError: not a rule, values with gaps, or a value with two names or none.
    """
    patterns: list[tuple[str, int]] = []
    names: dict[int, str] = {}
    for word in words:
        match = RULE.fullmatch(word)
        if match is None:
            raise UsageError("not a rule for a label", found=repr(word), expected=EXPECTED)
        pattern, value, name = match["pattern"].strip(), int(match["value"]), (match["name"] or "").strip()
        patterns.append((pattern, value))
        if name and names.setdefault(value, name) != name:
            raise UsageError(f"label {value} has two names", found=f"{names[value]!r} and {name!r}")
    values = sorted({value for _, value in patterns} - {0})
    if values != list(range(1, len(values) + 1)) or not values:
        raise UsageError(
            "the label values do not run 1, 2, 3, ...",
            found=", ".join(map(str, values)) or "none",
            expected="whole numbers without gaps, up to 255",
        )
    for pattern, value in patterns:
        if not re.search(r"[*?]", pattern):
            names.setdefault(value, pattern)
    nameless = [value for value in values if value not in names]
    if nameless:
        raise UsageError(f"label {nameless[0]} has no name", expected=EXPECTED)
    return LabelRules(tuple(patterns), {value: names[value] for value in values})


def _fits(pattern: str, name: str) -> bool:
    parts = [".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern)]
    return re.fullmatch("".join(parts), name.strip(), re.IGNORECASE | re.DOTALL) is not None
