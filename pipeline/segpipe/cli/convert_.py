"""``segpipe convert``: DICOM series become NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import AsJson, Repair, SecondaryCapture, SeriesNames
from segpipe.common.console import Console
from segpipe.errors import BAD_DATA, OK, SOME_FAILED

if TYPE_CHECKING:
    from segpipe.dicom import ConvertedSeries, Scan


def command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM files.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write to.", show_default=False)],
    repair: Repair = None,
    series: SeriesNames = None,
    secondary_capture: SecondaryCapture = None,
    pet_unit: Annotated[
        str | None,
        typer.Option(help="PET: SUVbw converts values by the headers; BQML, CNTS or GML is what they have to be in."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there already.")] = False,
    json: AsJson = False,
) -> int:
    """Write every DICOM series that makes a volume as NIfTI: OUT/CASE_ID.nii.gz.

    Values are those after rescale, int16 where that is exact, else float32; padding has the smallest measured value.
    A series that would be a wrong volume is refused with the reason. File names are pseudonyms; which series one
    stands for is in OUT/mapping.jsonl, which only you can read.

    Exit code 4 where some series are refused, 3 where all are.

    Example: segpipe convert scans nifti

    Example: segpipe convert scans nifti --repair tilt

    Example: segpipe convert scans nifti --pet-unit SUVbw
    """
    from segpipe.dicom import convert_folder

    console = Console("convert", as_json=json)
    with console.progress() as bar:
        task = bar.add_task("reading headers", total=None)
        converted, tree = convert_folder(
            source,
            out,
            series=series or (),
            repair=repair,
            secondary_capture=secondary_capture or (),
            pet_unit=pet_unit,
            overwrite=overwrite,
            progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
    counts = _report(console, converted, out, tree)
    return OK if not counts["refused"] else SOME_FAILED if counts["refused"] < len(converted) else BAD_DATA


def _report(console: Console, converted: list[ConvertedSeries], out: Path, tree: Scan) -> dict[str, int]:
    from dataclasses import asdict

    columns = ("case", "modality", "state", "shape", "spacing (mm)", "reason or notes")
    console.table(
        "convert",
        columns,
        [
            (
                series.case_id,
                series.modality,
                series.state,
                series.shape and "x".join(map(str, series.shape)),
                series.spacing_mm and " ".join(f"{edge:.3g}" for edge in series.spacing_mm),
                f"{series.reason}: {series.detail}" if series.reason else "; ".join(series.notes) or None,
            )
            for series in converted
        ],
    )
    counts = {state: sum(series.state == state for series in converted) for state in ("written", "kept", "refused")}
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.say(f"{len(converted)} series: {words}; passed over: {tree.others}")
    passed_over = len(tree.passed_over)
    console.document(out=str(out), **counts, passed_over=passed_over, series=[asdict(series) for series in converted])
    return counts
