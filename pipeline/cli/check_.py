"""``segpipe check``: read every file of a data set and report what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import SCHEMA_VERSION, Console
from pipeline.errors import BAD_DATA, OK


def command(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the data set.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Folder that the paths start from. [default: the manifest's]")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that read. [default: what the files are worth, at most 4]"),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON document to this file too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Read every file of a data set and report what is wrong with it.

    Errors: missing, unreadable or changed files, no volumes, wrong channels, label and channel grids that
    differ, NaN, constant images, unknown or fractional label values, one image under two ids, a patient in two
    splits. Warnings: empty or identical labels, spacings 3 times off the median, unusual orientations.

    A broken file never stops the others. Exit code 3 where there is an error, else 0.

    Example: segpipe check manifest.json --report check.json
    """
    from collections import Counter

    from pipeline.check import check_manifest
    from pipeline.files import write_json
    from pipeline.manifest import data_root, load_manifest

    console = Console("check", as_json=json)
    loaded = load_manifest(manifest)
    n_cases = len(loaded.cases())
    with console.progress() as bar:
        task = bar.add_task("reading", total=n_cases)
        root = data_root(manifest, data)
        findings = check_manifest(loaded, root, workers, lambda: bar.advance(task))
    errors = sum(finding.severity == "error" for finding in findings)
    facts = {
        "name": loaded.name,
        "cases": n_cases,
        "errors": errors,
        "warnings": len(findings) - errors,
        "kinds": dict(Counter(finding.kind for finding in findings)),
        "findings": [finding.as_dict() for finding in findings],
    }
    if report is not None:
        write_json(report, {"schema_version": SCHEMA_VERSION, "command": "check", **facts})
    if findings:
        columns = ("case", "severity", "kind", "part", "found", "expected")
        rows = [(f.case_id, f.severity, f.kind, f.part, f.found, f.expected) for f in findings]
        console.table("check", columns, rows)
    console.say(f"{n_cases} cases read: {errors} errors, {len(findings) - errors} warnings")
    console.document(**facts)
    return BAD_DATA if errors else OK
