"""segpipe report: many results together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, counted, quiet_libraries, some_of


def command(
    folders: Annotated[
        list[Path], typer.Argument(help="Result folders of `segpipe predict`.", metavar="OUT...", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page and the tables.")] = Path("report"),
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Also measure every label: shape, place, intensities.")
    ] = False,
    meshes: Annotated[
        Literal["stl", "obj"] | None, typer.Option(help="Also write the surface of every label.", show_default=False)
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="CSV of case, patient, date: also show how volumes change.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Show many results together: decisions, volumes, drift, and outliers first.

    Writes cohort.html, which stands alone, and cases.csv; with --statistics also statistics.csv, a row a case and label
    (volume, diameters, surface, centroid, mean and SD of the image), with --meshes surfaces in mm of LPS, with
    --patients changes.csv, how volumes change from one scan of a patient to the next, with intervals. Only cases of
    one model (the same bundles, mirroring, runtime and precision) are compared with each other. Nothing is predicted,
    and the result folders stay as they are.

    Example: segpipe report results/october results/november -o report --statistics
    """
    console = Console("report", as_json=json)
    quiet_libraries()
    from segpipe.cohort import report

    with console.progress() as bar:
        task = bar.add_task("cases", total=None)
        found = report(
            folders,
            out,
            statistics=statistics,
            meshes=meshes,
            patients=patients,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    judged = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in found.decisions.items() if number)
    console.say(f"{counted(found.cases, 'case')}: {judged}; {found.outliers} of unusual volume")
    if found.without_statistics:
        reasons = [f"{name}: {why}" for name, why in found.without_statistics.items()]
        console.note(f"{counted(len(reasons), 'case')} could not be measured whole: {some_of(reasons)}")
    if patients is not None:
        console.say(f"{counted(found.changes, 'change')} of a volume from scan to scan")
        if rows := found.not_in_results:
            names = "names" if len(rows) == 1 else "name"
            console.note(f"{counted(len(rows), 'row')} of {patients.name} {names} no case: {some_of(rows)}")
        if cases := found.not_in_table:
            console.note(f"{counted(len(cases), 'case')} without a patient in the table: {some_of(cases)}")
    console.say(f"{out}")
    console.document(
        out=str(out),
        cases=found.cases,
        outliers=found.outliers,
        decisions=found.decisions,
        without_statistics=found.without_statistics,
        changes=found.changes,
        not_in_results=found.not_in_results,
        not_in_table=found.not_in_table,
    )
