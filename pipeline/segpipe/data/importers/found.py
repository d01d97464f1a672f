"""What the readers of foreign layouts share: the form of what they found, and how they complain.

Who a case is of, told from its id where the data set does not say.

none            nothing is known: every case stands for itself
pairs           cases 2k-1 and 2k are of one patient: number n in the id gives patient (n + 1) // 2
regex:PATTERN   the one group of the pattern, searched for in the id, is the patient

Which region or segment becomes which label: ``PATTERN=VALUE`` or ``PATTERN=VALUE:NAME``, as the user says it.

A pattern is compared with a whole name, without regard to upper and lower case; ``*`` stands for any characters, ``?``
for one. The first pattern that fits decides. Value 0 leaves a region out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.console import some_of
from segpipe.errors import DataError, UsageError

CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class FoundCase:
    """One case as it lies on disk; paths are POSIX and relative to the data root."""

    id: str
    images: list[str]
    label: str | None = None
    patient_id: str | None = None


@dataclass(frozen=True)
class FoundDataset:
    """What a reader found below ``root``; ``about`` holds the manifest's descriptive fields."""

    root: Path
    training: list[FoundCase]
    test: list[FoundCase]
    labels: dict[str, str]
    modality: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)


def digest_of_sources(paths: Iterable[Path], settings: Any) -> str:
    """Hash of what a converted file depends on: names, sizes and times of its sources, and settings as plain values.

    Raises:
        UsageError: a source that cannot be read.
    """
    try:
        seen = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    except OSError as error:
        raise UsageError("a file cannot be read", path=error.filename, found=error.strerror) from error
    return hashlib.sha256(json.dumps([seen, settings]).encode()).hexdigest()


def refusal(what: str, faults: Mapping[str, str], usable: int) -> DataError:
    """The error that names everything that cannot be used, with the reason."""
    return DataError(
        f"{len(faults)} {what} cannot be used, {usable} can",
        found="; ".join(f"{id}: {fault}" for id, fault in sorted(faults.items())),
        hint="mend them, or leave them out with --skip-bad" if usable else "mend them",
    )


def require_files(root: Path, cases: Iterable[FoundCase], source: Path) -> None:
    """Refuse a list of cases that names files which are not there.

    Raises:
        DataError: naming the missing files.
    """
    paths = [path for case in cases for path in [*case.images, *([case.label] if case.label else [])]]
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing",
            path=source,
            found=some_of(missing),
            expected=f"below {root}",
            hint="complete the data, or take these cases out of the list",
        )


def label_names(document: Any, source: Path) -> dict[str, str]:
    """Label value to name, from ``{"1": "liver"}`` (Decathlon) or ``{"liver": 1}`` (nnU-Net).

    Raises:
        DataError: not a mapping, regions (several values for one name), an ignore label, or no whole numbers.
    """
    if not isinstance(document, dict) or not document:
        raise DataError("the data set names no labels", path=source, found=repr(document), expected="an object")
    names: dict[str, str] = {}
    for key, entry in document.items():
        if isinstance(entry, (list, tuple)):
            raise DataError(
                f"label {key!r} is a region of several values",
                path=source,
                found=repr(entry),
                expected="one whole number a label",
                hint="regions are not supported: write label maps with one value a structure",
            )
        value, name = (key, str(entry)) if str(key).isdecimal() else (entry, str(key))
        if name.lower() == "ignore":
            raise DataError(
                "an ignore label is not supported",
                path=source,
                found=f"{key!r}: {entry!r}",
                hint="take the voxels that are not annotated out of the data set",
            )
        if not re.fullmatch("[0-9]{1,3}", str(value)):
            raise DataError(
                f"label {name[:80]!r} has no whole number", path=source, found=repr(value)[:80], expected="0 to 255"
            )
        if str(int(value)) in names:
            raise DataError(f"label value {value} has two names", path=source, found=f"{name!r}")
        names[str(int(value))] = "background" if int(value) == 0 else name
    names.setdefault("0", "background")
    return names


