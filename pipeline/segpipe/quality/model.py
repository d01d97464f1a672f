"""What a bundle knows of the cases that it was made with, and what it says of a new one: ``configs/quality.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import read_json
from segpipe.errors import DataError
from segpipe.quality.assessment import Assessment
from segpipe.quality.decisions import QUALITY
from segpipe.quality.embedding import EMBEDDING, Embedding
from segpipe.quality.features import kind_of
from segpipe.quality.plausibility import Features, Group, Plausibility, group_of, is_of_image
from segpipe.quality.population import OUTSIDE as OUTSIDE_OF_POPULATION
from segpipe.quality.population import WORDS_OF_POPULATION, Known, Population
from segpipe.quality.regression import Boosted

RUN_QUALITY = "quality.json"  # of a cross-validation
SCHEMA_VERSION = 2
READ = (1, 2)  # versions; the first knows no embedding
FAR = 1.0  # distance from which a group is spoken of
MOST_FINDINGS, MOST_OF_A_GROUP = 6, 2
SPREADS = 2.5  # off the median, from which a feature is spoken of
DOUBT = "doubt"


@dataclass(frozen=True, eq=False)
class LabelModel:
    """What is known of one label.

    Attributes:
        cases: in how many it was, of all that were looked at.
        dice: from a row of `inputs_of` to the Dice that is expected; None where too few patients are known.
        margin: by how much that is lowered to a bound that holds.
        volume: logarithms of true against predicted volume, between which it lies.
    """

    cases: int
    dice: Boosted | None = None
    margin: float = 1.0
    volume: tuple[float, float] = (0.0, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        if self.dice is None:
            return {"cases": self.cases}
        return {
            "cases": self.cases,
            "dice": self.dice.as_dict(),
            "margin": self.margin,
            "log_volume_ratio": list(self.volume),
        }

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> LabelModel:
        """Return what `as_dict` gave."""
        if "dice" not in parts:
            return cls(int(parts["cases"]))
        low, high = (float(value) for value in parts["log_volume_ratio"])
        return cls(int(parts["cases"]), Boosted.from_dict(parts["dice"]), float(parts["margin"]), (low, high))


@dataclass(frozen=True, eq=False)
class QualityModel:
    """What a bundle knows of the cases that it was made with.

    Attributes:
        plausibility: distances of features.
        labels: by name.
        patients: whose cases it was made from, each measured by a model that did not see the patient.
        cases: of these.
        level: of bounds and intervals.
        tested: how it did on cases that it was not fitted to, cross-fitted by patient.
        rules: thresholds of a decision that go with it; empty for the usual ones.
        population: who the patients are, where that is known.
        patients_known: whether it is known whose the cases are; else each of them counts as a patient.
    """

    plausibility: Plausibility
    labels: dict[str, LabelModel]
    patients: int
    cases: int
    level: float = 0.9
    tested: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    population: Population = field(default_factory=Population)
    patients_known: bool = True

    def assess(
        self, features: Features, volumes_ml: Mapping[str, float], covariates: Known | None = None
    ) -> Assessment:
        """Say how far a case is from those that are known, and what to expect of its labels.

        Args:
            features: as `features_of` returns them.
            volumes_ml: by label, of the label map as it is given out.
            covariates: what is known of who and how was scanned, by name.
        """
        population = self.population.judge(covariates or {})
        groups = self.plausibility.by_group(features)
        unmeasured = self.plausibility.unmeasured(features)
        distance = None if unmeasured else max(groups.values(), default=0.0)
        p_value = None if distance is None else self.plausibility.p_value(distance)
        outside = _not_measured(unmeasured) if unmeasured else self._outside(groups, distance)
        absent = [name for name in self.labels if not features.get(f"{name}:volume")]
        dice = {
            name: round(min(max(label.dice(inputs_of(self.plausibility, [features], [groups], name)[0]), 0.0), 1.0), 4)
            for name, label in self.labels.items()
            if label.dice is not None and name not in absent
        }
        given = {} if outside else {name: self.labels[name] for name in dict.fromkeys(dice)}
        return Assessment(
            patients=self.patients,
            p_value=None if p_value is None else round(p_value, 4),
            distance=None if distance is None else round(distance, 3),
            groups={name: round(value, 3) for name, value in groups.items()},
            findings=(*self._absences(absent), *self._findings(features, groups)),
            absent=tuple(name for name in absent if name in self.always_there()),
            dice=dice,
            dice_low={name: round(max(dice[name] - label.margin, 0.0), 4) for name, label in given.items()},
            volume_ml={
                name: (
                    round(volumes_ml[name] * math.exp(label.volume[0]), 6),
                    round(volumes_ml[name] * math.exp(label.volume[1]), 6),
                )
                for name, label in given.items()
                if volumes_ml.get(name)
            },
            level=self.level,
            no_interval=outside if dice else "too few patients were known to calibrate it",
            population=population,
            outside=tuple(
                f"{WORDS_OF_POPULATION[name]} (covered: {self.population.in_words(name)})"
                for name, said in population.items()
                if said == OUTSIDE_OF_POPULATION
            ),
            patients_known=self.patients_known,
        )

    def always_there(self) -> tuple[str, ...]:
        """Return the labels that were in every case."""
        return tuple(name for name, label in self.labels.items() if label.cases == self.cases)

    def _outside(self, groups: Mapping[str, float], distance: float | None) -> str | None:
        if distance is None or not self.plausibility.is_outside(distance):
            return None
        farthest = max(groups, key=lambda name: groups[name])
        return f"outside what was calibrated ({_in_words(farthest)})"

    def _absences(self, absent: Sequence[str]) -> list[str]:
        return [
            f"{name} is absent or missed; it was there in {self.labels[name].cases} of {self.cases} cases"
            for name in absent
        ]

    def _findings(self, features: Features, groups: Mapping[str, float]) -> list[str]:
        found = []
        for name in sorted(groups, key=lambda each: -groups[each]):
            if groups[name] <= FAR:
                break
            if name == EMBEDDING:
                found.append(f"{_in_words(name)} is unlike that of the {self.cases} cases")
                continue
            group = self.plausibility.groups[name]
            places, off = group.scaled(features)
            order = [index for index in np.argsort(-np.abs(off)) if abs(off[index]) > SPREADS][:MOST_OF_A_GROUP]
            found += [self._finding(group, int(places[index]), features) for index in order]
            if not order:
                found.append(f"{_in_words(name)} as a whole is unlike the {self.cases} cases, no single measure of it")
        return found[:MOST_FINDINGS]

    def _finding(self, group: Group, index: int, features: Features) -> str:
        name = group.names[index]
        kind, unit = kind_of(name), kind_of(name).unit
        shown = [f"{value:.3g}" for value in (features[name], group.low[index], group.high[index])]
        value, low, high = (f"{number} {unit}".strip() for number in shown)
        return f"{kind.words} of {_in_words(group_of(name))}: {value}; 90 % of {self.cases} cases: {low} to {high}"

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``quality.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "patients": self.patients,
            "patients_known": self.patients_known,
            "cases": self.cases,
            "level": self.level,
            "groups": {name: group.as_dict() for name, group in self.plausibility.groups.items()},
            "embedding": None if self.plausibility.embedding is None else self.plausibility.embedding.as_dict(),
            "distances": list(self.plausibility.distances),
            "labels": {name: label.as_dict() for name, label in self.labels.items()},
            "tested": self.tested,
            "rules": self.rules,
            "population": self.population.as_dict(),
        }

    @classmethod
    def from_dict(cls, document: Any, path: Path | None = None) -> QualityModel:
        """Return what `as_dict` gave.

        Raises:
            DataError: it is something else.
        """
        try:
            if document["schema_version"] not in READ:
                raise ValueError(f"version {document['schema_version']}")
            groups = {name: Group.from_dict(parts) for name, parts in document["groups"].items()}
            distances = tuple(float(value) for value in document["distances"])
            embedded = document.get("embedding")
            return cls(
                Plausibility(groups, distances, None if embedded is None else Embedding.from_dict(embedded)),
                {name: LabelModel.from_dict(parts) for name, parts in document["labels"].items()},
                int(document["patients"]),
                int(document["cases"]),
                float(document["level"]),
                dict(document.get("tested") or {}),
                dict(document.get("rules") or {}),
                Population.from_dict(document["population"]) if document.get("population") else Population(),
                document.get("patients_known", True) is True,  # of an earlier version
            )
        except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
            raise DataError(
                "the quality model of a bundle cannot be read",
                path=path,
                found=f"{type(error).__name__}: {error}",
                expected=f"a {QUALITY} of `segpipe quality fit`",
                hint="get the bundle again",
            ) from error


def has_quality_model(root: Path) -> bool:
    """Return whether a bundle's folder has a quality model."""
    return (root / QUALITY).is_file()


