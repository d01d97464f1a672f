"""How far a case is from those that a model was made with: a robust Mahalanobis distance for each group of features.

Features are centred by their median and scaled by their spread; the covariance of what comes of it is shrunk (Ledoit
and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4), so that few cases make it wide. A group is the image, one label, or
what the networks make of the image as a whole (`Embedding`).
The distance of a case is that of its farthest group, each against the distance that 95 % of the cases stay below that
it was not made from: 1 is as far as one in twenty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.quality.embedding import EMBEDDING, Embedding, is_embedded, rounded
from segpipe.quality.features import IMAGE, kind_of

Features = Mapping[str, float]
MOST = 6.0  # spreads at which a value is cut off before the covariance is estimated
TINY = 1e-9
USUAL = 0.95
OUTSIDE = 0.03  # p-value down to which a case is like those that were calibrated


@dataclass(frozen=True, eq=False)
class Group:
    """The cases that a model was made with, in the features of one kind.

    Attributes:
        names: of the features, F of them.
        centre: (F,), their medians, of the logarithm where that counts.
        scale: (F,), their spreads.
        covariance: (F, F), of the centred and scaled features.
        low, high: (F,), their quantiles of 5 and 95 %, as they are measured.
        limit: distance that 95 % of the cases stay below that the group was not made from.
    """

    names: tuple[str, ...]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    covariance: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    limit: float = 1.0

    @classmethod
    def of(cls, names: Sequence[str], cases: Sequence[Features]) -> Group:
        """Return that of some cases; a feature that a case lacks is taken to be the median."""
        values = _compared(names, cases)
        centre = np.nanmedian(values, axis=0)
        low, high = np.nanpercentile(values, [25, 75], axis=0)
        least = np.array([kind_of(name).least for name in names])
        scale = np.maximum(np.maximum((high - low) / 1.349, 0.5 * np.nanstd(values, axis=0)), least)
        scaled = np.nan_to_num(np.clip((values - centre) / scale, -MOST, MOST))
        low, high = (_measured(names, np.nanpercentile(values, share, axis=0)) for share in (5, 95))
        return cls(tuple(names), centre, scale, _shrunk(scaled), low, high)

    def scaled(self, case: Features) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return which features a case has, and how many spreads each is off."""
        (off,) = self._off([case])
        places = np.flatnonzero(~np.isnan(off))
        return places, off[places]

    def distances(self, cases: Sequence[Features]) -> NDArray[np.float64]:
        """Return how far each case is, (N,), without unit; 0 where it has none of the features."""
        off = self._off(cases)
        there, found = ~np.isnan(off), np.zeros(len(cases))
        for pattern in np.unique(there, axis=0):
            places, alike = np.flatnonzero(pattern), (there == pattern).all(axis=1)
            if len(places):
                part = off[np.ix_(alike, places)]
                inverse = np.linalg.solve(self.covariance[np.ix_(places, places)], part.T)
                found[alike] = np.sqrt(np.maximum(np.einsum("nf,fn->n", part, inverse), 0.0) / len(places))
        return found

    def _off(self, cases: Sequence[Features]) -> NDArray[np.float64]:
        """Return how many spreads each feature of each case is off, (N, F); not a number where a case lacks one."""
        return (_compared(self.names, cases) - self.centre) / self.scale

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        names = ("centre", "scale", "low", "high", "covariance", "limit")
        return {"features": list(self.names), **{name: rounded(getattr(self, name)) for name in names}}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Group:
        """Return what `as_dict` gave."""
        arrays = {name: np.array(parts[name], float) for name in ("centre", "scale", "covariance", "low", "high")}
        limit = float(parts["limit"])
        if not 0 < limit < math.inf or not all(np.isfinite(each).all() for each in arrays.values()):
            raise ValueError(f"a group with a limit of {limit:g}, or a number that is not finite")
        return cls(tuple(parts["features"]), **arrays, limit=limit)


