"""How far an image is from usual ones in what a network makes of it: its bottleneck, mean pooled.

Each network has numbers of its own, which mean nothing to another one, so each has its own usual cases: those that it
did not see. Channels are centred by their median and scaled by their spread; the covariance of what comes of it is
shrunk (Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4) and kept as a few directions with their variances, and
one variance of all that is left (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196): a Mahalanobis distance that few
cases can carry, and none of them can be read from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMBEDDING = "embedding"  # the group; a feature of it is called ``embedding MEMBER:CHANNEL``
LEAST_CASES = 6  # of each network, below which nothing is said
CASES_A_DIRECTION, MOST_DIRECTIONS = 5, 8
MOST = 6.0  # spreads at which a value is cut off before the covariance is estimated
LEAST_SPREAD = 0.1  # of a channel, as a share of the median spread
Features = Mapping[str, float]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Space:
    """The usual cases of one network.

    Attributes:
        centre: (C,), medians.
        scale: (C,), spreads.
        directions: (D, C), orthonormal, of the centred and scaled channels.
        variance: (D,), along each.
        left: variance of a channel outside of these.
    """

    centre: Numbers
    scale: Numbers
    directions: Numbers
    variance: Numbers
    left: float

    @classmethod
    def of(cls, vectors: Numbers) -> Space:
        """Return that of some cases (N, C)."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        centre = np.median(vectors, axis=0)
        low, high = np.percentile(vectors, [25, 75], axis=0)
        scale = np.maximum((high - low) / 1.349, 0.5 * vectors.std(axis=0))
        scale = np.maximum(scale, max(LEAST_SPREAD * float(np.median(scale)), 1e-9))
        scaled = np.clip((vectors - centre) / scale, -MOST, MOST)
        cases, channels = scaled.shape
        shrinkage = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
        total = float(np.square(scaled).sum() / cases)
        _, lengths, directions = np.linalg.svd(scaled, full_matrices=False)
        kept = min(MOST_DIRECTIONS, cases // CASES_A_DIRECTION, channels - 1)
        variance = (1 - shrinkage) * lengths[:kept] ** 2 / cases + shrinkage * total / channels
        left = (total - float(variance.sum())) / max(1, channels - kept)
        return cls(centre, scale, directions[:kept], np.maximum(variance, 1e-6), max(left, 1.0 / cases))

    def distance(self, vector: Numbers) -> float:
        """Return how far a case (C,) is, without unit."""
        off = (vector - self.centre) / self.scale
        along = self.directions @ off
        rest = max(float(off @ off - along @ along), 0.0)
        return math.sqrt((float((along**2 / self.variance).sum()) + rest / self.left) / len(off))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return {name: rounded(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Space:
        """Return what `as_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: something else.
        """
        centre, scale, variance = (np.array(parts[name], float) for name in ("centre", "scale", "variance"))
        directions = np.array(parts["directions"], float).reshape(len(variance), len(centre))
        left = float(parts["left"])
        if not all(np.isfinite(each).all() for each in (centre, scale, directions, variance, left)):
            raise ValueError("an embedding with a number that is not finite")
        if centre.shape != scale.shape or (scale <= 0).any() or (variance <= 0).any() or left <= 0:
            raise ValueError("an embedding without spread")
        return cls(centre, scale, directions, variance, left)


@dataclass(frozen=True, eq=False)
class Embedding:
    """The usual cases of each network of a bundle.

    Attributes:
        members: by number, as in the bundle.
        limit: distance that 95 % of the cases stay below that it was not made from, of all networks.
    """

    members: tuple[Space, ...]
    limit: float = 1.0

    @classmethod
    def of(cls, cases: Iterable[Features]) -> Embedding | None:
        """Return that of some cases, each seen by one network or several; None where one of them has too few."""
        vectors: dict[int, list[Numbers]] = defaultdict(list)
        for case in cases:
            for member, vector in vectors_of(case).items():
                vectors[member].append(vector)
        if not vectors or sorted(vectors) != list(range(len(vectors))):
            return None
        if min(map(len, vectors.values())) < LEAST_CASES:
            return None
        return cls(tuple(Space.of(np.stack(vectors[member])) for member in range(len(vectors))))

    def distance(self, case: Features) -> float | None:
        """Return how far a case is, 1 is the limit: the mean over the networks that saw it; None where none did."""
        found = [
            self.members[member].distance(vector)
            for member, vector in vectors_of(case).items()
            if member < len(self.members) and len(vector) == len(self.members[member].centre)
        ]
        return float(np.mean(found)) / self.limit if found else None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return {"members": [member.as_dict() for member in self.members], "limit": rounded(self.limit)}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Embedding:
        """Return what `as_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: something else.
        """
        limit = float(parts["limit"])
        if not 0 < limit < math.inf:
            raise ValueError(f"a limit of {limit:g}")
        return cls(tuple(Space.from_dict(each) for each in parts["members"]), limit)


def embedding_features(embedding: Sequence[Numbers], first: int = 0) -> dict[str, float]:
    """Return features of what networks hold of an image, (C,) of each.

    >>> embedding_features([[0.25, 1.5]])
    {'embedding 0:000': 0.25, 'embedding 0:001': 1.5}

    Args:
        embedding: of the networks, in their order.
        first: number of the first network.
    """
    return {
        f"{EMBEDDING} {member}:{channel:03}": rounded(value)
        for member, vector in enumerate(embedding, first)
        for channel, value in enumerate(vector)
    }


def of_member(features: Features, member: int) -> dict[str, float]:
    """Return the features of a case that one network saw as those of this member of an ensemble."""
    return {
        name if _place(name) is None else f"{EMBEDDING} {member}:{name.rpartition(':')[2]}": value
        for name, value in features.items()
    }


def is_embedded(name: str) -> bool:
    """Return whether a feature is a number of a network's bottleneck."""
    return _place(name) is not None


def vectors_of(case: Features) -> dict[int, Numbers]:
    """Return what each network holds of a case, (C,), by its number."""
    found: dict[int, list[float]] = defaultdict(list)
    for name, value in case.items():
        member = _place(name)
        if member is not None:
            found[member].append(value)
    return {member: np.array(values) for member, values in found.items()}


@lru_cache(maxsize=100_000)
def _place(name: str) -> int | None:
    """Return the network of a feature, None for a feature of something else, such as of a label of that name."""
    if not name.startswith(f"{EMBEDDING} "):
        return None
    member, _, channel = name[len(EMBEDDING) + 1 :].partition(":")
    return int(member) if member.isdecimal() and channel.isdecimal() else None


def rounded(value: Any) -> Any:
    """Return a number, or each of an array, to six digits: what a model is written with."""
    if isinstance(value, np.ndarray):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}")
