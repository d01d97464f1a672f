"""segpipe submit: a command as jobs of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, Interrupted
from segpipe.errors import UsageError


def command(
    words: Annotated[
        list[str],
        typer.Argument(help="After --: predict, train, tune, compare or auto, with all its words.", show_default=False),
    ],
    jobs: Annotated[Path, typer.Option(help="Folder of the jobs' files, which the nodes have to see.")] = Path("jobs"),
    array: Annotated[
        int | None,
        typer.Option(min=1, help="Shares of predict or compare, processes of tune --storage journal. [default: 1]"),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="slurm; ray, with --address; or local: processes of this machine, all at once, to try it."),
    ] = "slurm",
    cpus: Annotated[int, typer.Option(min=1, help="Cores of each job.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each job.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Memory of each job, e.g. 16G [default: the cluster's].")] = None,
    time: Annotated[str, typer.Option(help="Time of each job, e.g. 4h; it then goes on in another one.")] = "1h",
    partition: Annotated[str | None, typer.Option(help="Partition of Slurm [default: its own].")] = None,
    account: Annotated[str | None, typer.Option(help="Account of Slurm [default: its own].")] = None,
    address: Annotated[str | None, typer.Option(help="Of Ray's cluster, HOST:PORT.", show_default=False)] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Jobs at the same time [default: all].")] = None,
    allow_other_cpu: Annotated[
        bool, typer.Option(help="train: what was begun goes on also on another kind of CPU, where bits differ.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the jobs to their end.")] = True,
    json: AsJson = False,
) -> int:
    """Run a command as jobs of Slurm, follow them, and submit again what died: the same command goes on.

    predict and compare are shared among --array jobs; train --folds and --seeds have a job for each, and one that
    measures them when all have ended; tune --storage journal runs --array times in one folder; others are one job.

    A job that Slurm ends for its time, or for another's sake, goes on where it was when it gets a node again. With
    --no-wait, or after Ctrl-C, the jobs stay Slurm's, and the same command follows them.

    Example: segpipe submit --array 8 --gpus 1 --time 2h -- predict bundle scans results
    """
    import math

    from segpipe.cluster import Resources, exit_code, planned, submit
    from segpipe.training import parse_budget, parse_memory

    console = Console("submit", as_json=json)
    if engine != "slurm" and not wait:
        raise UsageError("only Slurm keeps jobs that nobody follows", found="--no-wait", hint="leave it out")
    resources = Resources(
        minutes=math.ceil(parse_budget(time) / 60),
        cpus=cpus,
        gpus=gpus,
        memory_gb=None if memory is None else parse_memory(memory) / 2**30,
        partition=partition,
        account=account,
        at_once=at_once,
        address=address,
    )
    try:
        tasks = planned(words, jobs, array, allow_other_cpu=allow_other_cpu)
        document = submit(tasks, jobs, engine, resources, console.note, wait)
    except KeyboardInterrupt as interruption:
        raise Interrupted("jobs of Slurm go on, others ended; the same command goes on") from interruption
    rows = [
        (row["name"], row["job"] or "–", row["state"], "" if row["code"] is None else row["code"])
        for row in document["tasks"]
    ]
    console.table("Jobs", ("what", "job", "state", "exit code"), rows)
    console.say(f"what they wrote: {jobs}")
    if not wait:
        console.say("the same command, without --no-wait, follows them")
    console.document(**{key: value for key, value in document.items() if key not in ("schema_version", "command")})
    return exit_code(document)
