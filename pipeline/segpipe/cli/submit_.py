"""segpipe submit: a command as jobs of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, Interrupted
from segpipe.errors import UsageError

if TYPE_CHECKING:
    from segpipe.cluster import Command

# click's ClickException, or that of the click which newer Typers carry within
_CommandLineError: Any = typer.BadParameter.__mro__[2]


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
        tasks = planned(read_command(words), jobs, array, allow_other_cpu=allow_other_cpu)
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


def read_command(words: Sequence[str]) -> Command:
    """Return the words of a command as its own verb reads them, which does not have to wait for a node to refuse them.

    Raises:
        UsageError: it would refuse them, or this verb is not submitted.
    """
    from segpipe.cluster import VERBS, Command

    if not words or words[0] not in VERBS:
        return Command(tuple(words))  # which is refused
    alone = typer.Typer(add_completion=False)
    alone.command(words[0])(import_module(f"segpipe.cli.{words[0]}_").command)
    parser: Any = typer.main.get_command(alone)
    try:
        context = parser.make_context(words[0], list(words[1:]))
    except typer.Exit as error:  # of --help
        raise UsageError("this command only shows its help", found=" ".join(words)) from error
    except _CommandLineError as error:
        raise UsageError(
            "the command after -- cannot be read", found=error.format_message(), hint=f"see `segpipe {words[0]} --help`"
        ) from error
    places: dict[str, Any] = {}
    options: dict[str, Any] = {}
    names: dict[str, tuple[str, bool]] = {}
    for param in parser.params:
        name = next((each for each in param.opts if each.startswith("--")), param.opts[0])
        is_option = param.param_type_name == "option"
        if is_option:
            names |= {each: (name, not param.is_flag) for each in (*param.opts, *param.secondary_opts)}
        if context.get_parameter_source(param.name).name == "COMMANDLINE":
            (options if is_option else places)[name] = context.params[param.name]
    return Command(tuple(words), places, options, names)
