"""segpipe quality: what a model knows of its usual cases, so that it can say which ones to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder
from segpipe.common.console import Console, of_patients, quiet_libraries, quoted

PATIENTS_OF_A_P_VALUE = 33  # from which the p-value of the rules is reached before a case is farther than all of them

group = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What a model knows of its usual cases, so that it can say which ones to look at.\n\n"
    "Example: segpipe quality fit runs/liver_folds --json",
)


@group.callback()
def main() -> None:
    """Make it a group of one verb."""


@group.command("fit")
def fit(
    run: Annotated[Path, typer.Argument(help="Folder of `segpipe train --folds all`.", show_default=False)],
    data: DataFolder = None,
    spoil: Annotated[
        int, typer.Option(help="Spoiled images of each case that are measured too.", min=0, max=10, metavar="N")
    ] = 8,
    level: Annotated[float, typer.Option(help="That bounds and intervals hold at.", min=0.5, max=0.99)] = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: the cores].", min=1)] = None,
    json: AsJson = False,
) -> None:
    """Learn from the cases of a cross-validation what a usual case is like, and when a result is poor.

    Every case is segmented by the model that did not see it, as it is and with its image spoiled (noise, blur, ghosts,
    motion, shading, contrast, voids, cropping, wrong voxel sizes, wrong orientation), and measured against its truth.
    What is learnt goes into RUN/quality.json, and `segpipe export RUN` takes it into the bundle: `segpipe predict` then
    says of each case whether it is ok, to be looked at, or held. It takes 8 patients to say what is usual, and 30 for
    bounds of Dice and volume.

    Ctrl-C loses nothing: the same command goes on.

    Example: segpipe quality fit runs/liver_folds --spoil 4
    """
    console = Console("quality", as_json=json)
    quiet_libraries()
    from segpipe.quality import RUN_QUALITY
    from segpipe.studies import fit_quality

    with console.progress() as bar:
        task = bar.add_task("images", total=None)
        model = fit_quality(
            run,
            data=data,
            spoil=spoil,
            level=level,
            seed=seed,
            threads=threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    known = model.patients_known
    rows = [("patients", model.patients if known else "unknown"), ("cases", model.cases)]
    rows += [(name.replace("_", " "), value) for name, value in model.tested.items()]
    unit, who = "patients" if known else "cases", of_patients(model.patients, known)
    console.table(f"What it does on {unit} that it was not fitted to", ["what", "value"], rows)
    if not model.tested:
        console.say(f"{who}: enough to say what is usual, too few for bounds, which take 30")
    elif unbounded := [name for name, label in model.labels.items() if label.dice is None]:
        console.say(f"too few {unit} for bounds at a level of {model.level:g}: {', '.join(unbounded)}")
    if model.patients < PATIENTS_OF_A_P_VALUE:
        share = f"about one usual case in {model.patients + 1}"
        console.say(f"{who}: a case farther than each of them is to be looked at, {share}")
    console.say(f"{run / RUN_QUALITY}: `segpipe export {quoted(run)} BUNDLE` takes it into the bundle")
    console.document(
        action="fit",
        file=str(run / RUN_QUALITY),
        patients=model.patients,
        patients_known=known,
        cases=model.cases,
        level=model.level,
        tested=model.tested,
        rules=model.rules,
    )
