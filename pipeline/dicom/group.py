"""From the headers of a whole tree to groups of slices that should each be one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.dicom.duplicates import drop_duplicates, same_pixels
from pipeline.dicom.frames import FrameHeader
from pipeline.dicom.geometry import Stack, levels
from pipeline.dicom.headers import Header
from pipeline.dicom.model import Reason
from pipeline.dicom.repeats import split_repeats

Name = Callable[[Path], str]
ORDER_OF_PROBLEMS: tuple[Reason, ...] = ("truncated", "mosaic", "color", "transfer_syntax", "missing_tag")


class Slice(NamedTuple):
    """A frame and the file that it is in."""

    header: Header
    frame: FrameHeader


@dataclass(frozen=True)
class Group:
    """Slices that should be one volume, or that are refused whatever their geometry.

    Attributes:
        slices: one or more.
        split: what tells it from the other groups of its series; empty where there is none.
        reason, detail: why it is refused; None and empty where its geometry is to be judged.
        notes: for the user.
        copies: dropped files.
    """

    slices: tuple[Slice, ...]
    split: str = ""
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    copies: tuple[Path, ...] = ()

    def refused(self, reason: Reason, detail: str) -> Group:
        """The same slices, refused."""
        return replace(self, reason=reason, detail=detail)

    def part(self, slices: Sequence[Slice], split: str, *notes: str) -> Group:
        """Some of its slices as a group of their own."""
        words = " ".join(part for part in (self.split, split) if part)
        return replace(self, slices=tuple(slices), split=words, notes=(*self.notes, *notes))


def stack_of(slices: Sequence[Slice]) -> Stack:
    """The geometry of slices of one matrix."""
    first = slices[0].header
    return Stack(
        np.array([part.frame.position for part in slices], dtype=np.float64),
        np.array([part.frame.orientation for part in slices], dtype=np.float64),
        np.array([part.frame.spacing for part in slices], dtype=np.float64),
        first.rows,
        first.columns,
    )


def slice_name(part: Slice, name: Name) -> str:
    """A slice as a person should read it."""
    one_of_many = f" (frame {part.frame.number + 1})" if len(part.header.frames) > 1 else ""
    return name(part.header.path) + one_of_many


def groups_of(headers: Iterable[Header], name: Name) -> list[Group]:
    """Group the images of a tree, wherever their files lie.

    By study and series first; scouts, frames of reference and stacks are groups of their own. Where matrices or
    orientations still differ, and where positions repeat, see `grids.one_grid` and `repeats.split_repeats`.
    """
    series: dict[tuple[str, str, bool], list[Header]] = defaultdict(list)
    for header in headers:
        series[header.study_uid, header.series_uid, header.scout].append(header)
    found = []
    for (study, uid, scout), members in sorted(series.items(), key=lambda item: item[0]):
        others = len(series.get((study, uid, not scout), ()))
        slices = tuple(
            Slice(header, frame) for header in members for frame in header.frames or (FrameHeader(0, None, None, None),)
        )
        group = Group(slices, split="scout" if scout and others else "")
        if others and not scout:
            group = group.part(slices, "", f"{others} scout image(s) of the series are a group of their own")
        found += _of_series(group, members, name)
    return found


def _of_series(group: Group, members: list[Header], name: Name) -> list[Group]:
    for reason in ORDER_OF_PROBLEMS:
        bad = [(header, header.problem) for header in members if header.problem and header.problem.reason == reason]
        if bad:
            header, problem = bad[0]
            return [group.refused(reason, problem.words(name(header.path), len(bad), len(members)))]
    kept, copies, conflict = drop_duplicates(members, name)
    if conflict:
        return [group.refused("duplicate_conflict", conflict)]
    lacking = [header for header in kept.values() if not header.frame_of_reference_uid]
    if 0 < len(lacking) < len(kept):
        words = "no FrameOfReferenceUID, expected one as in other slices of the series. Export the series again."
        return [group.refused("missing_tag", f"{name(lacking[0].path)}: {words}")]
    group = replace(group, slices=tuple(part for part in group.slices if part.header.path in kept))
    return [
        _with_copies(final, copies, name)
        for volume in _by_stack(group)
        for grid in one_grid(volume, name)
        for final in _by_repeats(grid, name)
    ]


def _with_copies(group: Group, copies: dict[Path, list[Path]], name: Name) -> Group:
    dropped = [copy for path in {part.header.path for part in group.slices} for copy in copies.get(path, ())]
    if not dropped:
        return group
    note = f"{len(dropped)} file(s) dropped as exact copies, e.g. {name(min(dropped))}"
    return replace(group, copies=(*group.copies, *dropped), notes=(*group.notes, note))


def _by_stack(group: Group) -> list[Group]:
    """Frames of reference and stacks of a multi-frame image are volumes of their own."""
    parts: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    for part in group.slices:
        parts[part.header.frame_of_reference_uid, part.frame.stack].append(part)
    if len(parts) == 1 or len(parts) == len(group.slices):  # a stack for every slice says nothing
        return [group]
    return [
        group.part(
            slices, f"reference={reference} stack={stack}",
            f"volume {number} of {len(parts)} of its series, by frame of reference and stack",
        )
        for number, ((reference, stack), slices) in enumerate(sorted(parts.items()), start=1)
    ]  # fmt: skip


def one_grid(group: Group, name: Name) -> list[Group]:
    return [group]


def _by_repeats(group: Group, name: Name) -> list[Group]:
    """Where positions repeat: as many volumes as the header tells apart, or a refusal."""
    if group.reason is not None or len(group.slices) < 2:
        return [group]
    places = levels(stack_of(group.slices).heights)
    if int(places.max()) + 1 == len(places):
        return [group]
    frames = [part.frame for part in group.slices]
    parts = split_repeats(frames, places)
    if not parts and (lean := _without_equal(group, places, name)) is not None:
        return _by_repeats(lean, name)
    parts = parts or split_repeats(frames, places, incomplete=True)
    if not parts:
        return [group.refused("repeated_positions", _repeated(group, places, name))]
    found = []
    for part in parts:
        slices = [group.slices[index] for index in part.indices]
        volume = group.part(slices, part.by, f"volume of a series with repeated positions, split by {part.by}")
        if not part.complete:
            words = (
                f"{slice_name(slices[0], name)}: {len(slices)} slice(s) where other volumes of the series have "
                f"{int(places.max()) + 1}; expected as many. Find the missing files."
            )
            volume = volume.refused("gap", words)
        found.append(volume)
    return found


def _without_equal(group: Group, places: np.ndarray, name: Name) -> Group | None:
    """Without images that repeat another's pixels at its place under another UID; None where there is none."""
    kept: dict[int, list[Slice]] = defaultdict(list)
    dropped = []
    for part, place in zip(group.slices, places, strict=True):
        single = len(part.header.frames) == 1
        same_place = [other for other in kept[place] if other.frame.position == part.frame.position]
        if single and any(same_pixels(other.header, part.header) for other in same_place):
            dropped.append(part.header.path)
        else:
            kept[place].append(part)
    if not dropped:
        return None
    slices = [part for parts in kept.values() for part in parts]
    note = f"{len(dropped)} image(s) dropped that repeat another under a new UID, e.g. {name(min(dropped))}"
    return replace(group.part(slices, "", note), copies=(*group.copies, *dropped))


def _repeated(group: Group, places: np.ndarray, name: Name) -> str:
    counts = np.bincount(places)
    first, second = (group.slices[i] for i in np.flatnonzero(places == int(np.argmax(counts > 1)))[:2])
    return (
        f"{slice_name(first, name)} and {slice_name(second, name)} lie at the same position, as {counts.sum()} slices at "
        f"{len(counts)} positions do; expected one slice at each, or an echo, time, b-value or acquisition number "
        "that tells whole volumes apart. Keep one slice of each position in a folder of its own."
    )
