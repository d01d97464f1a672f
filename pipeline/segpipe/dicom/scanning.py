"""Scan folders of DICOM files: walk the tree, read every header, judge every series."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segpipe.common.console import some_of
from segpipe.common.folder_walk import key_of, walk_folders
from segpipe.common.processes import MOST_WORKERS, over_cases, usable_cores
from segpipe.dicom.captures import offered, without_bare_captures
from segpipe.dicom.derived import KINDS
from segpipe.dicom.geometry import LPS_TO_RAS, judge_geometry
from segpipe.dicom.grouping import group_slices
from segpipe.dicom.headers import Header, read_header
from segpipe.dicom.model import Derived, Frame, PassedOver, Scan, Series
from segpipe.dicom.pet_units import STORED
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.repair import advice
from segpipe.dicom.slices import Group, Slice, notes_on_missing_slices, slice_name, stack_of
from segpipe.errors import UsageError

FILES_A_JOB = 64
MAY_LACK_SLICES = ("gap", "variable_spacing", "single_slice")
FILES_WORTH_A_WORKER = 3000  # headers: below, starting a process takes longer than what it would share


def scan(
    root: str | Path | Sequence[str | Path],
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    name: Callable[[Path], str] | None = None,
) -> Scan:
    """Read every header below ``root`` and say which volumes there are.

    Args:
        root: a folder, a file, or several of them.
        workers: processes; by default what the number of files is worth, at most 4.
        progress: called with the number of files read and of all files.
        name: what a file is called in the details of a refusal; by default its path below ``root``.

    Returns:
        Every file in exactly one class: slices of a series (loaded or refused), or passed over with the reason.

    Raises:
        UsageError: a root does not exist.
    """
    roots = [Path(root)] if isinstance(root, str | os.PathLike) else [Path(path) for path in root]
    base, files, no_files = walk(roots)

    def below(path: Path) -> str:
        return os.path.relpath(path, base)

    name = name or below
    read = _read_all(files, workers, progress or (lambda done, total: None))
    headers, captures = without_bare_captures([header for header in read if isinstance(header, Header)])
    passed_over = [*no_files, *captures, *(file for file in read if isinstance(file, PassedOver))]
    with no_header_text():
        series = [offered(_judged(group, name)) for group in group_slices(headers, name)]
    unreadable: dict[Path, list[str]] = defaultdict(list)
    for file in sorted(passed_over, key=lambda file: file.path):
        if file.file_class == "unreadable":
            unreadable[file.path.parent].append(name(file.path))
    series = [_with_unreadable(member, unreadable) for member in series]
    series.sort(key=lambda member: (member.study_uid, member.series_uid, member.files))
    return Scan(base, _with_own_ids(series, base), tuple(sorted(passed_over, key=lambda file: file.path)))


def has_dicom(root: Path) -> bool:
    """Return whether there is an image or another DICOM file below a folder; reads until it finds the first."""
    for path in walk([root])[1]:
        header = read_header(path)
        if isinstance(header, Header) or header.file_class == "non_image":
            return True
    return False


def walk(roots: Sequence[Path]) -> tuple[Path, list[Path], list[PassedOver]]:
    """Find the files of one or several folders (or single files).

    Links to folders are followed after everything else, and no folder is entered twice, so that a loop of links
    ends and a file keeps the name that it has without links.

    Returns:
        The folder that names can be relative to, the regular files, and what cannot be opened as a file.

    Raises:
        UsageError: a root does not exist.
    """
    for root in roots:
        if not root.exists():
            raise UsageError("no such file or folder", path=root, hint="check the path")
    folders = [root if root.is_dir() else root.parent for root in roots]
    files = {key_of(root.resolve()): root for root in roots if not root.is_dir()}
    odd: list[PassedOver] = []
    entries = walk_folders([root for root in roots if root.is_dir()])
    for entry in sorted(entries, key=lambda entry: entry.is_link):
        if entry.fault:
            odd.append(PassedOver(entry.path, "unreadable" if entry.is_folder else "not_dicom", entry.fault))
        elif files.setdefault(entry.key, entry.path) != entry.path and entry.is_link:
            odd.append(PassedOver(entry.path, "not_dicom", "a link to a file that is there already"))
    top = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    base = folders[0] if len(roots) == 1 else top
    return base, sorted(files.values()), odd


def _read_all(
    files: Sequence[Path], workers: int | None, progress: Callable[[int, int], object]
) -> list[Header | PassedOver]:
    jobs = [files[start : start + FILES_A_JOB] for start in range(0, len(files), FILES_A_JOB)]
    most = min(MOST_WORKERS, usable_cores(), len(files) // FILES_WORTH_A_WORKER)
    done = 0

    def count(job: Sequence[Path]) -> None:
        nonlocal done
        done += len(job)
        progress(done, len(files))

    results = over_cases(_read_some, jobs, max(1, most) if workers is None else workers, _lost, count)
    return [header for job in results for header in job]


def _read_some(paths: Sequence[Path]) -> list[Header | PassedOver]:
    with no_header_text():
        return [read_header(path) for path in paths]


def _lost(paths: Sequence[Path]) -> list[Header | PassedOver]:
    return [PassedOver(path, "unreadable", "the process that read it and its neighbours died") for path in paths]


def _judged(group: Group, name: Callable[[Path], str]) -> Series:
    header = group.slices[0].header
    uid = f"{header.series_uid} {group.split}".strip()
    references = {part.header.frame_of_reference_uid for part in group.slices}
    notes = dict.fromkeys([*group.notes, *(note for part in group.slices for note in part.header.notes)])
    series = Series(
        case_id=f"dcm-{hashlib.sha256(uid.encode()).hexdigest()[:12]}",
        series_uid=header.series_uid,
        study_uid=header.study_uid,
        modality=header.modality,
        files=tuple(sorted({part.header.path for part in group.slices} | set(group.copies))),
        state="refused",
        reason=group.reason,
        detail=group.detail,
        notes=tuple(notes),
        derived=_derived(group),
        sop_class_uid=header.sop_class_uid,
        frame_of_reference_uid=header.frame_of_reference_uid if len(references) == 1 else "",
        units=units if header.modality == "PT" and (units := header.compared.get("Units", "")) in STORED else "",
        description=header.description,
        slice_count=_slice_count(group),
    )
    series = replace(series, notes=(*series.caveats, *series.notes))
    if group.reason is not None:
        return series
    verdict = judge_geometry(stack_of(group.slices), lambda index: slice_name(group.slices[index], name))
    series = replace(
        series,
        frames=tuple(_frame(group.slices[index]) for index in verdict.order),
        shape=(header.columns, header.rows, len(group.slices)),
        reason=verdict.reason,
        detail=verdict.detail,
    )
    if verdict.affine_lps is None:
        return replace(series, detail=f"{verdict.detail} {advice(series)}".strip())
    columns, rows, slices = (float(edge) for edge in np.linalg.norm(verdict.affine_lps[:3, :3], axis=0))
    return replace(
        series,
        state="loaded",
        spacing_mm=(columns, rows, slices),
        affine_ras=LPS_TO_RAS @ verdict.affine_lps,
        notes=(*series.notes, *verdict.notes, *notes_on_missing_slices(group)),
    )


def _slice_count(group: Group) -> int:
    """Return how many slices the headers of a group count; 0 of mosaics, whose tiles nobody counts."""
    unread = {part.header.path: part.header.frame_count for part in group.slices if not part.header.frames}
    read = sum(1 for part in group.slices if part.header.frames)
    return 0 if group.reason == "mosaic" else read + sum(unread.values())


def _derived(group: Group) -> tuple[Derived, ...]:
    kinds = {part.frame.derived for part in group.slices} | ({"localizer"} if group.slices[0].header.scout else set())
    return tuple(kind for kind in KINDS if kind in kinds)


def _frame(part: Slice) -> Frame:
    position, orientation, spacing = part.frame.place
    path, uid, pixels = part.header.path, part.header.sop_instance_uid, part.header.pixels
    return Frame(path, part.frame.number, uid, position, orientation, spacing, pixels)


def _with_own_ids(series: Sequence[Series], base: Path) -> tuple[Series, ...]:
    """Return the series, each with an id of its own also where broken headers give two the same."""
    unique: dict[str, Series] = {}
    for member in series:
        if member.case_id in unique:
            words = [member.case_id, *(os.path.relpath(path, base) for path in member.files)]
            digest = hashlib.sha256(b"\0".join(map(os.fsencode, words))).hexdigest()
            member = replace(member, case_id=f"dcm-{digest[:12]}")
        unique[member.case_id] = member
    return tuple(unique.values())


def _with_unreadable(series: Series, unreadable: Mapping[Path, list[str]]) -> Series:
    """Name files that cannot be read and lie in a folder of a series: they may be slices that it lacks."""
    folders = sorted({path.parent for path in series.files})
    lost = [file for folder in folders for file in unreadable.get(folder, ())]
    if not lost:
        return series
    words = f"{len(lost)} unreadable file(s) in the same folder"
    if series.state == "loaded":
        return replace(series, notes=(*series.notes, f"{words}: a slice at an end may be missing"))
    if series.reason not in MAY_LACK_SLICES:
        return series
    return replace(series, detail=f"{series.detail} {words} may be what is missing, copy again: {some_of(lost)}.")
