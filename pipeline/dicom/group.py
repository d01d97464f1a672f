"""From the headers of a whole tree to groups of slices that should each be one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dicom.duplicates import drop_duplicates
from pipeline.dicom.frames import FrameHeader
from pipeline.dicom.grids import one_grid
from pipeline.dicom.headers import Header
from pipeline.dicom.model import Reason
from pipeline.dicom.repeats import by_repeats
from pipeline.dicom.slices import Group, Name, Slice

ORDER_OF_PROBLEMS: tuple[Reason, ...] = ("mosaic", "color", "transfer_syntax", "truncated", "missing_tag")


def groups_of(headers: Iterable[Header], name: Name) -> list[Group]:
    """Group the images of a tree by study and series, wherever their files lie; scouts are groups of their own.

    Some writers give each slice a study of its own: where a series has one image in each of several studies it is one
    series all the same. Otherwise equal series of different studies stay apart.
    """
    studies: dict[str, dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    for header in headers:
        studies[header.series_uid][header.study_uid].append(header)
    found = []
    for _, by_study in sorted(studies.items()):
        if all(len({header.sop_instance_uid for header in one}) == 1 for one in by_study.values()):
            members = [header for one in by_study.values() for header in one]
            notes = (f"its slices name {len(by_study)} studies",) if len(by_study) > 1 else ()
            found += _of_series(members, "", notes, name)
        else:
            for study, members in sorted(by_study.items()):
                found += _of_series(members, f"study={study}" if len(by_study) > 1 else "", (), name)
    return found


def _of_series(members: Sequence[Header], split: str, notes: tuple[str, ...], name: Name) -> list[Group]:
    scouts = [header for header in members if header.scout]
    others = [header for header in members if not header.scout]
    if not scouts or not others:
        return _of_kind(members, Group(_slices(members), split, notes=notes), name)
    note = f"{len(scouts)} scout image(s) of the series are a group of their own"
    return [
        *_of_kind(others, Group(_slices(others), split, notes=(*notes, note)), name),
        *_of_kind(scouts, Group(_slices(scouts), f"{split} scout".strip(), notes=notes), name),
    ]


def _slices(members: Iterable[Header]) -> tuple[Slice, ...]:
    nowhere = FrameHeader(0, None, None, None)
    return tuple(Slice(header, frame) for header in members for frame in header.frames or (nowhere,))


def _of_kind(members: Sequence[Header], group: Group, name: Name) -> list[Group]:
    """Problems of single files first, then copies, then what splits a series."""
    for reason in ORDER_OF_PROBLEMS:
        bad = [
            (header, header.problem)
            for header in members
            if header.problem and header.problem.reason == reason
        ]
        if bad:
            header, problem = bad[0]
            return [group.refused(reason, problem.words(name(header.path), len(bad), len(members)))]
    kept, copies, conflict = drop_duplicates(members, name)
    if conflict:
        return [group.refused("duplicate_conflict", conflict)]
    lacking = [header for header in kept.values() if not header.frame_of_reference_uid]
    if 0 < len(lacking) < len(kept):
        words = (
            "no FrameOfReferenceUID, expected one as in other slices of the series. Export the series again."
        )
        return [group.refused("missing_tag", f"{name(lacking[0].path)}: {words}")]
    group = replace(group, slices=tuple(part for part in group.slices if part.header.path in kept))
    return [
        _with_copies(final, copies, name)
        for volume in _by_stack(group)
        for grid in one_grid(volume, name)
        for final in by_repeats(grid, name)
    ]


def _with_copies(group: Group, copies: dict[Path, list[Path]], name: Name) -> Group:
    dropped = [copy for path in {part.header.path for part in group.slices} for copy in copies.get(path, ())]
    if not dropped:
        return group
    note = f"{len(dropped)} file(s) dropped as exact copies, e.g. {name(min(dropped))}"
    return replace(group, copies=(*group.copies, *dropped), notes=(*group.notes, note))


def _by_stack(group: Group) -> list[Group]:
    """Modalities, frames of reference, and stacks of a multi-frame image are volumes of their own."""
    parts: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    for part in group.slices:
        parts[part.header.modality, part.header.frame_of_reference_uid, part.frame.stack].append(part)
    if len(parts) == 1 or len(parts) == len(group.slices):  # a stack for every slice says nothing
        return [group]
    return [
        group.part(
            slices, " ".join(key),
            f"volume {number} of {len(parts)} of its series, by modality, frame of reference and stack",
        )
        for number, (key, slices) in enumerate(sorted(parts.items()), start=1)
    ]  # fmt: skip
