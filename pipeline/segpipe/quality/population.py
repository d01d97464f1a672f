"""Which patients and scanners a quality model knows, in counts, and whether a case is of these.

A value counts as known from five patients on: fewer say little of a kind of patient, and too much of each. Ages are
bins of whole decades, as many together as five patients need.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST = 5  # patients of a value, or of a bin
DECADE = 10
WORDS_OF_POPULATION = {  # name of a covariate, to what it is called
    "age_years": "age",
    "sex": "sex",
    "maker": "maker of the scanner",
    "field_strength_t": "field strength",
    "kernel": "reconstruction kernel",
    "contrast_phase": "contrast phase",
    "body_part": "body part",
    "position": "position of the patient",
}
COVERED, OUTSIDE, UNKNOWN = "covered", "outside", "unknown"
Known = Mapping[str, str | float]


@dataclass(frozen=True)
class Population:
    """Patients by covariate.

    Attributes:
        ages: bins, each from so many years up to below so many, and its patients.
        values: of every other covariate, value to patients, each of five at least.
        fewer: by covariate, patients whose value fewer than five have.
        unknown: by covariate, patients of whom it is not known.
    """

    ages: tuple[tuple[int, int, int], ...] = ()
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    fewer: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[tuple[str, Known]]) -> Population:
        """Return that of cases, each with its patient and what is known of it.

        >>> Population.of([(f"p{n}", {"sex": "F" if n < 6 else "M", "age_years": 20 + n}) for n in range(8)])
        Population(ages=((20, 30, 8),), values={'sex': {'F': 6}}, fewer={'sex': 2}, unknown={})
        """
        seen: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in WORDS_OF_POPULATION}
        patients = {patient for patient, _ in cases}
        for patient, known in cases:
            for name in WORDS_OF_POPULATION:
                if name in known:
                    seen[name][_value(name, known[name])].add(patient)
        found: dict[str, dict[str, int]] = {}
        fewer, unknown = {}, {}
        for name, by_value in seen.items():
            if not by_value:
                continue
            if lacking := len(patients - set[str]().union(*by_value.values())):
                unknown[name] = lacking
            if name == "age_years":
                continue
            found[name] = {value: len(own) for value, own in sorted(by_value.items()) if len(own) >= LEAST}
            if rare := sum(len(own) for own in by_value.values() if len(own) < LEAST):
                fewer[name] = rare
        decades = Counter({int(decade): len(own) for decade, own in seen["age_years"].items()})
        ages, rare = _bins(decades)
        return cls(ages, found, fewer | ({"age_years": rare} if rare else {}), unknown)

    def judge(self, known: Known) -> dict[str, str]:
        """Return by covariate whether a case is ``covered``, ``outside``, or whether that is ``unknown``.

        Args:
            known: of the case.
        """
        said = {}
        for name in WORDS_OF_POPULATION:
            if name not in known or not self._knows(name):
                said[name] = UNKNOWN
            elif name == "age_years":
                age = float(known[name])
                said[name] = COVERED if any(low <= age < high for low, high, _ in self.ages) else OUTSIDE
            else:
                said[name] = COVERED if _value(name, known[name]) in self.values[name] else OUTSIDE
        return said

    def _knows(self, name: str) -> bool:
        return bool(self.ages) if name == "age_years" else bool(self.values.get(name))

    def in_words(self, name: str) -> str:
        """Return the patients of a covariate, such as ``20 to 59 years: 41 patients``; empty where none are known."""
        if name == "age_years":
            parts = [f"{low} to {high - 1} years: {count} patients" for low, high, count in self.ages]
        else:
            unit = " T" if name == "field_strength_t" else ""
            parts = [f"{value}{unit}: {count} patients" for value, count in self.values.get(name, {}).items()]
        parts += [f"other values: {self.fewer[name]}"] if name in self.fewer and parts else []
        parts += [f"unknown: {self.unknown[name]}"] if name in self.unknown and parts else []
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return {
            "age_years": [list(each) for each in self.ages],
            "values": self.values,
            "fewer": self.fewer,
            "unknown": self.unknown,
        }

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Population:
        """Return what `as_dict` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: something else.
        """
        ages = tuple((int(low), int(high), int(count)) for low, high, count in parts["age_years"])
        values = {
            str(name): {str(value): int(count) for value, count in own.items()} for name, own in parts["values"].items()
        }
        counts = ({str(name): int(count) for name, count in parts[key].items()} for key in ("fewer", "unknown"))
        if unknown := sorted(set(values) - set(WORDS_OF_POPULATION)):
            raise ValueError(f"a covariate {unknown[0]}")
        return cls(ages, values, *counts)


def _value(name: str, value: str | float) -> str:
    """Return a value as it is counted: of an age its decade."""
    if name == "age_years":
        return str(int(float(value)) // DECADE)
    return f"{float(value):g}" if name == "field_strength_t" else " ".join(str(value).upper().split())


def _bins(decades: Mapping[int, int]) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Return bins of at least five patients, and how many are left above them."""
    bins, first, count = [], 0, 0
    for decade in sorted(decades):
        first = decade if not count else first
        count += decades[decade]
        if count >= LEAST:
            bins.append((first * DECADE, (decade + 1) * DECADE, count))
            count = 0
    return tuple(bins), count
