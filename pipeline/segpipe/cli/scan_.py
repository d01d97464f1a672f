"""``segpipe scan``: which volumes are there in a tree of DICOM files, and why some are none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.common.console import Console
from segpipe.errors import BAD_DATA, OK

if TYPE_CHECKING:
    from segpipe.dicom import Scan, Series


def command(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) to scan, with all below it.", show_default=False)],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read. [default: what the files are worth, at most 4]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Find the volumes in a tree of DICOM files, and say why the rest is none.

    Reads headers alone. Every file is accounted for: as a slice of a series, or passed over as non-image DICOM,
    unreadable DICOM or no DICOM. Slices are grouped over the whole tree, and their geometry is judged in mm: a
    series is loaded, or refused with a reason (gap, gantry_tilt, mixed_orientation, ...), the file, and what to do.

    Exit code 0 where there is a series, loaded or refused; 3 where there is none.

    Example: segpipe scan /data/incoming
    """
    from segpipe.dicom import scan

    console = Console("scan", as_json=json)
    with console.progress() as bar:
        task = bar.add_task("headers", total=None)
        found = scan(folder, workers, lambda done, total: bar.update(task, completed=done, total=total))
    _tell(console, found)
    console.document(
        series=[_series(one, found) for one in found.series],
        passed_over=[
            {"file": _name(one.path, found), "class": one.file_class, "detail": one.detail} for one in found.passed_over
        ],
        counts=_counts(found),
    )
    return OK if found.series else BAD_DATA


def _name(path: Path, scan: Scan) -> str:
    import os.path

    return os.path.relpath(path, scan.root)


def _counts(scan: Scan) -> dict[str, int]:
    passed = [one.file_class for one in scan.passed_over]
    images = {path for one in scan.series for path in one.files}
    return {
        "loaded": sum(one.state == "loaded" for one in scan.series),
        "refused": sum(one.state == "refused" for one in scan.series),
        "files": len(images) + len(passed),
        "image": len(images),
        **{name: passed.count(name) for name in ("non_image", "unreadable", "not_dicom")},
    }


def _series(one: Series, scan: Scan) -> dict[str, Any]:
    return {
        "case_id": one.case_id,
        "series_uid": one.series_uid,
        "study_uid": one.study_uid,
        "modality": one.modality,
        "files": [_name(path, scan) for path in one.files],
        "state": one.state,
        "reason": one.reason,
        "detail": one.detail,
        "shape": None if one.shape is None else list(one.shape),
        "spacing_mm": None if one.spacing_mm is None else list(one.spacing_mm),
        "affine_ras": None if one.affine_ras is None else one.affine_ras.tolist(),
        "notes": list(one.notes),
    }


def _tell(console: Console, scan: Scan) -> None:
    """A tree of studies and series, a table of the series, and one of what was passed over."""
    from collections import Counter
    from itertools import groupby

    for study, members in groupby(scan.series, key=lambda one: one.study_uid):
        console.say(f"study {study or '(no UID)'}")
        for one in members:
            console.say(
                f"  series {one.series_uid or '(no UID)'}: {one.case_id} {one.state} {one.reason or ''}".rstrip()
            )
            for line in filter(None, (one.detail, *one.notes)):
                console.say(f"    {line}")
    if scan.series:
        columns = ("case", "modality", "files", "shape", "spacing mm", "state", "reason")
        console.table("series", columns, [_row(one) for one in scan.series])
    kinds = Counter((one.file_class, one.detail) for one in scan.passed_over)
    first = {(one.file_class, one.detail): _name(one.path, scan) for one in reversed(scan.passed_over)}
    if kinds:
        rows = [(kind, detail or None, number, first[kind, detail]) for (kind, detail), number in sorted(kinds.items())]
        console.table("passed over", ("class", "what it is", "files", "e.g."), rows)
    counts = _counts(scan)
    console.say(
        f"{counts['files']} files: {counts['image']} images, {counts['non_image']} other DICOM, "
        f"{counts['unreadable']} unreadable, {counts['not_dicom']} not DICOM; "
        f"{counts['loaded']} series loaded, {counts['refused']} refused"
    )


def _row(one: Series) -> tuple[Any, ...]:
    shape = one.shape and " x ".join(map(str, one.shape))
    spacing = one.spacing_mm and " x ".join(f"{edge:.4g}" for edge in one.spacing_mm)
    return one.case_id, one.modality, len(one.files), shape, spacing, one.state, one.reason
