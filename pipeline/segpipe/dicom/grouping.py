"""Group the slices of a tree so that each group should be one volume, or is refused.

A series is split by what its headers say (modality, frame of reference, stack), then by matrix and orientation, then
where positions repeat. The larger part of a mixed series is never taken for all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segpipe.dicom.consistency import agreeing
from segpipe.dicom.frames import FrameHeader
from segpipe.dicom.geometry import Array, judge_geometry
from segpipe.dicom.headers import Header
from segpipe.dicom.model import Reason
from segpipe.dicom.repeated_positions import split_repeated_positions
from segpipe.dicom.slices import Group, Name, Slice, drop_duplicates, missing_parts, slice_name, stack_of

ORDER_OF_PROBLEMS: tuple[Reason, ...] = (
    "mosaic",
    "color",
    "transfer_syntax",
    "truncated",
    "pixel_layout",
    "missing_tag",
    "secondary_capture",
)
OWN_STACKS = 3  # from so many stacks or frames of reference on, mostly one slice in each, they say nothing
MOST_STRAYS = 3
SLICES_A_STRAY = 3
SAME_DIRECTION = 1e-3  # of a component: 0.4 mm across 400 mm, which the judgement in mm then sees
SAME_SPACING = 1e-3  # relative
MOST_NAMED = 20  # files that a person would move by hand


def group_slices(headers: Sequence[Header], name: Name) -> list[Group]:
    """Group the images of a tree by study and series, wherever their files lie; scouts are groups of their own.

    Images without SeriesInstanceUID are one series where everything else says so.

    Some writers give each slice a study of its own: where a series has one image in each of several studies it is one
    series all the same. Otherwise equal series of different studies stay apart.
    """
    studies: dict[tuple[str, bool], dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    captured = {header.series_uid for header in headers if header.is_capture}
    whole = {header.series_uid for header in headers if not header.is_capture}
    nameless = defaultdict(list)
    for header in headers:
        if header.series_uid:
            studies[header.series_uid, header.is_capture][header.study_uid].append(header)
        else:
            study = header.study_uid or str(header.path.parent)
            nameless[study, header.scout, header.is_capture].append(header)
    groups = [group for _, members in sorted(nameless.items()) for group in _group_nameless(members, name)]
    for (uid, is_capture), by_study in sorted(studies.items()):
        kind = "secondary capture" if is_capture and uid in captured & whole else ""
        if all(len({header.sop_instance_uid for header in members}) == 1 for members in by_study.values()):
            members = [header for part in by_study.values() for header in part]
            notes = (f"its slices name {len(by_study)} studies",) if len(by_study) > 1 else ()
            groups += _group_series(members, kind, notes, name)
        else:
            for study, members in sorted(by_study.items()):
                split = f"{kind} study={study}" if len(by_study) > 1 else kind
                several = (
                    f"other images of its SeriesInstanceUID name another study ({len(by_study)}): slices may be missing"
                )
                groups += _group_series(members, split.strip(), (several,)[: len(by_study) - 1], name)
    return groups


def _group_nameless(members: Sequence[Header], name: Name) -> list[Group]:
    """Take images without SeriesInstanceUID, of one study or folder, for one series, or refuse them all."""
    uid = min(header.sop_instance_uid for header in members)
    note = "no SeriesInstanceUID: taken for one series since study, patient, acquisition and grid agree"
    group = Group(_slices(members), f"without UID {uid}", notes=(note,))
    for tag in members[0].identity:
        values = [header.identity[tag] for header in members]
        differing = next((header for header, value in zip(members, values, strict=True) if value != values[0]), None)
        counts_slices = tag == "AcquisitionNumber" and len(set(values)) == len(values) > 2
        if differing is not None and not counts_slices:
            return [group.refused("missing_tag", _nameless(members[0], differing, tag, name))]
    groups = _split(members, group, name)
    if len(groups) > 1:
        first, second = (volume.slices[0].header for volume in groups[:2])
        return [group.refused("missing_tag", _nameless(first, second, "their place or time", name))]
    return groups


def _nameless(first: Header, second: Header, by: str, name: Name) -> str:
    return (
        f"{name(first.path)} and {name(second.path)} have no SeriesInstanceUID and differ in {by}; expected one "
        "patient, acquisition and grid where no UID says what belongs together. Put the files of each series into a "
        "folder of its own and read each folder alone, or export them again."
    )


def _group_series(members: Sequence[Header], split: str, notes: tuple[str, ...], name: Name) -> list[Group]:
    scouts = [header for header in members if header.scout]
    images = [header for header in members if not header.scout]
    if not scouts or not images:
        return _split(members, Group(_slices(members), split, notes=notes), name)
    note = f"{len(scouts)} scout image(s) of the series are a group of their own"
    return [
        *_split(images, Group(_slices(images), split, notes=(*notes, note)), name),
        *_split(scouts, Group(_slices(scouts), f"{split} scout".strip(), notes=notes), name),
    ]


def _slices(members: Iterable[Header]) -> tuple[Slice, ...]:
    nowhere = FrameHeader(0, None, None, None)
    return tuple(Slice(header, frame) for header in members for frame in header.frames or (nowhere,))


def _split(members: Sequence[Header], group: Group, name: Name) -> list[Group]:
    """Refuse for problems of single files, drop copies, then split."""
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
    missing, note = missing_parts(kept.values(), name)
    group = replace(group, slices=tuple(part for part in group.slices if part.header.path in kept))
    groups = [
        final
        for volume in _split_by_stack(replace(group, notes=(*group.notes, *[note][: bool(note)])))
        for grid in split_by_grid(volume, name)
        for single in split_repeated_positions(grid, name)
        for final in agreeing(single, name)
    ]
    counted = (replace(final, images=len(group.slices), volumes=len(groups)) for final in groups)
    return [_with_copies(_whole(final, missing), copies, name) for final in counted]


def _whole(group: Group, missing: Mapping[Path, str]) -> Group:
    """Return a group, refused where a part of a concatenated image of it is missing."""
    words = next((missing[part.header.path] for part in group.slices if part.header.path in missing), "")
    return group.refused("incomplete", words) if words else group


def _with_copies(group: Group, copies: dict[Path, list[Path]], name: Name) -> Group:
    dropped = [copy for path in {part.header.path for part in group.slices} for copy in copies.get(path, ())]
    if not dropped:
        return group
    note = f"{len(dropped)} file(s) dropped as exact copies, e.g. {name(min(dropped))}"
    return replace(group, copies=(*group.copies, *dropped), notes=(*group.notes, note))


def _split_by_stack(group: Group) -> list[Group]:
    """Split by modality, frame of reference, and stack of a multi-frame image."""
    parts: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    for part in group.slices:
        parts[part.header.modality, part.header.frame_of_reference_uid, part.frame.stack].append(part)
    own = len(parts) == len(group.slices) or (len(parts) > OWN_STACKS and 2 * len(parts) > len(group.slices))
    if len(parts) == 1 or own:  # a stack for every slice says nothing
        return [group]
    return [
        group.part(
            slices,
            " ".join(key),
            f"volume {number} of {len(parts)} of its series, by modality, frame of reference and stack",
        )
        for number, (key, slices) in enumerate(sorted(parts.items()), start=1)
    ]


def split_by_grid(group: Group, name: Name) -> list[Group]:
    """Return a group whose slices share matrix, spacing and orientation, and its scouts; or the whole group refused.

    Scouts are often unmarked: one to three slices in other planes. They are set aside, refused on their own, only where
    the rest is a whole regular volume of at least three times as many slices and no stray slice lies where a slice of
    that volume would be.
    """
    parts = sorted(_grids(group.slices), key=len, reverse=True)
    if len(parts) == 1:
        return [group]
    main, strays = parts[0], parts[1:]
    count = sum(len(stray) for stray in strays)
    turned = [stray for stray in strays if _direction_differs(main[0], stray[0])]
    few = count <= MOST_STRAYS and len(main) >= SLICES_A_STRAY * count
    if len(turned) == len(strays) and few:
        affine = judge_geometry(stack_of(main), str).affine_lps
        if affine is not None and not any(_is_of_volume(part, affine, main) for stray in strays for part in stray):
            note = f"{count} slice(s) of the series lie in another plane: taken for scouts, refused on their own"
            return [
                group.part(main, "", note),
                *(_stray(group, stray, number, len(main), name) for number, stray in enumerate(strays, start=1)),
            ]
    return [_mixed(group, main, (turned or strays)[0][0], bool(turned), name)]


def _grids(slices: Sequence[Slice]) -> list[list[Slice]]:
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for part in slices:
        alike[part.header.rows, part.header.columns, part.frame.spacing, part.frame.orientation].append(part)
    parts: list[list[Slice]] = []
    for exact in sorted(alike.values(), key=len, reverse=True):
        matching = (
            part
            for part in parts
            if not (_matrix_difference(part[0], exact[0]) or _direction_differs(part[0], exact[0]))
        )
        if (grid := next(matching, None)) is not None:
            grid += exact
        else:
            parts.append(exact)
    return parts


def _matrix_difference(first: Slice, second: Slice) -> str:
    """Say how two slices differ in matrix or spacing; empty where they do not."""
    expected, matrix = ((part.header.columns, part.header.rows) for part in (first, second))
    if expected != matrix:
        return "{} x {} pixels, expected {} x {}".format(*matrix, *expected)
    spacings = np.array([first.frame.spacing, second.frame.spacing], dtype=np.float64)
    if np.allclose(spacings[0], spacings[1], rtol=SAME_SPACING, atol=0):
        return ""
    return "pixels of {3:.4f} x {2:.4f} mm, expected {1:.4f} x {0:.4f} mm".format(*spacings.ravel())


def _direction_differs(first: Slice, second: Slice) -> bool:
    return not np.allclose(first.frame.orientation, second.frame.orientation, rtol=0, atol=SAME_DIRECTION)  # type: ignore[arg-type]


def _is_of_volume(stray: Slice, affine: Array, main: Sequence[Slice]) -> bool:
    """Return whether a slice lies where one of the volume's would: its first pixel, or its centre at the next."""
    to_index = np.linalg.inv(affine)
    corners = stack_of([stray]).corners()[0]
    size = np.array([main[0].header.columns, main[0].header.rows])
    first = (to_index @ np.append(corners[0], 1.0))[:3]
    middle = (to_index @ np.append(corners.mean(axis=0), 1.0))[:3]
    if np.abs(first[:2]).max() <= 0.5:
        return True
    beyond = middle[2] < -0.5 or middle[2] > len(main) - 0.5
    on_step = abs(middle[2] - round(middle[2])) < 0.1 and -MOST_STRAYS - 0.5 < middle[2] < len(main) + MOST_STRAYS
    return bool(beyond and on_step and np.abs(middle[:2] - (size - 1) / 2).max() <= 0.5)


