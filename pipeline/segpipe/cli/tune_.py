"""segpipe tune: search for better settings than the default, and find out whether the gain is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import TASK, AsJson, DataFolder, Override, Runtime, Threads, Workers
from segpipe.common.console import Console, Interrupted, quoted


def command(
    manifest: Annotated[Path, typer.Argument(help="Manifest with folds.", show_default=False)],
    task: Annotated[str, TASK],
    out: Annotated[Path, typer.Option(help="Folder for all that is made.")] = Path("tune"),
    space: Annotated[str, typer.Option(help="What is searched: usual, or a YAML file.")] = "usual",
    network: Annotated[
        str | None, typer.Option(help="Network of the default [default: the space's first, or unet].")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Loss of the default [default: the space's first, or dice_ce].")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="Augmentation of the default [default: the space's first, or light].")
    ] = None,
    runtime: Runtime = "cpu",
    trials: Annotated[int, typer.Option(min=2, help="Trainings to try, the default among them.")] = 20,
    budget: Annotated[
        str | None, typer.Option(help="Time for all of it, e.g. 8h [default: as long as the trials take].")
    ] = None,
    fold: Annotated[str, typer.Option(help="Fold that trials are measured on.")] = "0",
    confirm: Annotated[
        int | None,
        typer.Option(min=0, help="Folds, drawn anew, of the comparison with the default; 0: none. [default: all]"),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Give up trials whose validation lies below the median.")
    ] = True,
    data: DataFolder = None,
    set_: Override = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs of every training (max_epochs).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of proposals and trainings.")] = 0,
    threads: Threads = None,
    workers: Workers = None,
    storage: Annotated[
        str,
        typer.Option(help="sqlite: one process; journal: the same command may run several times, in a shared folder."),
    ] = "sqlite",
    json: AsJson = False,
) -> None:
    """Try other losses, widths, learning rates and augmentations than the default, and say whether it pays.

    Trials are measured on one fold; the best and the default are then trained again on folds drawn anew by patient, and
    both gains are printed with their intervals. Test cases are never read.

    Stopped by Ctrl-C or killed, the same command goes on: the trial that ran then goes on with its last epoch.

    Example: segpipe tune manifest.json --task task.yaml --trials 30 --budget 12h --out tune
    """
    from segpipe.errors import UsageError
    from segpipe.studies import STORAGES, Wanted, advised, gain_in_words, parse_fold, run_tuning, verdict
    from segpipe.training import duration, parse_budget

    if storage not in STORAGES:
        raise UsageError("no such storage", found=storage, expected=" or ".join(STORAGES))
    console = Console("tune", as_json=json)
    wanted = Wanted(
        manifest=manifest,
        out=out,
        task=task,
        space=space,
        network=network,
        loss=loss,
        augment=augment,
        runtime=runtime,
        trials=trials,
        seconds=None if budget is None else parse_budget(budget),
        fold=parse_fold(fold),
        confirm=confirm,
        prune=prune,
        epochs=epochs,
        threads=threads,
        workers=workers,
        seed=seed,
        data=data,
        overrides=tuple(set_ or ()),
        storage=storage,
    )
    try:
        document = run_tuning(wanted, console.note)
    except KeyboardInterrupt as interruption:
        raise Interrupted("what is finished is kept, and the same command goes on") from interruption
    ranked = sorted(document["trials"], key=lambda trial: -(trial["dice"] or -1.0))
    rows = [
        (
            trial["name"],
            "–" if trial["dice"] is None else f"{trial['dice']:.4f}",
            trial["state"],
            "" if trial["seconds"] is None else duration(trial["seconds"]),
        )
        for trial in ranked
    ]
    console.table("Trials", ("trial", "mean Dice out of fold", "state", "time"), rows)
    if document["gain_on_the_search_fold"]:
        console.say(f"gain on the fold of the search: {gain_in_words(document, document['gain_on_the_search_fold'])}")
    if document["confirmation"]:
        console.say(f"gain on folds drawn anew: {gain_in_words(document, document['confirmation']['gain'])}")
    console.say(verdict(document))
    for note in document["notes"]:
        console.say(f"Note: {note}")
    console.say(f"Open {out / 'tune.html'}")
    if document["best"]:
        run = out / "candidates" / advised(document) / "run" / f"fold_{document['settings']['fold']}"
        console.say(f"next: segpipe export {quoted(run)} BUNDLE")
    console.document(**{key: value for key, value in document.items() if key not in ("schema_version", "command")})
