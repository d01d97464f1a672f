"""``segpipe check``: read every file of a data set and report what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder, Readers
from segpipe.common.console import SCHEMA_VERSION, Console
from segpipe.errors import BAD_DATA, OK, SegpipeError


def command(
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the data set, or a folder of DICOM files.", show_default=False)
    ],
    data: DataFolder = None,
    workers: Readers = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON document to this file too.")] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures of cases that should be looked at. "
            "[default: check_pictures beside the report or the manifest]"
        ),
    ] = None,
    json: AsJson = False,
) -> int:
    """Read every file of a data set and report what is wrong with it.

    Errors: missing, unreadable or changed files, no volumes, wrong channels, label and channel grids that
    differ, NaN, constant images, unknown or fractional label values, one image under two ids, a patient in two
    splits. Warnings: empty or identical labels, spacings 3 times off the median, unusual orientations.

    Of a folder of DICOM files every series is checked: is it a volume (if not, why), what the header says that
    should be known, and its voxels; a CT without air, or with padding that the header does not tell of, is a warning.

    A broken file never stops the others. Exit code 3 where there is an error, else 0.

    Example: segpipe check manifest.json --report check.json

    Example: segpipe check dicom
    """
    from segpipe.common.files import write_json
    from segpipe.data import check_dataset

    console = Console("check", as_json=json)
    with console.progress() as bar:
        task = bar.add_task("reading", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = check_dataset(manifest, data=data, workers=workers, progress=progress)
    facts = found.document()
    if found.to_look_at:
        facts["pictures"] = _draw(found.to_look_at, manifest, data, pictures, report, console)
    if report is not None:
        write_json(report, {"schema_version": SCHEMA_VERSION, "command": "check", **facts})
    counts = found.labels or {}
    if facts["findings"]:
        keys = ("case_id", "severity", "kind", "part", "found", "expected")
        rows = [[finding[key] for key in keys] for finding in facts["findings"]]
        console.table("check", ("case", *keys[1:]), rows)
    if counts:
        rows = [[name, count["looked_for"], count["present"]] for name, count in counts.items()]
        console.table("labels", ("label", "cases looked at for it", "it is in"), rows)
    console.say(f"{facts['cases']} cases read: {facts['errors']} errors, {facts['warnings']} warnings")
    for kind, number in facts.get("passed_over", {}).items():
        console.say(f"{number} files passed over: {kind}")
    if "refused_series" in facts["kinds"]:
        console.say("`segpipe scan` names the files of what is refused")
    if {"unknown_label", "fractional_label"} & set(facts["kinds"]):
        console.say(
            "values become labels while a data set is imported: `segpipe import ... --label-values VALUE=LABEL`, "
            "several with commas, with --overwrite; what nobody annotated is left out: --ignore-label VALUE"
        )
    console.document(**facts)
    return BAD_DATA if facts["errors"] else OK


def _draw(
    ids: Sequence[str], source: Path, data: Path | None, folder: Path | None, report: Path | None, console: Console
) -> list[str]:
    """Draw cases whose label map was turned; returns the names of the pictures."""
    from segpipe.common.files import write_bytes
    from segpipe.data import open_manifest
    from segpipe.reporting import labelled_figure

    path = source / "manifest.json" if source.is_dir() else source
    manifest, root = open_manifest(path, data)
    folder = folder or (report or path).resolve().parent / "check_pictures"
    drawn = []
    for case in manifest.cases():
        if case.id in ids:
            try:
                write_bytes(
                    folder / f"{case.id}.png",
                    labelled_figure(root / case.images[0], root / str(case.label), manifest.foreground),
                )
                drawn.append(f"{case.id}.png")
            except SegpipeError as error:
                console.note(f"{case.id} cannot be drawn: {error.message}")
    if drawn:
        console.note(f"{len(drawn)} cases to look at, image beside label map: {folder}")
    return drawn
