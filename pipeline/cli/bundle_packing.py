"""segpipe bundle pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import Console
from pipeline.errors import OK


def pack(
    bundle: Annotated[Path, typer.Argument(help="Bundle: a folder, or one zip file.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file [default: NAME_vVERSION.zip here].", metavar="FILE.zip"),
    ] = None,
    safetensors: Annotated[
        bool, typer.Option("--safetensors", help="Add models/model.safetensors, equal to models/model.pt.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Admit this one name, as `bundle verify` gives it; may be repeated."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is already there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Make one zip file of a bundle, with the same bytes for the same content wherever it is made.

    What `segpipe bundle verify` refuses is not packed, nor is a bundle without SHA256SUMS. The bundle is only read:
    with --safetensors the second form of the weights and its line in SHA256SUMS are in the file alone, as the content's
    hash then says. Unpacked and packed again it gives the same file.

    Example: segpipe bundle pack bundles/liver_ct -o liver_ct.zip
    """
    from pipeline.console import quiet_libraries

    console = Console("bundle", as_json=json)
    quiet_libraries()
    from pipeline.bundle.pack import pack_bundle

    packed = pack_bundle(bundle, out, safetensors=safetensors, allow=allow or (), overwrite=overwrite)
    size = packed.file.stat().st_size
    rows = [
        ("file", packed.file),
        ("size", f"{size / 1e6:.1f} MB, {packed.files} files"),
        ("sha256", packed.sha256),
        ("content", packed.content_sha256),
    ]
    console.table(f"{packed.name} {packed.version}", ["what", "value"], rows)
    console.document(
        action="pack",
        bundle={"name": packed.name, "version": packed.version, "sha256": packed.content_sha256},
        file=str(packed.file),
        file_sha256=packed.sha256,
        bytes=size,
        files=packed.files,
    )
    return OK
