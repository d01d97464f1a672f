"""segpipe view: look through cases in a browser."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder
from segpipe.common.console import Console, counted, quoted, some_of
from segpipe.errors import UsageError


def command(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder that `segpipe predict` wrote, a case's folder in it, or a manifest.",
            metavar="OUT|CASE|MANIFEST",
        ),
    ],
    truth: Annotated[
        Path | None, typer.Option(help="True labels to compare with: a manifest, or a folder of label maps.")
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option(help="Another result folder of the same cases to compare with.")
    ] = None,
    data: DataFolder = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be repeated.", metavar="ID", show_default=False)
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Write one HTML file with the voxels of small cases in it, and serve nothing.", metavar="FILE"
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 0,
    edit: Annotated[
        Path | None,
        typer.Option(help="Correct label maps in the browser; they are saved into this folder.", metavar="FOLDER"),
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="With --edit: pseudonym of who draws, e.g. reader-2.", show_default=False)
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the usual browser.")] = False,
    json: AsJson = False,
) -> None:
    """Look through cases in a browser: three planes and 3D, with labels, doubt and comparisons over the image.

    Prints an address on this machine's loopback that holds a secret, and answers until Ctrl-C. Nothing is written but
    by --edit, and nothing is asked of a network. Images are found by mapping.jsonl of the result folder, so only its
    owner sees them.
    Label maps of --truth and --earlier become layers of their own, and what differs a further one; so does
    entropy.nii.gz where it was asked for.

    With --edit FOLDER label maps can be corrected with brush and eraser. Each is saved as FOLDER/ID.nii.gz, with a line
    of who drew it and for how long; what it began with stays as it is. `segpipe import --corrections` takes them there.

    --page writes a page that needs no server: it holds the voxels, so whoever has it has the scans. Faces can be seen
    in scans of heads.

    Example: segpipe view results/ --truth data/manifest.json

    Example: segpipe view results/ --edit corrected --annotator reader-2
    """
    from segpipe.common.result_folder import result_root
    from segpipe.viewer import Editor, ViewServer, find_viewed, has_niivue, write_viewer_page

    console = Console("view", as_json=json)
    if (page is not None and edit is not None) or (annotator is not None and edit is None):
        raise UsageError("--annotator goes with --edit, and --edit not with --page", hint="a page saves nothing")
    if edit is not None and data is not None and path.is_file():
        raise UsageError(
            "corrections of a manifest need it beside its data",
            path=path,
            found=f"--data {data}",
            expected="a manifest in the folder that its paths start from: `segpipe import --corrections` writes there",
            hint=f"copy it into {data}, and name it there, without --data",
        )
    cases = find_viewed(path, truth=truth, earlier=earlier, data=data, only=case or ())
    ids = [each.id for each in cases]
    title = "segpipe view"
    if not has_niivue():
        console.note(
            "NiiVue is not installed, so the page shows pictures alone: `make viewer` in a checkout fetches it"
        )
    if page is not None:
        write_viewer_page(page, title, cases, "Look at it with `segpipe view`.")
        console.say(f"{page}: {counted(len(cases), 'case')} ({some_of(ids)})")
        console.document(url=None, page=str(page), cases=ids, niivue=has_niivue())
        return
    editor = None if edit is None else Editor(edit, annotator)
    with ViewServer(cases, title, port, editor) as server, _opened(server.url, open_):
        console.say(f"{counted(len(cases), 'case')} ({some_of(ids)})")
        console.say(server.url)
        if edit is not None:
            source, into = (path, "") if path.is_file() else (result_root(path), " --into MANIFEST")
            console.say(f"corrections go to {edit}: segpipe import {quoted(source)} --corrections {quoted(edit)}{into}")
        console.say("Ctrl-C ends it; whoever on this machine has the address can look as well.")
        console.document(url=server.url, page=None, cases=ids, niivue=has_niivue())
        try:
            server.serve()
        except KeyboardInterrupt:  # the usual end
            console.note("segpipe view: ended")


@contextmanager
def _opened(url: str, wanted: bool) -> Iterator[None]:
    """Open a browser by a file that only its user can read: command lines, which others see, hold no secret."""
    if not wanted:
        yield
        return
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="segpipe-view-") as file:
        file.write(f'<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={url}">\n')
        file.flush()
        webbrowser.open(Path(file.name).as_uri())
        yield