def channel_names(document: Any, source: Path) -> dict[str, str]:
    """Channel index to modality, from an object or a list.

    Raises:
        DataError: neither, or empty.
    """
    if isinstance(document, list):
        document = {str(index): name for index, name in enumerate(document)}
    if not isinstance(document, dict) or not document:
        raise DataError("the data set names no image channels", path=source, found=repr(document))
    return {str(index): str(name) for index, name in document.items()}


PatientOf = Callable[[str], str | None]


def patient_rule(rule: str) -> PatientOf:
    """The function from case id to patient id that a rule stands for.

    Raises:
        UsageError: no such rule, or a pattern that is not one with exactly one group.
    """
    if rule == "none":
        return lambda _case_id: None
    if rule == "pairs":
        return _pair
    if rule.startswith("regex:"):
        return _matcher(rule.removeprefix("regex:"))
    raise UsageError("no such patient rule", found=rule, expected="pairs, regex:PATTERN or none")


def _pair(case_id: str) -> str:
    numbers = re.findall(r"\d+", case_id)
    if len(numbers) != 1 or int(numbers[0]) < 1:
        raise DataError(
            "the patient rule `pairs` cannot be applied",
            case_id=case_id,
            found=f"numbers {numbers}",
            expected="exactly one number of at least 1 in the id",
            hint="use --patient-rule regex:PATTERN or none",
        )
    return f"P{(int(numbers[0]) + 1) // 2:03d}"


def _matcher(pattern: str) -> PatientOf:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError("the patient rule's pattern cannot be read", found=f"{pattern!r}: {error}") from error
    if compiled.groups != 1:
        raise UsageError(
            "the patient rule's pattern needs exactly one group",
            found=f"{pattern!r} with {compiled.groups}",
            expected=r"e.g. regex:^(sub-\d+)_",
        )

    def match(case_id: str) -> str:
        found = compiled.search(case_id)
        if found is None or not found.group(1):
            raise DataError("the patient rule does not match the id", case_id=case_id, expected=pattern)
        return found.group(1)

    return match


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
        """The value of the first pattern that fits; None where none does."""
        for pattern, value in self.patterns:
            if _fits(pattern, name):
                return value
        return None

    def unused(self, names: Iterable[str]) -> list[str]:
        """Patterns that fit none of the names."""
        names = list(names)
        return [pattern for pattern, _ in self.patterns if not any(_fits(pattern, name) for name in names)]


def label_rules(words: Sequence[str]) -> LabelRules:
    """Read the rules.

    A value has the NAME that one of its rules gives, or its first pattern where that is a plain word.

    Raises:
        UsageError: not a rule, values with gaps, or a value with two names or none.
    """
    patterns: list[tuple[str, int]] = []
    said: dict[int, str] = {}
    for word in words:
        match = RULE.fullmatch(word)
        if match is None:
            raise UsageError("not a rule for a label", found=repr(word), expected=EXPECTED)
        pattern, value, name = match["pattern"].strip(), int(match["value"]), (match["name"] or "").strip()
        patterns.append((pattern, value))
        if name and said.setdefault(value, name) != name:
            raise UsageError(f"label {value} has two names", found=f"{said[value]!r} and {name!r}")
    values = sorted({value for _, value in patterns} - {0})
    if values != list(range(1, len(values) + 1)) or not values:
        raise UsageError(
            "the label values do not run 1, 2, 3, ...",
            found=", ".join(map(str, values)) or "none",
            expected="whole numbers without gaps, up to 255",
        )
    for pattern, value in patterns:
        if not re.search(r"[*?]", pattern):
            said.setdefault(value, pattern)
    nameless = [value for value in values if value not in said]
    if nameless:
        raise UsageError(f"label {nameless[0]} has no name", expected=EXPECTED)
    return LabelRules(tuple(patterns), {value: said[value] for value in values})


def _fits(pattern: str, name: str) -> bool:
    parts = [".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern)]
    return re.fullmatch("".join(parts), name.strip(), re.IGNORECASE | re.DOTALL) is not None
