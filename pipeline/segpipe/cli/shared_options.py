"""Options that several commands have, each worded once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help="Let the bundle use this one name, as a finding gives it; may be repeated.", metavar="NAME"
    ),
]
RunUnvetted = Annotated[
    bool,
    typer.Option(
        "--run-unvetted-code",
        help="Take a bundle that was changed or whose code is not vetted: it may then read, change and send whatever "
        "you may on this machine.",
    ),
]
