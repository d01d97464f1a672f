"""``segpipe check``: read every file of a data set and report what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder, Readers
from segpipe.common.console import SCHEMA_VERSION, Console
from segpipe.errors import BAD_DATA, OK


def command(
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the data set, or a folder of DICOM files.", show_default=False)
    ],
    data: DataFolder = None,
    workers: Readers = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON document to this file too.")] = None,
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

        facts = check_dataset(manifest, data=data, workers=workers, progress=progress).document()
    if report is not None:
        write_json(report, {"schema_version": SCHEMA_VERSION, "command": "check", **facts})
    if facts["findings"]:
        keys = ("case_id", "severity", "kind", "part", "found", "expected")
        rows = [[finding[key] for key in keys] for finding in facts["findings"]]
        console.table("check", ("case", *keys[1:]), rows)
    console.say(f"{facts['cases']} cases read: {facts['errors']} errors, {facts['warnings']} warnings")
    for kind, number in facts.get("passed_over", {}).items():
        console.say(f"{number} files passed over: {kind}")
    if "refused_series" in facts["kinds"]:
        console.say("`segpipe scan` names the files of what is refused")
    if {"unknown_label", "fractional_label"} & set(facts["kinds"]):
        console.say(
            "values become labels while a data set is imported: `segpipe import ... --label-values VALUE=LABEL`, "
            "several with commas, with --overwrite"
        )
    console.document(**facts)
    return BAD_DATA if facts["errors"] else OK
