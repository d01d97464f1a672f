"""Which patients and scanners a quality model knows, in counts, and whether a case is of these.

A value counts as known from five patients on: fewer say little of a kind of patient, and too much of each. Ages are
bins of whole decades; decades that follow each other are joined where each has fewer than five, so that no bin reaches
beyond the ages that are known. Counts are rounded down to fives, and what is left over is told from ten on alone: the
patients of a model are known as well, and what they are more than its parts would else be a few that can be named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

LEAST = 5  # patients of a value, or of a bin; counts are in steps of as many
LEAST_LEFT_OVER = 2 * LEAST  # else one of fewer than five would follow from the patients of a model
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
    """Patients by covariate, rounded down to fives.

    Attributes:
        ages: bins, each from so many years up to below so many, and its patients.
        values: of every other covariate, value to patients, each of five at least.
        fewer: by covariate, patients whose value fewer than five have, from ten on.
        unknown: by covariate, patients of whom it is not known, from ten on.
    """

    ages: tuple[tuple[int, int, int], ...] = ()
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    fewer: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[tuple[str, Known]]) -> Population:
        """Return that of cases, each with its patient and what is known of it.

        >>> Population.of([(f"p{n}", {"sex": "F" if n < 6 else "M", "age_years": 20 + n}) for n in range(8)])
        Population(ages=((20, 30, 5),), values={'sex': {'F': 5}}, fewer={}, unknown={})
        """
        seen: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in WORDS_OF_POPULATION}
        patients = {patient for patient, _ in cases}
        for patient, known in cases:
            for name in WORDS_OF_POPULATION:
                if name in known:
                    seen[name][_value(name, known[name])].add(patient)
        found: dict[str, dict[str, int]] = {}
        fewer: dict[str, set[str]] = {}
        unknown: dict[str, set[str]] = {}
        for name, by_value in seen.items():
            if not by_value:
                continue
            unknown[name] = patients - _united(by_value.values())
            if name == "age_years":
                continue
            found[name] = {value: _rounded(own) for value, own in sorted(by_value.items()) if len(own) >= LEAST}
            fewer[name] = _united(own for own in by_value.values() if len(own) < LEAST)
        ages, fewer["age_years"] = _bins({int(decade): own for decade, own in seen["age_years"].items()})
        return cls(ages, found, _left_over(fewer), _left_over(unknown))

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
        """Return the patients of a covariate, ``20 to 59 years: at least 40 patients``; empty where none is."""
        if name == "age_years":
            parts = [f"{low} to {high - 1} years: at least {count} patients" for low, high, count in self.ages]
        else:
            unit = " T" if name == "field_strength_t" else ""
            parts = [f"{value}{unit}: at least {count} patients" for value, count in self.values.get(name, {}).items()]
        parts += [f"other values: at least {self.fewer[name]}"] if name in self.fewer and parts else []
        parts += [f"unknown: at least {self.unknown[name]}"] if name in self.unknown and parts else []
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


def _bins(decades: Mapping[int, Set[str]]) -> tuple[tuple[tuple[int, int, int], ...], set[str]]:
    """Return bins of at least five patients, and the patients of decades that are in none."""
    bins, rare, gathered = [], set[str](), list[int]()
    for decade in sorted(decades):
        if gathered and (decade - gathered[-1] > 1 or len(decades[decade]) >= LEAST):
            rare |= _united(decades[each] for each in gathered)
            gathered = []
        gathered.append(decade)
        patients = _united(decades[each] for each in gathered)
        if len(patients) >= LEAST:
            bins.append((gathered[0] * DECADE, (decade + 1) * DECADE, _rounded(patients)))
            gathered = []
    return tuple(bins), rare | _united(decades[each] for each in gathered)


def _united(sets: Iterable[Set[str]]) -> set[str]:
    return set[str]().union(*sets)


def _rounded(patients: Set[str]) -> int:
    return len(patients) // LEAST * LEAST


def _left_over(patients: Mapping[str, Set[str]]) -> dict[str, int]:
    return {name: _rounded(own) for name, own in patients.items() if len(own) >= LEAST_LEFT_OVER}
