"""segpipe store: what prepared cases on disk take, and how they go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, counted

if TYPE_CHECKING:
    from segpipe.store import StoreFacts

group = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Prepared cases on disk, which `segpipe train --store` makes once and reads patches from.\n\n"
    "Example: segpipe store list --json",
)
Folder = Annotated[
    Path | None, typer.Argument(help="Folder of the store [default: that of `segpipe train --store default`].")
]


@group.command("list")
def list_(folder: Folder = None, json: AsJson = False) -> None:
    """Show where a store is, how many prepared cases it holds and how much they take.

    Example: segpipe store list runs/store
    """
    from segpipe.store import default_store, store_facts

    place = folder or default_store()
    _tell(Console("store", as_json=json), "list", place, store_facts(place))


@group.command("remove")
def remove(folder: Folder = None, json: AsJson = False) -> None:
    """Remove a store: its files alone. A training that needs its cases again prepares them again.

    Example: segpipe store remove runs/store
    """
    from segpipe.store import default_store, remove_store

    place = folder or default_store()
    _tell(Console("store", as_json=json), "remove", place, remove_store(place))


def _tell(console: Console, action: str, place: Path, held: StoreFacts) -> None:
    done = "removed " if action == "remove" else ""
    console.say(f"{done}{place}: {counted(held.cases, 'prepared case')}, {held.bytes / 1e9:.3g} GB")
    console.document(action=action, store=str(place), cases=held.cases, bytes=held.bytes)
