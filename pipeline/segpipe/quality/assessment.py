"""What a quality model says of one case: how far it is from those that it was calibrated on, and what to expect.

Plain numbers and words, made in the process that holds the model and read again by whoever decides or reports.
Bounds and intervals are conformal (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005): they
hold for cases exchangeable with the calibration cases, so there are none where a case lies outside of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from segpipe.errors import DataError
from segpipe.quality.population import COVERED, OUTSIDE, UNKNOWN

HELD = "the case is held"


def least_p_value(patients: int) -> float:
    """Return the p-value of a case that is farther than each of so many calibration patients, as an assessment has it.

    >>> from segpipe.quality.assessment import least_p_value
    >>> least_p_value(31)
    0.0312
    """
    return round(1 / (1 + patients), 4)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """How a case compares with the calibration cases.

    >>> from segpipe.quality import Assessment
    >>> far = Assessment(patients=96, p_value=0.01, distance=3.1, groups={"labels": 3.1}, no_interval="outside")
    >>> Assessment.from_dict(far.as_dict()) == far
    True

    Attributes:
        patients: calibration patients behind it.
        p_value: conformal: the share of calibration patients whose cases are at least as far; None where unknown.
        distance: of the farthest group of features; 1 is the 95th percentile of the calibration cases.
        groups: distance by group of features: ``image`` (or one a channel), each label, ``embedding``.
        findings: what is unusual, in words, farthest first.
        dice: predicted, by label.
        dice_low: its conformal lower bound, by label.
        volume_ml: conformal interval of the true volume in mL, by label.
        level: of bounds and intervals, between 0 and 1.
        no_interval: why neither bounds nor intervals are given; None where they are.
        absent: labels without a voxel here that no calibration case was without.
        population: by covariate whether the case is ``covered`` by the patients known, ``outside`` or ``unknown``.
        outside: who is covered, in words, of each covariate that the case is outside of.
        patients_known: whether it is known whose the calibration cases are; else each of them counts as a patient.

    Raises:
        DataError: a number that cannot be, or bounds beside a reason why there are none.
    """

    patients: int
    p_value: float | None = None
    distance: float | None = None
    groups: dict[str, float] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    dice: dict[str, float] = field(default_factory=dict)
    dice_low: dict[str, float] = field(default_factory=dict)
    volume_ml: dict[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.9
    no_interval: str | None = None
    absent: tuple[str, ...] = ()
    population: dict[str, str] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    patients_known: bool = True

    def __post_init__(self) -> None:
        for name, value, low, high in self._numbers():
            if not (_is_number(value) and low <= value <= high):
                raise _impossible(name, value, f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}")
        for label, (low, high) in self.volume_ml.items():
            if low > high:
                raise _impossible(f"volume_ml of {label}", f"{low:g} to {high:g}", "its lower end first")
        if self.no_interval is not None and (self.dice_low or self.volume_ml):
            raise _impossible("no_interval", self.no_interval, "neither dice_low nor volume_ml beside it")

    def _numbers(self) -> Iterator[tuple[str, Any, float, float]]:
        """Yield name, value and range of every number."""
        yield "patients", self.patients, 0, math.inf
        yield "level", self.level, 0, 1
        if self.p_value is not None:
            yield "p_value", self.p_value, 0, 1
        if self.distance is not None:
            yield "distance", self.distance, 0, math.inf
        yield from ((f"groups of {name}", value, 0, math.inf) for name, value in self.groups.items())
        for kind in ("dice", "dice_low"):
            yield from ((f"{kind} of {label}", value, 0, 1) for label, value in getattr(self, kind).items())
        for label, ends in self.volume_ml.items():
            yield from ((f"volume_ml of {label}", end, 0, math.inf) for end in ends)

    def without_bounds(self, why: str = HELD) -> Assessment:
        """Return it as it may be shown where bounds and intervals may not; a reason that is there is kept."""
        return replace(self, dice_low={}, volume_ml={}, no_interval=self.no_interval or why)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON has it."""
        intervals = {label: list(ends) for label, ends in self.volume_ml.items()}
        lists = {name: list(getattr(self, name)) for name in ("findings", "absent", "outside")}
        return {**asdict(self), **lists, "volume_ml": intervals}

    @classmethod
    def from_dict(cls, document: Any) -> Assessment:
        """Read what `as_dict` wrote; it may come from a process that ran foreign code.

        Raises:
            DataError: a key too many or a needed one too few, a value of another type, or as of the class.
        """
        known = {part.name for part in fields(cls)}
        if not isinstance(document, Mapping):
            raise _impossible("it", type(document).__name__, "an object")
        if unknown := sorted(str(key) for key in set(document) - known):
            raise _impossible("a key", unknown[0], ", ".join(sorted(known)))
        if "patients" not in document:
            raise _impossible("a key", "no patients", "the number of calibration patients")
        return cls(
            **{name: _READERS.get(name, lambda _, value: value)(name, value) for name, value in document.items()}
        )


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _impossible(name, repr(value)[:60], "an object by name")
    return dict(value)


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise _impossible(name, repr(value)[:60], "a list of texts")
    return tuple(value)


def _population(name: str, value: Any) -> dict[str, str]:
    said = _mapping(name, value)
    wrong = next((each for each in said.values() if each not in (COVERED, OUTSIDE, UNKNOWN)), None)
    if wrong is not None:
        raise _impossible(name, repr(wrong)[:60], f"{COVERED}, {OUTSIDE} or {UNKNOWN}")
    return said


def _intervals(name: str, value: Any) -> dict[str, tuple[float, float]]:
    pairs = _mapping(name, value)
    wrong = next((ends for ends in pairs.values() if not isinstance(ends, (list, tuple)) or len(ends) != 2), None)
    if wrong is not None:
        raise _impossible(name, repr(wrong)[:60], "two ends")
    return {label: (low, high) for label, (low, high) in pairs.items()}


def _patients(name: str, value: Any) -> int:
    if type(value) is not int:
        raise _impossible(name, repr(value)[:60], "a whole number")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _impossible(name, repr(value)[:60], "true or false")
    return value


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _impossible(name, repr(value)[:60], "a text or null")
    return value


def _as_it_is(_name: str, value: Any) -> Any:
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "patients": _patients,
    "groups": _mapping,
    "findings": _words,
    "dice": _mapping,
    "dice_low": _mapping,
    "volume_ml": _intervals,
    "no_interval": _text,
    "absent": _words,
    "population": _population,
    "outside": _words,
    "patients_known": _switch,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _impossible(name: str, found: object, expected: str) -> DataError:
    return DataError(f"an assessment of quality cannot be used: {name}", found=found, expected=expected)
