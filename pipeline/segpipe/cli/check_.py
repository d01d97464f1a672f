"""``segpipe check``: read every file of a data set and report what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.common.console import SCHEMA_VERSION, Console
from segpipe.errors import BAD_DATA, OK, UsageError

if TYPE_CHECKING:
    from segpipe.data import Finding


def command(
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the data set, or a folder of DICOM files.", show_default=False)
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder that the paths start from. [default: the manifest's]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read. [default: what the files are worth, at most 4]")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON document to this file too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
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

    console = Console("check", as_json=json)
    if manifest.is_dir() and not (manifest / "manifest.json").is_file():
        facts = _dicom(console, manifest, data, workers)
    else:
        path = manifest / "manifest.json" if manifest.is_dir() else manifest
        facts = _manifest(console, path, data, workers)
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
    console.document(**facts)
    return BAD_DATA if facts["errors"] else OK


def _manifest(console: Console, path: Path, data: Path | None, workers: int | None) -> dict[str, Any]:
    from segpipe.data import check_manifest, data_root, load_manifest

    loaded = load_manifest(path)
    n_cases = len(loaded.cases())
    with console.progress() as bar:
        task = bar.add_task("reading", total=n_cases)
        root = data_root(path, data)
        findings = check_manifest(loaded, root, workers, lambda: bar.advance(task))
    return _facts(loaded.name, n_cases, findings)


def _dicom(console: Console, folder: Path, data: Path | None, workers: int | None) -> dict[str, Any]:
    from segpipe.data import check_dicom

    if data is not None:
        raise UsageError("--data belongs to a manifest", hint="name the folder of DICOM files alone")
    with console.progress() as bar:
        task = bar.add_task("reading", total=None)
        tree = check_dicom(folder, workers, lambda done, total: bar.update(task, completed=done, total=total))
    return {**_facts("dicom", tree.series, tree.findings), "passed_over": tree.passed_over}


def _facts(name: str, n_cases: int, findings: list[Finding]) -> dict[str, Any]:
    from collections import Counter

    errors = sum(finding.severity == "error" for finding in findings)
    return {
        "name": name,
        "cases": n_cases,
        "errors": errors,
        "warnings": len(findings) - errors,
        "kinds": dict(Counter(finding.kind for finding in findings)),
        "findings": [finding.as_dict() for finding in findings],
    }
