"""segpipe compose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.train_ import (
    AsJson,
    Augment,
    Data,
    Epochs,
    Fold,
    Loss,
    Network,
    Override,
    Runtime,
    Seed,
    Threads,
    Workers,
    explain_table,
    options,
)
from segpipe.common.console import Console
from segpipe.errors import OK


def command(
    manifest: Annotated[Path, typer.Argument(help="Manifest with folds.")],
    task: Annotated[str, typer.Option(help="Task fragment: a path from `segpipe plan`, or a name.")],
    out: Annotated[Path | None, typer.Option(help="File for the config (JSON); default: standard output.")] = None,
    network: Network = "unet",
    loss: Loss = "dice_ce",
    augment: Augment = "light",
    runtime: Runtime = "cpu",
    fold: Fold = 0,
    data: Data = None,
    set_: Override = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    threads: Threads = None,
    workers: Workers = None,
    explain: Annotated[bool, typer.Option(help="Print where each value came from instead.")] = False,
    json: AsJson = False,
) -> int:
    """Show the MONAI config that `segpipe train` would run, without running it.

    Example: segpipe compose manifest.json --task task.yaml --loss tversky --explain
    """
    from json import dumps

    from segpipe.common.files import write_json
    from segpipe.training import compose_run

    console = Console("compose", as_json=json)
    composed = compose_run(
        manifest,
        data,
        Path("runs/composed"),
        {"task": task, "network": network, "loss": loss, "augment": augment, "runtime": runtime},
        list(set_ or []),
        options(fold, seed, epochs, threads, workers),
    )
    for note in composed.notes:
        console.note(note)
    if out is not None:
        write_json(out, composed.config)
        console.say(f"wrote {out}")
    if explain or json:
        explain_table(console, composed)
    elif out is None:
        console.say(dumps(composed.config, indent=2))
    return OK
