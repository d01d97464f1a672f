"""``segpipe convert``: DICOM series become NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.common.console import Console
from segpipe.errors import BAD_DATA, OK, SOME_FAILED, DataError, UsageError

if TYPE_CHECKING:
    from segpipe.dicom import Scan, Series


def command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM files.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write to.", show_default=False)],
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="Resample what is refused for it to a regular grid: tilt, spacing. May be repeated.",
            show_default=False,
        ),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(help="Only this SeriesInstanceUID or case id. May be repeated.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Write every DICOM series that makes a volume as NIfTI: OUT/CASE_ID.nii.gz.

    Values are those after rescale, int16 where that is exact, else float32; padding has the smallest measured value.
    A series that would be a wrong volume is refused with the reason. File names are pseudonyms; which series one
    stands for is in OUT/mapping.jsonl, which only you can read.

    Exit code 4 where some series are refused, 3 where all are.

    Example: segpipe convert scans nifti

    Example: segpipe convert scans nifti --repair tilt
    """
    from segpipe.dicom import as_repairs, scan, write_mapping

    console = Console("convert", as_json=json)
    repairs = as_repairs(repair)
    with console.progress() as bar:
        task = bar.add_task("reading headers", total=None)
        found = scan(source, progress=lambda done, total: bar.update(task, completed=done, total=total))
    chosen = _choose(found, series or [])
    rows: list[dict[str, Any]] = []
    with console.progress() as bar:
        task = bar.add_task("converting", total=len(chosen))
        for one in chosen:
            rows.append(_convert(one, found.root, out, repairs, overwrite))
            bar.advance(task)
    made = [one for one, row in zip(chosen, rows, strict=True) if row["state"] != "refused"]
    if made:
        write_mapping(out, made)
    _report(console, rows, out, len(found.passed_over))
    return OK if len(made) == len(rows) else SOME_FAILED if made else BAD_DATA


def _choose(found: Scan, wanted: list[str]) -> list[Series]:
    if not found.series:
        raise DataError(
            "there is no DICOM series",
            path=found.root,
            found=f"{len(found.passed_over)} other files",
            hint="`segpipe scan` lists them",
        )
    for name in wanted:
        if not any(name in (one.series_uid, one.case_id) for one in found.series):
            raise UsageError("no such series", found=name, hint="`segpipe scan` lists those that are there")
    return [one for one in found.series if not wanted or {one.series_uid, one.case_id} & set(wanted)]


def _convert(series: Series, root: Path, out: Path, repair: tuple[str, ...], overwrite: bool) -> dict[str, Any]:
    """What became of a series."""
    from segpipe.dicom import can_repair, load_series, write_volume

    path = out / f"{series.case_id}.nii.gz"
    row: dict[str, Any] = {
        "case_id": series.case_id,
        "series_uid": series.series_uid,
        "modality": series.modality,
        "state": "refused",
        "reason": series.reason,
        "detail": series.detail,
        "file": None,
        "shape": None,
        "spacing_mm": None,
        "dtype": None,
        "repaired": [],
        "notes": list(series.notes),
    }
    if series.state == "refused" and not can_repair(series, repair):
        return row
    if path.is_file() and not overwrite:
        return {**row, "state": "kept", "reason": None, "detail": "", "file": path.name}
    try:
        volume = load_series(series, repair=repair)
    except DataError as error:
        reason = getattr(error, "reason", series.reason)
        return {**row, "reason": reason, "detail": _in_words(error, root)}
    write_volume(volume, path)
    return {
        **row,
        "state": "written",
        "reason": None,
        "detail": "",
        "file": path.name,
        "shape": list(volume.array.shape),
        "spacing_mm": [round(edge, 6) for edge in volume.spacing_mm],
        "dtype": str(volume.array.dtype),
        "repaired": list(volume.repaired),
        "notes": list(volume.notes),
    }


def _in_words(error: DataError, root: Path) -> str:
    """One sentence, with the file as the scan names it."""
    file = Path(error.path) if error.path else None
    named = f"{file.relative_to(root) if file.is_relative_to(root) else file.name}: " if file else ""
    found = f"; found {error.found}" if error.found else ""
    return f"{named}{error.message}{found}. {error.hint or ''}".strip()


def _report(console: Console, rows: list[dict[str, Any]], out: Path, passed_over: int) -> None:
    columns = ("case", "modality", "state", "shape", "spacing (mm)", "reason or notes")
    console.table(
        "convert",
        columns,
        [
            (
                row["case_id"],
                row["modality"],
                row["state"],
                row["shape"] and "x".join(map(str, row["shape"])),
                row["spacing_mm"] and " ".join(f"{edge:.3g}" for edge in row["spacing_mm"]),
                f"{row['reason']}: {row['detail']}" if row["reason"] else "; ".join(row["notes"]) or None,
            )
            for row in rows
        ],
    )
    counts = {state: sum(row["state"] == state for row in rows) for state in ("written", "kept", "refused")}
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.say(f"{len(rows)} series: {words}; {passed_over} other files passed over")
    console.document(out=str(out), **counts, passed_over=passed_over, series=rows)
