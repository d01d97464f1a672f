"""Where positions repeat: several volumes of one series, told apart by what their headers say."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.dicom.clock import CLOCKS, clock_order
from segpipe.dicom.frames import FrameHeader
from segpipe.dicom.geometry import levels
from segpipe.dicom.slices import Group, Name, pixel_digest, slice_name, stack_of

MOST_KEYS = 3  # values taken together, e.g. echo, phase image and time
Levels = NDArray[np.intp]


@dataclass(frozen=True)
class _Volume:
    """One volume's slices: indices, what tells it from the others, and whether all positions are in it."""

    indices: tuple[int, ...]
    by: str
    complete: bool


def split_repeated_positions(group: Group, name: Name) -> list[Group]:
    """Return as many volumes as the header tells apart where positions repeat, or a refusal."""
    if group.reason is not None or len(group.slices) < 2:
        return [group]
    places = levels(stack_of(group.slices).heights)
    if int(places.max()) + 1 == len(places):
        return [group]
    frames = [part.frame for part in group.slices]
    parts = _split_frames(frames, places)
    if not parts and (fewer := _without_repeated_images(group, places, name)) is not None:
        return split_repeated_positions(fewer, name)
    parts = parts or _split_frames(frames, places, incomplete=True)
    if not parts:
        return [group.refused("repeated_positions", _repeated(group, places, name))]
    groups = []
    for part in parts:
        slices = [group.slices[index] for index in part.indices]
        volume = group.part(slices, part.by, f"volume of a series with repeated positions, split by {part.by}")
        if not part.complete:
            words = (
                f"{slice_name(slices[0], name)}: {len(slices)} slice(s) where other volumes of the series have "
                f"{int(places.max()) + 1}; expected as many. Find the missing files."
            )
            volume = volume.refused("gap", words)
        groups.append(volume)
    return groups


def _without_repeated_images(group: Group, places: Levels, name: Name) -> Group | None:
    """Drop images that repeat another's pixels at its place under another UID; None where there is none."""
    counts = np.bincount(places)
    seen: set[Hashable] = set()
    slices, dropped = [], []
    for part, place in zip(group.slices, places, strict=True):
        header = part.header
        if counts[place] > 1 and len(header.frames) == 1 and header.pixels.offset >= 0:
            syntax = header.pixels.transfer_syntax
            content = (part.frame.position, header.value_tags, syntax, pixel_digest(header))
            if content in seen:
                dropped.append(header.path)
                continue
            seen.add(content)
        slices.append(part)
    if not dropped:
        return None
    note = f"{len(dropped)} image(s) dropped that repeat another under a new UID, e.g. {name(min(dropped))}"
    return replace(group.part(slices, "", note), copies=(*group.copies, *dropped))


def _repeated(group: Group, places: Levels, name: Name) -> str:
    counts = np.bincount(places)
    first, second = (group.slices[i] for i in np.flatnonzero(places == int(np.argmax(counts > 1)))[:2])
    return (
        f"{slice_name(first, name)} and {slice_name(second, name)} lie at the same position: {counts.sum()} slices at "
        f"{len(counts)} positions; expected one slice at each, or an echo, time, b-value or acquisition number "
        "that tells whole volumes apart. Keep one slice of each position in a folder of its own."
    )


def _split_frames(frames: Sequence[FrameHeader], places: Levels, incomplete: bool = False) -> list[_Volume]:
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
    if wanted == 1:  # a film of one slice is no volume, however its times are called
        return []
    for by, groups in _splits(frames, places):
        if any(len(set(places[group])) < len(group) for group in groups):
            continue
        whole = [len(group) == wanted for group in groups]
        if all(whole) or (incomplete and any(whole)):
            return [
                _Volume(tuple(group), f"{by}, {number} of {len(groups)}", complete)
                for number, (group, complete) in enumerate(zip(groups, whole, strict=True), start=1)
            ]
    return []


def _splits(frames: Sequence[FrameHeader], places: Levels) -> Iterator[tuple[str, list[list[int]]]]:
    names = list(dict.fromkeys(name for frame in frames for name in frame.keys))
    most = int(np.bincount(places).max())  # a value that differs from slice to slice tells no volumes apart
    names = [name for name in names if 1 < len({frame.keys.get(name) for frame in frames}) <= most]
    times = list(dict.fromkeys(name for frame in frames for name in frame.times))
    yield from ((name, _by_values(frames, [name])) for name in names)
    for count in range(MOST_KEYS + 1):
        for chosen in itertools.combinations(names, count):
            groups = _by_values(frames, chosen)
            if count > 1:
                yield " and ".join(chosen), groups
            for time in times:
                ranked = [_by_rank(frames, places, group, time) for group in groups]
                if all(ranked):
                    yield " and ".join([*chosen, _named(time, frames)]), [part for parts in ranked for part in parts]


def _named(time: str, frames: Sequence[FrameHeader]) -> str:
    times = [frame.times[time] for frame in frames]
    crosses = time in CLOCKS and clock_order(times) != times
    return f"{time} past midnight without a date" if crosses else time


def _by_values(frames: Sequence[FrameHeader], names: Sequence[str]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        groups[tuple(frame.keys.get(name) for name in names)].append(index)
    return [groups[key] for key in sorted(groups, key=_sortable)]


def _sortable(key: Hashable) -> list[tuple[str, float, str]]:
    """Return a key that sorts numbers by size, the rest as text."""
    parts = key if isinstance(key, tuple) else (key,)
    return [("", float(part), "") if isinstance(part, float) else ("text", 0.0, str(part)) for part in parts]


def _by_rank(frames: Sequence[FrameHeader], places: Levels, group: list[int], time: str) -> list[list[int]]:
    """Return the first of each position, the second, ...; nothing where their times overlap."""
    at: dict[int, list[int]] = defaultdict(list)
    for index in group:
        at[int(places[index])].append(index)
    if len({len(indices) for indices in at.values()}) != 1 or any(time not in frames[index].times for index in group):
        return []
    times = [frames[index].times[time] for index in group]
    values = dict(zip(group, clock_order(times) if time in CLOCKS else times, strict=True))
    ordered = [sorted(indices, key=lambda index: values[index]) for indices in at.values()]
    ranks = [list(rank) for rank in zip(*ordered, strict=True)]
    for earlier, later in itertools.pairwise(ranks):
        if max(values[i] for i in earlier) >= min(values[i] for i in later):
            return []
    return ranks
