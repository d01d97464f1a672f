"""Positions that repeat: which values of the header split the slices into whole volumes, one for each position?"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.frames import FrameHeader

Places = NDArray[np.intp]
MOST_KEYS = 3  # values taken together, e.g. echo, phase image and time


@dataclass(frozen=True)
class Part:
    """One volume's slices: indices, what tells it from the others, and whether all positions are in it."""

    indices: tuple[int, ...]
    by: str
    complete: bool


def split_repeats(frames: Sequence[FrameHeader], places: Places, incomplete: bool = False) -> list[Part]:
    """Split so that no part has a position twice.

    Values that name a volume (echo, b-value, temporal position, ...) are tried one by one, then together, and then
    with a time by which later volumes have later values. A split is good where every part has every position.

    Args:
        frames: of one matrix and orientation.
        places: (N,) of each along the normal, from 0.
        incomplete: also take a split in which only some parts have every position.

    Returns:
        The parts, or nothing where no value splits them.
    """
    wanted = int(places.max()) + 1
    for by, groups in _splits(frames, places):
        if any(len(set(places[group])) < len(group) for group in groups):
            continue
        whole = [len(group) == wanted for group in groups]
        if all(whole) or (incomplete and any(whole) and wanted > 1):
            return [
                Part(tuple(group), f"{by}, {number} of {len(groups)}", complete)
                for number, (group, complete) in enumerate(zip(groups, whole, strict=True), start=1)
            ]
    return []


def _splits(frames: Sequence[FrameHeader], places: Places) -> Iterator[tuple[str, list[list[int]]]]:
    names = list(dict.fromkeys(name for frame in frames for name in frame.keys))
    names = [name for name in names if len({frame.keys.get(name) for frame in frames}) > 1]
    times = list(dict.fromkeys(name for frame in frames for name in frame.times))
    for count in range(MOST_KEYS + 1):
        for chosen in itertools.combinations(names, count):
            groups = _by_values(frames, chosen)
            if count:
                yield " and ".join(chosen), groups
            for time in times:
                ranked = [_by_rank(frames, places, group, time) for group in groups]
                if all(ranked):
                    yield " and ".join([*chosen, time]), [part for parts in ranked for part in parts]


def _by_values(frames: Sequence[FrameHeader], names: Sequence[str]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        groups[tuple(frame.keys.get(name) for name in names)].append(index)
    return [groups[key] for key in sorted(groups, key=_sortable)]


def _sortable(key: Hashable) -> list[tuple[str, float, str]]:
    """Numbers by size, the rest as text."""
    parts = key if isinstance(key, tuple) else (key,)
    return [("", float(part), "") if isinstance(part, float) else ("text", 0.0, str(part)) for part in parts]


def _by_rank(frames: Sequence[FrameHeader], places: Places, group: list[int], time: str) -> list[list[int]]:
    """The first of each position, the second, ...; nothing where their times overlap."""
    at: dict[int, list[int]] = defaultdict(list)
    for index in group:
        at[int(places[index])].append(index)
    values = [frame.times.get(time, "") for frame in frames]
    if len({len(indices) for indices in at.values()}) != 1 or "" in (values[index] for index in group):
        return []
    ordered = [sorted(indices, key=lambda index: str(values[index]) if isinstance(values[index], str) else values[index]) for indices in at.values()]  # type: ignore[arg-type,return-value]  # fmt: skip
    ranks = [list(rank) for rank in zip(*ordered, strict=True)]
    for earlier, later in itertools.pairwise(ranks):
        if max(values[i] for i in earlier) >= min(values[i] for i in later):  # type: ignore[type-var]
            return []
    return ranks