def read_quality_model(root: Path) -> QualityModel | None:
    """Return the quality model of a bundle's folder, None where it has none; the last few are remembered.

    Raises:
        DataError: it cannot be read.
    """
    path = root / QUALITY
    if not path.is_file():
        return None
    facts = path.stat()
    return _read(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int, _size: int) -> QualityModel:
    return QualityModel.from_dict(read_json(path, "quality model"), path)


def input_names(plausibility: Plausibility, label: str) -> list[str]:
    """Return the features that the Dice of a label is predicted from, in order."""
    return [name for group in _groups_of(plausibility, label) for name in group.names]


def _groups_of(plausibility: Plausibility, label: str) -> list[Group]:
    return [known for group, known in plausibility.groups.items() if is_of_image(group) or group == label]


def inputs_of(
    plausibility: Plausibility, cases: Sequence[Features], groups: Sequence[Mapping[str, float]], label: str
) -> NDArray[np.float64]:
    """Return the rows (N, F) that the Dice of a label is predicted from: features, and distances of groups.

    A feature that is not there is given as the median.

    Args:
        plausibility: what cases are held against.
        cases: features of each.
        groups: distances of each, as `Plausibility.by_groups` returns them.
        label: its name.
    """
    usual = {
        name: math.exp(centre) if kind_of(name).log else float(centre)
        for group in _groups_of(plausibility, label)
        for name, centre in zip(group.names, group.centre, strict=True)
    }
    rows = []
    for case, far in zip(cases, groups, strict=True):
        of_image = max((value for name, value in far.items() if is_of_image(name)), default=0.0)
        doubts = [value for name, value in case.items() if name.endswith(f":{DOUBT}")]
        row = [case.get(name, median) for name, median in usual.items()]
        row += [of_image, far.get(label, 0.0), max(far.values(), default=0.0), max(doubts, default=1.0)]
        rows.append(row if plausibility.embedding is None else [*row, far.get(EMBEDDING, 1.0)])
    return np.array(rows, np.float64)


def _not_measured(groups: Sequence[str]) -> str:
    return f"not measured: {', '.join(map(_in_words, groups))}"


def _in_words(group: str) -> str:
    if group == EMBEDDING:
        return "what the network makes of the image as a whole"
    if not is_of_image(group):
        return group
    channel = group.rpartition(" ")[2]
    return "the image" if channel == group else f"channel {channel} of the image"
