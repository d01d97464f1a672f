"""segpipe compare: which network and which loss work best on the data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import TASK, AsJson, Augment, DataFolder, Override, Runtime, Threads, Workers
from segpipe.common.console import Console, Interrupted
from segpipe.errors import OK, SOME_FAILED, UsageError

if TYPE_CHECKING:
    from segpipe.common.shards import Shard
    from segpipe.studies import Row, Settings


def command(
    manifest: Annotated[Path, typer.Argument(help="Manifest with folds.")],
    task: Annotated[str, TASK],
    out: Annotated[Path, typer.Option(help="Folder for runs and report; the same command goes on in it.")],
    network: Annotated[
        list[str], typer.Option(help="Network fragments: repeated, or with commas; the first is the reference's.")
    ],
    loss: Annotated[
        list[str], typer.Option(help="Loss fragments: repeated, or with commas; the first is the reference's.")
    ],
    one_at_a_time: Annotated[
        bool, typer.Option("--one-at-a-time", help="First network with every loss, first loss with every network.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Budget of a run: optimiser steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Budget of a run: minutes on this machine, instead of steps.")
    ] = None,
    folds: Annotated[str, typer.Option(help="Folds, e.g. 0,1; every variant is run in each.")] = "0",
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0,1; every variant is run with each.")] = "0",
    split: Annotated[str, typer.Option(help="Cases that are measured: validation or test.")] = "validation",
    augment: Augment = "light",
    runtime: Runtime = "cpu",
    data: DataFolder = None,
    set_: Override = None,
    threads: Threads = None,
    workers: Workers = None,
    gif: Annotated[
        list[str] | None,
        typer.Option(help="Case to animate; may be repeated [default: the best variant's worst and median]."),
    ] = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Run nothing: the report of what is finished, even while others run.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time; more than 1 disturbs the timings.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Run one share of the runs, e.g. 0/3, and no report; other machines run 1/3 and 2/3 in the same OUT.",
            metavar="I/N",
        ),
    ] = None,
    json: AsJson = False,
) -> int:
    """Train variants under the same data, folds, seeds and budget, and report which works best.

    Every network with every loss, or with --one-at-a-time a column and a row of that grid. Each run is the
    ordinary commands in OUT/runs: train, export, predict, evaluate. The same command again goes on where it
    stopped. The report is OUT/report.html; tensorboard --logdir OUT/tensorboard shows all runs side by side.

    Several machines that share OUT: --shard 0/2 on one, --shard 1/2 on the other, then the command without it reports.

    Example: segpipe compare manifest.json --task task.yaml --network unet,unetpp --loss dice_ce --steps 400 --out
    comparison
    """
    from segpipe.common.shards import Shard
    from segpipe.studies import Settings, compare_variants, listed

    if (steps is None) == (minutes is None):
        raise UsageError("a budget is needed: --steps or --minutes, one of them")
    if split not in ("validation", "test"):
        raise UsageError(f"no split {split!r}", expected="validation or test")
    settings = Settings(
        listed(network),
        listed(loss),
        task,
        one_at_a_time,
        augment,
        runtime,
        _numbers("--folds", folds),
        _numbers("--seeds", seeds),
        split,
        steps,
        minutes,
        tuple(set_ or ()),
        threads,
        workers,
    )
    if not (settings.networks and settings.losses):
        raise UsageError("at least one --network and one --loss are needed")
    share = None if shard is None else Shard.parse(shard)
    if share is not None and redraw:
        raise UsageError("--redraw reports all that is finished", found=f"--shard {share}", hint="leave one out")
    console = Console("compare", as_json=json)
    try:
        rows, document = compare_variants(manifest, settings, out, console, data, gif or (), jobs, redraw, share)
    except KeyboardInterrupt as interruption:
        if not (out / "compare.json").is_file():
            raise
        raise Interrupted("the same command goes on from here") from interruption
    if share is not None:
        return _report_share(console, document, share, settings)
    return _report(console, rows, document, out)


def _report_share(console: Console, document: dict[str, Any], share: Shard, settings: Settings) -> int:
    cells = {cell.key: document["cells"][cell.key] for cell in settings.cells(share)}
    rows = [(key, facts["status"], facts.get("epochs"), facts.get("reason")) for key, facts in cells.items()]
    console.table(f"{document['settings']['dataset']}, share {share}", ("run", "state", "epochs", "reason"), rows)
    console.say(f"{len(document['cells'])} of {len(settings.cells())} runs have ended, in all shares")
    console.say("the report, when all have: the same command without --shard")
    console.document(**_content(document))
    return (
        SOME_FAILED if any(facts["status"] == "failed" or facts.get("failed_cases") for facts in cells.values()) else OK
    )


def _report(console: Console, rows: list[Row], document: dict[str, Any], out: Path) -> int:
    from segpipe.studies import COLUMNS, main_table, sentences

    settings, results = document["settings"], document["results"]
    console.table(f"{settings['dataset']}, {settings['split']} cases", COLUMNS, main_table(rows))
    for text in sentences(rows, results["patients_known"]):
        console.say(text)
    console.say(f"report: {out / 'report.html'}")
    console.say(f"all runs: tensorboard --logdir {out / 'tensorboard'}")
    for failure in results["failures"]:
        console.note(f"failed: {failure['run']}: {failure['reason']}")
    console.document(**_content(document))
    some_failed = results["failures"] or any(row["failed_cases"] for row in results["rows"])
    return SOME_FAILED if some_failed else OK


def _content(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in ("schema_version", "command")}


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{option} takes whole numbers with commas", found=text) from error
    if any(number < 0 for number in numbers):
        raise UsageError(f"{option} takes whole numbers from 0", found=text)
    return numbers
