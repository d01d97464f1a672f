"""Values of label maps: which may stay, which become another label (``--label-values 255=1``), and what can be done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segpipe.common.console import digits, some_of
from segpipe.errors import DataError, UsageError

RULE = re.compile(r"(?P<value>-?\d{1,10}(?:\.\d{1,12})?)=(?P<label>\d{1,3})")
MOST_HINTS = 8
MOST_VALUES = 1000
NEARLY = 1e-3  # from a whole number: rounded somewhere; further away: interpolated


@dataclass(frozen=True)
class ValueRules:
    """Which value of a label map becomes which label; other values stay as they are.

    Attributes:
        labels: value, as `digits` writes it, to label.
        ignored: value, as it is then, of voxels that nobody annotated; None where no option says so.
    """

    labels: dict[str, int] = field(default_factory=dict)
    ignored: int | None = None

    def label_of(self, value: float) -> float:
        """Return the label that a value becomes, or the value itself."""
        return self.labels.get(digits(value), value)

    def require_apart(self, values: Iterable[float], path: Path) -> None:
        """Refuse a rule that would join two values of the label maps, of which only one is named.

        Raises:
            DataError: naming both.
        """
        for value in sorted(values):
            joined = [text for text, label in self.labels.items() if label == value != 0 and text != digits(value)]
            if joined and digits(value) not in self.labels:
                both = ",".join(f"{text}={value:.0f}" for text in (digits(value), *joined))
                raise DataError(
                    "two values of the label maps would become one label",
                    path=path,
                    found=f"{digits(value)}, and {', '.join(joined)} by --label-values",
                    hint=f"if they mean the same, name both: --label-values {both}; else choose another label",
                )

    def require_met(self, values: Iterable[float]) -> None:
        """Refuse a rule for a value that no label map has.

        Raises:
            UsageError: naming it.
        """
        found = {digits(value) for value in values}
        unmet = [text for text in self.labels if text not in found]
        if unmet:
            raise UsageError(
                "no label map has a value that --label-values names",
                found=", ".join(unmet),
                expected=f"one of {some_of(sorted(found, key=float))}",
            )


def parse_label_values(words: Sequence[str], ignored: int | None = None) -> ValueRules:
    """Read ``255=1``, several with commas or repeated.

    Args:
        words: as they were given.
        ignored: value of voxels that nobody annotated.

    Raises:
        UsageError: not a rule, a value with two labels, or one that cannot be ignored.
    """
    if ignored is not None and not 0 < ignored <= 255:
        raise UsageError("no such value to ignore", found=ignored, expected="1 to 255")
    labels: dict[str, int] = {}
    for word in (part.strip() for text in words for part in text.split(",")):
        match = RULE.fullmatch(word)
        if match is None or int(match["label"]) > 255:
            raise UsageError("not a rule for label values", found=word, expected="VALUE=LABEL, e.g. 255=1 or 2=1,3=2")
        value, label = digits(float(match["value"])), int(match["label"])
        if labels.setdefault(value, label) != label:
            raise UsageError(f"value {value} is given two labels", found=f"{labels[value]} and {label}")
    return ValueRules(labels, ignored)


NO_RULES = ValueRules()


def parse_region(word: str) -> tuple[str, list[int]]:
    """Read ``NAME=1,2,3``, a region and the label values that it joins.

    Raises:
        UsageError: something else.
    """
    name, separator, values = word.rpartition("=")
    if not separator or not name.strip() or not re.fullmatch(r"\d{1,3}(,\d{1,3})*", values):
        raise UsageError("a region cannot be read", found=word, expected="NAME=1,2,3: the label values that it joins")
    return name.strip(), [int(value) for value in values.split(",")]


def parse_annotated(word: str) -> tuple[str, list[str]]:
    """Read ``PATTERN=LABEL,LABEL``, cases and the labels that were looked for in them.

    Raises:
        UsageError: something else.
    """
    pattern, separator, labels = word.partition("=")
    names = [name.strip() for name in labels.split(",")]
    if not separator or not pattern or not all(names):
        raise UsageError(
            "what was looked for in cases cannot be read", found=word, expected="PATTERN=LABEL,LABEL, e.g. btcv_*=liver"
        )
    return pattern, names


def require_run(values: Iterable[float], path: Path) -> None:
    """Refuse values that do not run 1, 2, 3, ..., with what to do.

    Raises:
        DataError: naming the values.
    """
    found = sorted({*values, 0})
    if found != list(range(len(found))) or len(found) < 2:
        raise DataError(
            "the label values do not run 1, 2, 3, ...",
            path=path,
            found=some_of(map(digits, found)),
            expected="whole numbers without gaps",
            hint=how_to_rename(found) if len(found) > 1 else "are these the label maps?",
        )


def require_labels(values: Mapping[float, Path], named: int | None = None) -> None:
    """Refuse values that are no labels, with what to do about them.

    Args:
        values: of all label maps, each with a file that has it.
        named: how many labels have a name; None where none has yet.

    Raises:
        DataError: naming such a file, and the values with all their digits.
    """
    highest = 255 if named is None else named
    odd = [value for value in values if not (np.isfinite(value) and value == round(value) and 0 <= value <= highest)]
    if odd:
        raise DataError(
            "a label map has values that are no labels",
            path=values[odd[0]],
            found=some_of(map(digits, odd)),
            expected=f"whole numbers from 0 to {highest}",
            hint=how_to_rename(values, named),
        )


def how_to_rename(values: Iterable[float], highest: int | None = None) -> str:
    """Return what can be done about values that do not run 1, 2, 3, ..., as a command that can be given.

    Args:
        values: of the label maps.
        highest: label that has a name; None where labels have none yet.
    """
    wanted = sorted({value for value in values if value})
    if any(not np.isfinite(value) for value in wanted):
        return "write these label maps again: a voxel that is not finite is none of the labels"
    if any(abs(value - round(value)) > NEARLY for value in wanted):
        return "the label maps were interpolated: make them again with nearest neighbours, which keep whole numbers"
    whole = sorted({round(value) for value in wanted if value > 0})
    to = {value: rank for rank, value in enumerate(whole, 1)} if highest is None else _to_free(whole, highest)
    rules = [f"{digits(value)}={to.get(round(value), 0)}" for value in wanted if value != to.get(round(value), 0)]
    if not rules or len(rules) > MOST_HINTS:
        return "give each value its label while importing: segpipe import ... --label-values VALUE=LABEL,VALUE=LABEL"
    text = f"give them labels while importing: segpipe import ... --label-values {','.join(rules)}"
    if 255 in whole and len(whole) > 1:
        text += "; if 255 marks voxels that nobody annotated, leave them out: segpipe import ... --ignore-label 255"
    return text


def _to_free(whole: Sequence[int], highest: int) -> dict[int, int]:
    """Give values beyond the named labels those names that no value has, in order."""
    free = [label for label in range(1, highest + 1) if label not in whole]
    beyond = [value for value in whole if value > highest]
    return {**{value: value for value in whole if value <= highest}, **dict(zip(beyond, free, strict=False))}
