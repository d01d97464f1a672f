"""segpipe train: the network, the config that it would have (--explain), or a trial of it (--dry-run)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import (
    TASK,
    Allow,
    AllowFile,
    AsJson,
    Augment,
    DataFolder,
    Mlflow,
    Override,
    Runtime,
    RunUnvetted,
    Threads,
    Workers,
    allowed_names,
    given_beside,
)
from segpipe.common.console import Console, Interrupted, quoted, some_of
from segpipe.common.processes import place_among_processes
from segpipe.errors import OK, SOME_FAILED, UsageError

if TYPE_CHECKING:
    from segpipe.training import Composed, TrainingRun


def command(
    context: typer.Context,
    manifest: Annotated[Path | None, typer.Argument(help="Manifest with folds.")] = None,
    out: Annotated[Path | None, typer.Option(help="New run folder.")] = None,
    task: Annotated[str | None, TASK] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Network fragment: unet, unetpp, dynunet, or a path; see `segpipe info networks` [default: unet, or "
            "that of --from]"
        ),
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss fragment: dice_ce, tversky, focal_tversky, or a path.")] = "dice_ce",
    augment: Augment = "light",
    runtime: Runtime = "cpu",
    fold: Annotated[
        str, typer.Option(help="Fold that is validated, made by `segpipe split`; none: train on every case.")
    ] = "0",
    folds: Annotated[
        str | None,
        typer.Option(help="Cross-validation: all folds, or some (0,2), into OUT/fold_0, ... [default: one run]"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Folds or seeds that are trained at the same time.")] = 1,
    data: DataFolder = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Keep prepared cases on disk and read patches from there: default (in this user's cache folder), a "
            "folder, auto (where memory does not hold them), none; see `segpipe store`. [default: the runtime's]"
        ),
    ] = None,
    set_: Override = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs (max_epochs).")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for all of it, e.g. 2h: steps are measured here, and their number follows.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Threads = None,
    workers: Workers = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes of this machine that share each batch, one for each GPU. [default: one, or the run's]",
        ),
    ] = None,
    batch_rule: Annotated[
        str,
        typer.Option(help="With --processes: split deals batch_size out; scaled gives so many cases to each process."),
    ] = "split",
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train with so many seeds, from --seed on: OUT/seed0, OUT/seed1, ... [default: one run]"
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="BUNDLE", help="Bundle whose weights the training begins with: fine-tuning."),
    ] = None,
    member: Annotated[
        int | None,
        typer.Option(help="With --from an ensemble: its network 0, 1, ... [default: that which did not see the fold]"),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(help="With --from: encoder keeps its weights as they are.", metavar="encoder")
    ] = None,
    allow_seen: Annotated[
        bool, typer.Option(help="With --from: go on where the bundle saw cases that are measured; figures say so.")
    ] = False,
    allow_other_preprocessing: Annotated[
        bool, typer.Option(help="With --from: go on where images are prepared in another way than the bundle's.")
    ] = False,
    mlflow: Mlflow = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Run folder, or that of --seeds or --folds, to continue as if never interrupted; --epochs extends it."
        ),
    ] = None,
    allow_other_cpu: Annotated[
        bool, typer.Option(help="With --resume: go on also on another kind of CPU, where bits differ.")
    ] = False,
    allow_other_processes: Annotated[
        bool, typer.Option(help="With --resume: go on also with another number of processes, where bits differ.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Build everything, run one batch, write nothing.")] = False,
    explain: Annotated[bool, typer.Option(help="Print where each value came from, and stop.")] = False,
    save_config: Annotated[
        Path | None, typer.Option(help="With --explain: write the MONAI config to this file (JSON).")
    ] = None,
    allow: Allow = None,
    allow_file: AllowFile = None,
    run_unvetted_code: RunUnvetted = False,
    json: AsJson = False,
) -> int:
    """Train a network and keep everything that repeats it.

    Example: segpipe train manifest.json --task task.yaml --network unet --loss dice_ce --out runs/first

    Ctrl-C leaves a run that goes on with: segpipe train --resume runs/first

    More epochs, also of a finished run: segpipe train --resume runs/first --epochs 200

    --explain shows the config that would run, every value with its origin; --dry-run tries it on one batch.

    --seeds 3 trains three times and records how far apart the seeds end, in OUT/seeds.json.

    --folds all trains a model a fold, each with the weights of its last epoch, and measures every case by the model
    that left it out: OUT/out_of_fold.json.

    --budget 2h measures a step on this machine and trains as many as fit, whatever the number of runs.

    --mlflow http://HOST:5000 tells a server each epoch, besides TensorBoard's files; export --mlflow keeps the
    bundle there.

    --processes 2 trains one network in two processes, on the batches and so to the losses of one; several machines:
    torchrun ... -m segpipe train ...

    --fold none trains on every training case and validates none.

    --store default keeps prepared cases on disk, for all trainings on them; segpipe store remove takes them away.

    --from BUNDLE begins with the weights of a bundle: tensors, labels and channels of the same name are taken, the
    rest begins anew. Without --task images are prepared as the bundle's were. Where it saw cases that the run is
    measured on, it is refused (exit code 5).

    A manifest or fragment that lies in a bundle is used when that bundle passes the checks of `segpipe bundle verify`.
    """
    from segpipe.training import WITH_RESUME, train

    console = Console("train", as_json=json)
    settings: dict[str, Any] = {
        "task": task,
        "network": network,
        "loss": loss,
        "augment": augment,
        "runtime": runtime,
        "fold": _fold(fold),
        "seed": seed,
        "epochs": epochs,
        "threads": threads,
        "workers": workers,
        "processes": processes,
        "batch_rule": batch_rule,
        "data": data,
        "store": store,
        "overrides": tuple(set_ or ()),
    }
    start: dict[str, Any] = {
        "member": member,
        "freeze": freeze,
        "allow_seen": allow_seen,
        "allow_other_preprocessing": allow_other_preprocessing,
    }
    policy: dict[str, Any] = {"allow": allowed_names(allow, allow_file), "run_unvetted_code": run_unvetted_code}
    if save_config is not None and not explain:
        raise UsageError("--save-config goes with --explain", hint="a run keeps its config as RUN/config.json")
    if explain and resume is not None:
        raise UsageError(
            "--resume goes on with the training, and --explain would not train",
            hint="leave one of them out: RUN/config.json has each value, origins in RUN/run.json where it came from",
        )
    if explain and budget is not None:
        raise UsageError("--budget measures, and --explain would not", hint="leave one of them out")
    if explain:
        _explain(console, manifest, out, {**settings, "folds": folds}, from_, start, policy, save_config)
        return OK
    if resume is not None and (others := given_beside(context, {*WITH_RESUME, "json", "dry_run"})):
        raise UsageError(
            "--resume takes its settings from the run, and would pass over what else is given",
            found=", ".join(others),
            expected=f"beside it only {', '.join('--' + name.replace('_', '-') for name in WITH_RESUME[1:-1])}",
            hint="leave it out, or train it with another --out",
        )
    if allow_other_cpu and resume is None:
        raise UsageError("--allow-other-cpu goes with --resume", hint="a new run begins on any CPU")
    if resume is None and (manifest is None or (task is None and from_ is None) or (out is None and not dry_run)):
        raise UsageError("a manifest, --task and --out are needed", hint="see `segpipe train --help`")
    try:
        run = train(
            manifest,
            out=out,
            folds=folds,
            seeds=seeds,
            jobs=jobs,
            budget=budget,
            resume=resume,
            allow_other_cpu=allow_other_cpu,
            mlflow=mlflow,
            allow_other_processes=allow_other_processes,
            dry_run=dry_run,
            parent=from_,
            **start,
            **settings,
            **policy,
        )
    except KeyboardInterrupt as interruption:
        begun = resume or out
        if dry_run or begun is None or not _can_go_on(begun):
            raise
        raise Interrupted(f"go on with: segpipe train --resume {begun}") from interruption
    if place_among_processes()[0] > 0:
        return OK  # the first one tells
    _report(console, run)
    failed = any(case["failure"] is not None for case in (run.out_of_fold or {"cases": []})["cases"])
    return SOME_FAILED if failed else OK


def _fold(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise UsageError(
            "the fold cannot be read", found=text, expected="a number like 0, or none", hint="every fold: --folds all"
        )
    return int(text)


def _can_go_on(folder: Path) -> bool:
    """Return whether a run, or one of several seeds or folds, was begun there."""
    runs = (*folder.glob("seed*/run.json"), *folder.glob("fold_*/run.json"))
    return any(file.is_file() for file in (folder / "run.json", *runs))


def _explain(
    console: Console,
    manifest: Path | None,
    out: Path | None,
    settings: dict[str, Any],
    parent: Path | None,
    start: dict[str, Any],
    policy: dict[str, Any],
    save_config: Path | None,
) -> None:
    """Print id, value and origin of all that a run on the manifest would be configured by."""
    import json

    from segpipe.bundle import TrustPolicy
    from segpipe.common.files import write_json
    from segpipe.training import FineTuning, RunSettings, compose_run

    if manifest is None or (settings["task"] is None and parent is None):
        raise UsageError("a manifest and --task are needed", hint="see `segpipe train --help`")
    if parent is not None:
        settings = {**settings, "start": FineTuning(parent, **start)}
    composed = compose_run(manifest, out or Path("runs/new"), RunSettings(**settings), TrustPolicy(**policy))
    for note in composed.notes:
        console.note(note)
    rows = []
    for name, origin in sorted(composed.origins.items()):
        text = json.dumps(_value(composed, name))
        rows.append((name, text if len(text) <= 60 else text[:57] + "...", origin))
    console.table("Where each value came from", ["id", "value", "from"], rows)
    if save_config is not None:
        write_json(save_config, composed.config)
        console.say(f"wrote {save_config}")
    console.document(config=composed.config, origins=composed.origins, notes=composed.notes)


def _value(composed: Composed, name: str) -> Any:
    value: Any = composed.config
    for part in name.replace("#", "::").split("::"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _report(console: Console, run: TrainingRun) -> None:
    """Say how the run, or the runs, ended."""
    from segpipe.training import weights_of

    if run.trial is not None:
        console.table("Dry run", ["what", "value"], list(run.trial.items()))
    elif run.seeds is not None:
        _report_seeds(console, run.seeds)
    elif run.folds is not None:
        _report_folds(console, run)
    else:
        weights = weights_of(run.root)
        if run.val_mean_dice is not None:
            best = "best " if weights.name == "best.pt" else ""
            console.say(
                f"{best}validation Dice {run.val_mean_dice:.4f} in epoch {run.best_epoch} of {run.epochs}, "
                f"{run.seconds / 60:.1f} minutes"
            )
        console.say(f"run folder: {run.root}")
        if weights.is_file():
            console.say(f"next: segpipe export {quoted(run.root)} BUNDLE")
        else:
            more = f"segpipe train --resume {quoted(run.root)} --epochs {run.epochs + 1}"
            console.say(f"nothing was validated, so there is nothing to export; next: {more}")
    console.document(**run.document())


def _report_folds(console: Console, run: TrainingRun) -> None:
    """Say what the models of a cross-validation are worth, and what the figure is of."""
    facts = run.out_of_fold or {}
    rows = [(row["fold"], row["folder"], row["epochs"], row["cases"], _mean(row)) for row in facts["folds"]]
    console.table("Folds", ["fold", "run", "epochs", "cases", "mean Dice"], rows)
    raw, corrected = facts["figure"]["raw"], facts["figure"]["corrected"]
    known = facts["patients"]["known"]
    console.say(f"out-of-fold mean Dice {_interval(raw)} over {'patients' if known else 'cases'}")
    if facts["figure"]["candidates"] > 1:
        console.say(f"corrected for the choice among {facts['figure']['candidates']} trainings: {_interval(corrected)}")
    console.say(f"({facts['of']})")
    if facts["patients"]["note"]:
        console.say(facts["patients"]["note"])
    failed = [case["id"] for case in facts["cases"] if case["failure"] is not None]
    if failed:
        console.note(f"{len(failed)} case(s) have no usable prediction and count as Dice 0: {some_of(failed)}")
    for label in facts["postprocessing"]["labels"]:
        if label["raw_gain"] is not None:
            console.say(
                f"post-processing of {label['name']}, {label['rule']}: {label['raw_gain']:+.4f} Dice, corrected "
                f"{label['corrected_gain']:+.4f} (segpipe export --postprocessing)"
            )
    console.say(f"each case: {run.root / 'evaluation' / 'report.html'}")
    only = run.root / facts["folds"][0]["folder"] if len(facts["folds"]) == 1 else run.root
    console.say(f"next: segpipe export {quoted(only)} BUNDLE")


def _mean(row: Mapping[str, Any]) -> str | None:
    mean = row["mean_dice"]["mean"]
    return None if mean is None else f"{mean:.4f}"


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["mean"] is None:
        return "unknown"
    interval = "" if estimate["low"] is None else f", 95 % interval {estimate['low']:.4f} to {estimate['high']:.4f}"
    return f"{estimate['mean']:.4f}{interval}"


def _report_seeds(console: Console, seeds: Any) -> None:
    rows = []
    for row in seeds["seeds"]:
        best = row["best"]
        shown = (best["epoch"], f"{best['val_mean_dice']:.4f}") if best else (None, None)
        rows.append((row["seed"], row["folder"], row["status"], row["epochs"], *shown))
    console.table("Seeds", ["seed", "run", "status", "epochs", "best epoch", "validation Dice"], rows)
    spread = seeds["val_mean_dice"]
    if spread["n"]:
        sd = "unknown" if spread["sd"] is None else f"{spread['sd']:.4f}"
        console.say(
            f"validation Dice over {spread['n']} seeds: mean {spread['mean']:.4f}, standard deviation {sd}, "
            f"range {spread['min']:.4f} to {spread['max']:.4f}"
        )
