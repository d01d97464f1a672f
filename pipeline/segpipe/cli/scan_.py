"""``segpipe scan``: which volumes are there in a tree of DICOM files, and why some are none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import AsJson, Readers
from segpipe.common.console import Console
from segpipe.errors import BAD_DATA, OK

if TYPE_CHECKING:
    from segpipe.dicom import Scan, Series

KEYS = [
    "case_id",
    "series_uid",
    "study_uid",
    "modality",
    "files",
    "state",
    "reason",
    "detail",
    "shape",
    "spacing_mm",
    "affine_ras",
    "derived",
    "notes",
]


def command(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) to scan, with all below it.", show_default=False)],
    workers: Readers = None,
    json: AsJson = False,
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
        tree = scan(folder, workers, lambda done, total: bar.update(task, completed=done, total=total))
    counts = _counts(tree)
    _report(console, tree, counts)
    passed_over = [
        {"file": _name(file.path, tree), "class": file.file_class, "detail": file.detail} for file in tree.passed_over
    ]
    console.document(series=[_as_dict(series, tree) for series in tree.series], passed_over=passed_over, counts=counts)
    return OK if tree.series else BAD_DATA


def _name(path: Path, scan: Scan) -> str:
    import os.path

    return os.path.relpath(path, scan.root)


def _counts(scan: Scan) -> dict[str, int]:
    classes = [file.file_class for file in scan.passed_over]
    images = {path for series in scan.series for path in series.files}
    return {
        **{state: sum(series.state == state for series in scan.series) for state in ("loaded", "refused")},
        "files": len(images) + len(classes),
        "image": len(images),
        **{name: classes.count(name) for name in ("non_image", "unreadable", "not_dicom")},
    }


def _as_dict(series: Series, scan: Scan) -> dict[str, Any]:
    values = series.as_dict() | {"files": [_name(path, scan) for path in series.files]}
    return {name: values[name] for name in KEYS}


def _report(console: Console, scan: Scan, counts: dict[str, int]) -> None:
    """Print a tree of studies and series, a table of the series, and one of what was passed over."""
    from collections import Counter
    from itertools import groupby

    for study, members in groupby(scan.series, key=lambda series: series.study_uid):
        console.say(f"study {study or '(no UID)'}")
        for series in members:
            state = f"{series.case_id} {series.state} {series.reason or ''}".rstrip()
            console.say(f"  series {series.series_uid or '(no UID)'}: {state}")
            for line in filter(None, (series.detail, *series.notes)):
                console.say(f"    {line}")
    if scan.series:
        columns = ("case", "modality", "derived", "files", "shape", "spacing mm", "state", "reason")
        console.table("series", columns, [_row(series) for series in scan.series])
    kinds = Counter((file.file_class, file.detail) for file in scan.passed_over)
    first = {(file.file_class, file.detail): _name(file.path, scan) for file in reversed(scan.passed_over)}
    if kinds:
        rows = [(kind, detail or None, number, first[kind, detail]) for (kind, detail), number in sorted(kinds.items())]
        console.table("passed over", ("class", "what it is", "files", "e.g."), rows)
    console.say(
        f"{counts['files']} files: {counts['image']} images, {counts['non_image']} other DICOM, "
        f"{counts['unreadable']} unreadable, {counts['not_dicom']} not DICOM; "
        f"{counts['loaded']} series loaded, {counts['refused']} refused"
    )


def _row(series: Series) -> tuple[Any, ...]:
    shape = series.shape and " x ".join(map(str, series.shape))
    spacing = series.spacing_mm and " x ".join(f"{edge:.4g}" for edge in series.spacing_mm)
    derived = ", ".join(series.derived) or None
    return series.case_id, series.modality, derived, len(series.files), shape, spacing, series.state, series.reason
