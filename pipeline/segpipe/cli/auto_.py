"""segpipe auto: from a folder of scans with labels to a bundle, within a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder
from segpipe.common.console import Console


def command(
    source: Annotated[
        Path, typer.Argument(help="Folder of a data set (as for import), or a manifest.", show_default=False)
    ],
    budget: Annotated[str, typer.Option(help="Time for all of it, e.g. 2h or 45m.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all that is made.")] = Path("auto"),
    data: DataFolder = None,
    patient_rule: Annotated[
        str,
        typer.Option(
            help="Of a folder of scans: patient from case id: pairs (2k-1 and 2k), regex:PATTERN (one group), none."
        ),
    ] = "none",
    modality: Annotated[
        list[str] | None, typer.Option(help="CT, MRI, ... once for each channel.", show_default=False)
    ] = None,
    label_name: Annotated[
        list[str] | None, typer.Option(help="Name of label 1, then of 2, ... where they have none.", show_default=False)
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="Training to compare: NETWORK, or NETWORK+AUGMENT; may be repeated. [default: unet, dynunet]",
            show_default=False,
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Folds to draw where there are none. [default: 2 to 5, by the budget]")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at the same time. [default: one a core; on a GPU 1]")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="What training steps may use, e.g. 8G [default: half of this machine's or container's]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.")] = None,
    json: AsJson = False,
) -> None:
    """Go from a folder to the best bundle that the time allows, and explain each choice on one page.

    Import, check, split into folds by patient, plan for this machine, compare candidates on cases that they did not
    see, cross-validate the best, export the ensemble of its folds. A test set that the data has is never opened.

    Stopped by Ctrl-C or killed, the same command goes on.

    Example: segpipe auto Task04_Hippocampus --patient-rule pairs --budget 2h -o hippocampus
    """
    from segpipe.common.console import Interrupted
    from segpipe.studies import Asked, parse_candidate, run_auto
    from segpipe.training import duration, parse_budget, parse_memory, step_memory

    console = Console("auto", as_json=json)
    asked = Asked(
        source=source,
        out=output,
        seconds=parse_budget(budget),
        data=data,
        folds=folds,
        patient_rule=patient_rule,
        modality=tuple(modality or ()),
        label_names=tuple(label_name or ()),
        device=device,
        jobs=jobs,
        memory_bytes=step_memory() if memory is None else parse_memory(memory),
        seed=seed,
        name=name,
        candidates=tuple(map(parse_candidate, candidate or ())),
    )
    try:
        state = run_auto(asked, console.note)
    except KeyboardInterrupt as interruption:
        raise Interrupted("what is finished is kept, and the same command goes on") from interruption
    result = state["result"]
    raw, corrected = (_dice(result["figure"][name]["mean"]) for name in ("raw", "corrected"))
    rows = [
        ("chosen", result["chosen"]),
        ("mean Dice out of fold", raw),
        *([("corrected for the choice", corrected)] if corrected != raw else []),
        ("time", f"{duration(result['seconds'])} of {duration(asked.seconds)}"),
    ]
    console.table("auto", ("what", "found"), rows)
    console.say(f"What is measured: {result['of']}")
    for note in state["notes"]:
        console.say(f"Note: {note}")
    console.say(f"Bundle: {output / result['bundle']}")
    console.say(f"Open {output / 'auto.html'}")
    console.document(**{key: value for key, value in state.items() if key not in ("schema_version", "command")})


def _dice(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