@dataclass(frozen=True, eq=False)
class Plausibility:
    """All groups, and how far the cases are that they were not made from.

    Attributes:
        groups: by name: the image, and each label.
        distances: of the patients, each by the groups made from others and its farthest case, in order; where there are
            many, so many of their quantiles.
        embedding: what the networks make of the image as a whole; None where too few cases are known, or none was seen.
    """

    groups: dict[str, Group]
    distances: tuple[float, ...] = ()
    embedding: Embedding | None = None

    @classmethod
    def of(cls, cases: Sequence[Features]) -> Plausibility:
        """Return that of some cases, without limits and distances."""
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for case in cases for name in case):
            if not is_embedded(name):
                groups.setdefault(group_of(name), []).append(name)
        return cls({group: Group.of(names, cases) for group, names in groups.items()}, (), Embedding.of(cases))

    def by_group(self, case: Features) -> dict[str, float]:
        """Return the distance of each group, against its limit."""
        return self.by_groups([case])[0]

    def by_groups(self, cases: Sequence[Features]) -> list[dict[str, float]]:
        """Return the same of several cases."""
        columns = {name: group.distances(cases) / group.limit for name, group in self.groups.items()}
        found = [{name: float(values[row]) for name, values in columns.items()} for row in range(len(cases))]
        for case, distances in zip(cases, found, strict=True):
            embedded = None if self.embedding is None else self.embedding.distance(case)
            if embedded is not None:
                distances[EMBEDDING] = embedded
        return found

    def unmeasured(self, case: Features) -> tuple[str, ...]:
        """Return the groups that every case has and of this one nothing was measured: its distance is not known."""
        lacking = [
            name
            for name, group in self.groups.items()
            if is_of_image(name) and not any(feature in case for feature in group.names)
        ]
        has_embedding = self.embedding is None or self.embedding.distance(case) is not None
        return (*lacking, *(() if has_embedding else (EMBEDDING,)))

    def p_value(self, distance: float) -> float | None:
        """Return the conformal p-value (Vovk et al. 2005): the share of patients at least as far, this one included."""
        if not self.distances:
            return None
        return (1 + sum(other >= distance for other in self.distances)) / (1 + len(self.distances))

    def is_outside(self, distance: float) -> bool:
        """Return whether a case is farther than was calibrated; where patients are few, farther than each of them."""
        p_value = self.p_value(distance)
        return p_value is not None and p_value <= max(OUTSIDE, 1 / (1 + len(self.distances)))


def group_of(feature: str) -> str:
    """Return what a feature is of: the image, or a label's name."""
    return feature.rpartition(":")[0]


def is_of_image(group: str) -> bool:
    """Return whether a group is of a channel of the image."""
    return group == IMAGE or group.startswith(f"{IMAGE} ")


def _compared(names: Sequence[str], cases: Sequence[Features]) -> NDArray[np.float64]:
    """Return features as they are compared, (N, F); not a number where a case lacks one."""
    values = np.array([[case.get(name, math.nan) for name in names] for case in cases], float)
    values = values.reshape(len(cases), len(names))
    columns = [column for column, name in enumerate(names) if kind_of(name).log]
    values[:, columns] = np.log(np.maximum(values[:, columns], TINY))
    return values


def _measured(names: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return features as they are measured."""
    return np.array([math.exp(v) if kind_of(n).log else v for n, v in zip(names, values, strict=True)])


def _shrunk(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(scaled, assume_centered=True)
    least = max(1e-3, 1.0 / max(1, len(scaled)))  # of a direction in which few cases happen not to differ
    return np.asarray(covariance + least * np.eye(scaled.shape[1]))


def cross_fitted(cases: Sequence[Features], parts: Sequence[int]) -> Iterable[tuple[int, Plausibility]]:
    """Yield for each part that of the cases in all others, without limits."""
    for part in sorted(set(parts)):
        yield part, Plausibility.of([case for case, of in zip(cases, parts, strict=True) if of != part])


def calibrated(cases: Sequence[Features], patients: Sequence[str], parts: Sequence[int]) -> Plausibility:
    """Return that of all cases, with limits and distances from cases that a group was not made from.

    Args:
        cases: features of each.
        patients: of each.
        parts: of each, the same for all cases of a patient: the distances of a part come from the others.
    """
    whole = Plausibility.of(cases)
    rows: list[dict[str, float]] = [{} for _ in cases]
    for part, others in cross_fitted(cases, parts):
        if others.embedding is None:  # its distance is not known of every case
            whole = replace(whole, embedding=None)
        left = [index for index, of in enumerate(parts) if of == part]
        for index, found in zip(left, others.by_groups([cases[index] for index in left]), strict=True):
            rows[index] = found
    names = [*whole.groups, *([] if whole.embedding is None else [EMBEDDING])]
    limits = {name: max(float(np.quantile([row.get(name, 0.0) for row in rows], USUAL)), 1e-3) for name in names}
    farthest: dict[str, float] = {}
    for patient, row in zip(patients, rows, strict=True):
        distance = max((value / limits[name] for name, value in row.items() if name in limits), default=0.0)
        farthest[patient] = max(farthest.get(patient, 0.0), distance)
    groups = {name: replace(group, limit=limits[name]) for name, group in whole.groups.items()}
    embedding = None if whole.embedding is None else replace(whole.embedding, limit=limits[EMBEDDING])
    return Plausibility(groups, tuple(rounded(value) for value in sorted(farthest.values())), embedding)
