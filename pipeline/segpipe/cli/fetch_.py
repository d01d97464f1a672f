"""``segpipe fetch``: get a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, quoted

MEGABYTE = 1_000_000


def command(
    name: Annotated[str, typer.Argument(help="Data set, e.g. msd_task04_hippocampus.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="Folder to put the data set's folder into.")] = Path(),
    local: Annotated[
        Path | None, typer.Option("--from", help="Folder or archive that is there already; no network is used.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Get a data set of the Medical Segmentation Decathlon, verified.

    Downloads the public archive (an interrupted download is continued), checks its MD5 sum, unpacks it and
    compares the files with the list that comes with segpipe; then writes manifest.json beside them where there
    is such a list.

    Example: segpipe fetch msd_task04_hippocampus data

    Example: segpipe fetch msd_task04_hippocampus data --from Task04_Hippocampus.tar
    """
    from segpipe.data import fetch_dataset

    console = Console("fetch", as_json=json)
    with console.progress() as bar:
        task = bar.add_task("download (MB)", total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done // MEGABYTE, total=total and -(-total // MEGABYTE))

        folder = fetch_dataset(name, destination, local, report)
    manifest = folder / "manifest.json"
    if manifest.exists():
        console.say(f"{folder} is complete; next: segpipe check {quoted(manifest)}")
    else:
        console.say(f"{folder} is complete; next: segpipe import {quoted(folder)}")
    console.document(name=name, data=str(folder), manifest=str(manifest) if manifest.exists() else None)
