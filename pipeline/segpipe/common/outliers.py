"""Voxels that are no measurement: so far from all others that a normalisation by mean and deviation loses the image.

The range of an image is from the 0.5th to the 99.5th percentile of its voxels (of those that are not background, where
nearly all are). Outliers are

- voxels beyond 1e9, whatever the others are: no scanner measures so much;
- voxels more than 1000 times the range outside of it;
- voxels more than 100 times the range outside of it, where they are at most 8, or 1 in 100,000.

What is hot for a reason (bladder or injection in PET, metal in CT, vessels in MR) is nearer, or is more than a few
voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DataError

LARGEST = 1e9
FAR, FEW_FAR = 1000.0, 100.0  # times the range
FEW, FEW_SHARE = 8, 1e-5
PERCENTILES = (0.5, 50.0, 99.5)
SAMPLES = 1_000_000  # voxels, enough for percentiles


@dataclass(frozen=True)
class Outliers:
    """Voxels of a channel that are no measurement.

    Attributes:
        count: how many.
        farthest: the value of the one that is farthest away.
        low, high: the range that the others lie in, but for a few.
    """

    count: int
    farthest: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count} voxel(s) up to {self.farthest:.6g}, where others are {self.low:.6g} to {self.high:.6g}"


def find_outliers(values: NDArray[Any]) -> Outliers | None:
    """Return the outliers of one channel, of any shape and finite; None where there are none.

    Takes a sample for the percentiles, and looks at all voxels again only where the least or the most is far off.
    """
    low, high = _range(values)
    least, most = float(values.min()), float(values.max())
    reach = max(low - least, most - high)
    if max(abs(least), abs(most)) <= LARGEST and reach <= FEW_FAR * (high - low):
        return None
    count = sum(_count(part, low, high, FEW_FAR) for part in _parts(values))
    if count > max(FEW, FEW_SHARE * values.size):  # many: a structure, unless it is farther still
        count = sum(_count(part, low, high, FAR) for part in _parts(values))
    if not count:
        return None
    farthest = most if most - high >= low - least else least
    if abs(low) > LARGEST or abs(high) > LARGEST:  # so many that they are of the range
        farthest = max(least, most, key=abs)
        possible = np.concatenate([part[np.abs(part) <= LARGEST] for part in _parts(values)])
        low, high = _range(possible) if possible.size else (low, high)
    return Outliers(count, farthest, low, high)


def refuse_outliers(values: NDArray[Any], path: Path | None = None, case_id: str | None = None) -> None:
    """Refuse a channel with outliers.

    Raises:
        DataError: there are some; says how many and how far.
    """
    found = find_outliers(values)
    if found is not None:
        raise DataError(
            "the image has voxels that cannot be measurements",
            path=path,
            case_id=case_id,
            found=found,
            expected=f"at most {LARGEST:g}, and within {FEW_FAR:g} times the range of the others",
            hint="set these voxels to the background's intensity, or clip the image to the range of the others",
        )


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the range of a channel's voxels, background included unless there is hardly anything else."""
    step = max(1, math.ceil((values.size / SAMPLES) ** (1 / max(1, values.ndim))))
    sample = values[(slice(None, None, step),) * values.ndim]
    low, middle, high = (float(value) for value in np.percentile(sample.astype(np.float64), PERCENTILES))
    if low < high:
        return low, high
    others = values[values != values.dtype.type(middle)].astype(np.float64)
    if not others.size:
        return low, high
    first, _, last = (float(value) for value in np.percentile(others, PERCENTILES))
    return min(middle, first), max(middle, last)


def _parts(values: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Yield the voxels a slice at a time, so that no copy of all is made."""
    for index in range(values.shape[-1]):
        yield np.asarray(values[..., index], np.float64)


def _count(part: NDArray[np.float64], low: float, high: float, times: float) -> int:
    reach = times * (high - low)
    return int(np.count_nonzero((part > high + reach) | (part < low - reach) | (np.abs(part) > LARGEST)))
