"""segpipe train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import Allow, RunUnvetted
from segpipe.common.console import Console
from segpipe.errors import OK, UsageError

if TYPE_CHECKING:
    from segpipe.common.subprocesses import Subprocesses


Task = Annotated[str | None, typer.Option(help="Task fragment: a path from `segpipe plan`, or a name in configs/task.")]
Network = Annotated[
    str, typer.Option(help="Network fragment: unet, unetpp, dynunet, or a path; see `segpipe info networks`.")
]
Loss = Annotated[str, typer.Option(help="Loss fragment: dice_ce, tversky, focal_tversky, or a path.")]
Augment = Annotated[str, typer.Option(help="Augmentation fragment: light, mirror, none, or a path.")]
Runtime = Annotated[str, typer.Option(help="Runtime fragment: cpu, gpu, or a path.")]
Fold = Annotated[int, typer.Option(help="Fold that is validated; made by `segpipe split`.")]
Data = Annotated[Path | None, typer.Option(help="Data folder; default: the manifest's own folder.")]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override, e.g. --set learning_rate=1e-3 or network_def#channels=[8,16,32]."),
]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs (max_epochs).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; part of what makes a run repeatable.")]
Workers = Annotated[int | None, typer.Option(help="Loader processes (num_workers).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def command(
    manifest: Annotated[Path | None, typer.Argument(help="Manifest with folds.")] = None,
    out: Annotated[Path | None, typer.Option(help="New run folder.")] = None,
    task: Task = None,
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
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train with so many seeds, from --seed on: OUT/seed0, OUT/seed1, ... [default: one run]"
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder, or folder of --seeds, to continue as if never interrupted.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Build everything, run one batch, write nothing.")] = False,
    explain: Annotated[bool, typer.Option(help="Print where each value came from, and stop.")] = False,
    allow: Allow = None,
    run_unvetted_code: RunUnvetted = False,
    json: AsJson = False,
) -> int:
    """Train a network and keep everything that repeats it.

    Example: segpipe train manifest.json --task task.yaml --network unet --loss dice_ce --out runs/first

    Ctrl-C leaves a run that goes on with: segpipe train --resume runs/first

    --seeds 3 trains three times and records how far apart the seeds end, in OUT/seeds.json.

    A manifest or fragment that lies in a bundle is used when that bundle passes the checks of `segpipe bundle verify`.
    """
    from segpipe import training as train
    from segpipe.bundle import TrustPolicy, require_vetted_sources
    from segpipe.data import beside

    console = Console("train", as_json=json)
    if resume is not None:
        if manifest is not None or set_ or epochs is not None or seeds is not None:
            raise UsageError(
                "--resume takes its settings from the run", hint="give --resume RUN alone (and --data if it moved)"
            )
        if (resume / train.SEEDS).is_file():
            return several(console, resume, lambda children: train.resume_seeds(resume, children, console.note, data))
        return report(console, train.resume(resume, data), resume)
    if manifest is None or task is None or (out is None and not (dry_run or explain)):
        raise UsageError("a manifest, --task and --out are needed", hint="see `segpipe train --help`")
    sources = (manifest, task, network, loss, augment, runtime)
    require_vetted_sources(sources, TrustPolicy(tuple(allow or ()), run_unvetted_code))
    composed = train.compose_run(
        manifest,
        data,
        out or Path("dry-run"),
        {"task": task, "network": network, "loss": loss, "augment": augment, "runtime": runtime},
        list(set_ or []),
        options(fold, seed, epochs, threads, workers),
    )
    for note in composed.notes:
        console.note(note)
    if explain:
        explain_table(console, composed)
        return OK
    if dry_run:
        found = train.dry_run(composed, manifest)
        console.table("Dry run", ["what", "value"], list(found.items()))
        console.document(dry_run=found)
        return OK
    if out is None:
        raise UsageError("--out is needed")
    if seeds is not None:
        place, kept = Path(composed.config["dataset_dir"]), beside(task)
        return several(
            console,
            out,
            lambda children: train.train_seeds(composed, manifest, out, seeds, children, console.note, kept, place),
        )
    try:
        return report(console, train.start(composed, manifest, out, beside(task)), out)
    except KeyboardInterrupt:
        console.note(f"interrupted; go on with: segpipe train --resume {out}")
        raise


def several(console: Console, out: Path, work: Callable[[Subprocesses], dict[str, Any]]) -> int:
    """Train several seeds, each in a process, and say how far apart they ended."""
    from segpipe.common.subprocesses import Subprocesses

    children = Subprocesses()
    try:
        found = work(children)
    except KeyboardInterrupt:
        console.note(f"interrupted; go on with: segpipe train --resume {out}")
        raise
    rows = []
    for each in found["seeds"]:
        best = each["best"]
        shown = (best["epoch"], f"{best['val_mean_dice']:.4f}") if best else (None, None)
        rows.append((each["seed"], each["folder"], each["status"], each["epochs"], *shown))
    columns = ["seed", "run", "status", "epochs", "best epoch", "validation Dice"]
    console.table("Seeds", columns, rows)
    spread = found["val_mean_dice"]
    if spread["n"]:
        sd = "unknown" if spread["sd"] is None else f"{spread['sd']:.4f}"
        console.say(
            f"validation Dice over {spread['n']} seeds: mean {spread['mean']:.4f}, standard deviation {sd}, "
            f"range {spread['min']:.4f} to {spread['max']:.4f}"
        )
    console.document(run=str(out), seeds=found["seeds"], val_mean_dice=spread)
    return OK


def options(
    fold: int, seed: int, epochs: int | None, threads: int | None, workers: int | None
) -> dict[str, tuple[Any, str]]:
    """The command line's own ids and the option that sets each."""
    return {
        "fold": (fold, "--fold"),
        "seed": (seed, "--seed"),
        "max_epochs": (epochs, "--epochs"),
        "threads": (threads, "--threads"),
        "num_workers": (workers, "--workers"),
    }


def explain_table(console: Console, composed: Any) -> None:
    """Print id, value and origin."""
    import json

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:57] + "..."

    rows = []
    for name, origin in sorted(composed.origins.items()):
        value: Any = composed.config
        for part in name.replace("#", "::").split("::"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        rows.append((name, short(value), origin))
    console.table("Where each value came from", ["id", "value", "from"], rows)
    console.document(config=composed.config, origins=composed.origins, notes=composed.notes)


def report(console: Console, record: dict[str, Any], out: Path) -> int:
    """Say how the run ended."""
    best = record.get("best")
    seconds = sum(session.get("seconds", 0) for session in record["sessions"])
    if best:
        console.say(
            f"best validation Dice {best['val_mean_dice']:.4f} in epoch {best['epoch']} of {record['epochs']}, "
            f"{seconds / 60:.1f} minutes"
        )
    console.say(f"run folder: {out}\nnext: segpipe export {out} BUNDLE")
    facts = {name: record.get(name) for name in ("status", "best", "epochs", "fold", "seed")}
    console.document(run=str(out), **facts, seconds=round(seconds, 1))
    return OK