def _stray(group: Group, stray: list[Slice], number: int, main: int, name: Name) -> Group:
    words = (
        f"{slice_name(stray[0], name)}: {len(stray)} slice(s) in another plane than the other {main} of the series, "
        "expected one plane: taken for a scout. It is not needed; nothing to do."
    )
    reason = "single_slice" if len(stray) == 1 else "mixed_orientation"
    return group.part(stray, f"stray={number}").refused(reason, words)  # type: ignore[arg-type]


def _mixed(group: Group, main: list[Slice], stray: Slice, turned: bool, name: Name) -> Group:
    advice = f"({len(main)} of {len(group.slices)} slices are like {slice_name(main[0], name)}). "
    files = {part.header.path for part in main}
    others = sorted({part.header.path for part in group.slices} - files)
    if 0 < len(others) <= MOST_NAMED and len(files) == len(main):
        advice += "Move the others to another folder, and read each folder on its own, into results of its own: "
        advice += f"{', '.join(name(path) for path in others)}."
    else:
        advice += "Export the slices of each kind again, as a series of its own."
    if not turned:
        return group.refused(
            "mixed_matrix", f"{slice_name(stray, name)}: {_matrix_difference(main[0], stray)} {advice}"
        )
    axes = [np.array(part.frame.orientation, dtype=np.float64) for part in (main[0], stray)]
    normals = [np.cross(axis[:3], axis[3:]) for axis in axes]
    cosine = float(normals[0] @ normals[1] / np.linalg.norm(normals[0]) / np.linalg.norm(normals[1]))
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    words = (
        f"its normal is turned by {angle:.2f} degrees, expected 0"
        if angle > 0.05
        else "its axes are turned in their plane"
    )
    return group.refused("mixed_orientation", f"{slice_name(stray, name)}: {words} {advice}")
