"""Scan a tree: every file in its class, every series judged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.dicom.geometry import judge
from pipeline.dicom.group import Group, groups_of, slice_name, stack_of
from pipeline.dicom.headers import Header, read_header
from pipeline.dicom.model import Frame, PassedOver, Scan, Series
from pipeline.dicom.privacy import no_header_text
from pipeline.dicom.walk import walk
from pipeline.processes import MOST_WORKERS, over_cases, usable_cores

FILES_A_JOB = 64
FILES_WORTH_A_WORKER = 1000  # headers: below, starting a process takes longer than what it would share
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Progress = Callable[[int, int], object]


def scan(root: Path | Sequence[Path], workers: int | None = None, progress: Progress | None = None) -> Scan:
    """Read every header below ``root`` and say which volumes there are.

    Args:
        root: a folder, a file, or several of them.
        workers: processes; by default what the number of files is worth, at most 4.
        progress: called with the number of files read and of all files.

    Returns:
        Every file in exactly one class: slices of a series (loaded or refused), or passed over with the reason.

    Raises:
        UsageError: a root does not exist.
    """
    roots = [Path(root)] if isinstance(root, str | os.PathLike) else [Path(one) for one in root]
    base, files, odd = walk(roots)

    def name(path: Path) -> str:
        return os.path.relpath(path, base)

    read = _read_all(files, workers, progress or (lambda done, total: None))
    headers = [one for one in read if isinstance(one, Header)]
    passed_over = [*odd, *(one for one in read if isinstance(one, PassedOver))]
    with no_header_text():
        series = [_judged(group, name, passed_over) for group in groups_of(headers, name)]
    series.sort(key=lambda one: (one.study_uid, one.series_uid, one.files))
    return Scan(base, tuple(series), tuple(sorted(passed_over, key=lambda one: one.path)))


def _read_all(files: Sequence[Path], workers: int | None, progress: Progress) -> list[Header | PassedOver]:
    jobs = [files[start : start + FILES_A_JOB] for start in range(0, len(files), FILES_A_JOB)]
    most = min(MOST_WORKERS, usable_cores(), len(files) // FILES_WORTH_A_WORKER)
    done = 0

    def count(job: Sequence[Path]) -> None:
        nonlocal done
        done += len(job)
        progress(done, len(files))

    results = over_cases(_read_some, jobs, max(1, most) if workers is None else workers, _lost, count)
    return [one for some in results for one in some]


def _read_some(paths: Sequence[Path]) -> list[Header | PassedOver]:
    with no_header_text():
        return [read_header(path) for path in paths]


def _lost(paths: Sequence[Path]) -> list[Header | PassedOver]:
    return [PassedOver(path, "unreadable", "the process that read it and its neighbours died") for path in paths]


def _judged(group: Group, name: Callable[[Path], str], passed_over: Sequence[PassedOver]) -> Series:
    header = group.slices[0].header
    files = tuple(sorted({part.header.path for part in group.slices} | set(group.copies)))
    uid = f"{header.series_uid} {group.split}".strip()
    facts = {
        "case_id": f"dcm-{hashlib.sha256(uid.encode()).hexdigest()[:12]}",
        "series_uid": header.series_uid,
        "study_uid": header.study_uid,
        "modality": header.modality,
        "files": files,
        "sop_class_uid": header.sop_class_uid,
        "frame_of_reference_uid": header.frame_of_reference_uid,
        "description": header.description,
    }
    notes = [*group.notes, *dict.fromkeys(note for part in group.slices for note in part.header.notes)]
    if group.reason is not None:
        return Series(**facts, state="refused", reason=group.reason, detail=group.detail, notes=tuple(notes))  # type: ignore[arg-type]
    stack = stack_of(group.slices)
    verdict = judge(stack, lambda index: slice_name(group.slices[index], name))
    facts["frames"] = tuple(_frame(group, index) for index in verdict.order)
    facts["shape"] = (header.columns, header.rows, len(group.slices))
    if verdict.affine_lps is None:
        return Series(
            **facts, state="refused", reason=verdict.reason, detail=verdict.detail, notes=tuple(notes)
        )  # type: ignore[arg-type]
    spacing = np.linalg.norm(verdict.affine_lps[:3, :3], axis=0)
    facts["spacing_mm"] = tuple(float(edge) for edge in spacing)
    facts["affine_ras"] = LPS_TO_RAS @ verdict.affine_lps
    notes += verdict.notes
    return Series(**facts, notes=tuple(notes))  # type: ignore[arg-type]


def _frame(group: Group, index: int) -> Frame:
    header, frame = group.slices[index]
    return Frame(
        header.path, frame.number, header.sop_instance_uid, frame.position, frame.orientation, frame.spacing  # type: ignore[arg-type]
    )
