"""segpipe demo: the whole way once, on generated data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console
from segpipe.errors import SegpipeError

CASES, EPOCHS = 24, 30
QUICK_CASES, QUICK_EPOCHS, QUICK_COARSENESS = 10, 15, 2.0
MOST_THREADS = 4  # the demo's volumes keep no more busy
LEAST_AGREEMENT = 0.9999  # of voxels; rounding may turn a few where two labels score alike


def command(
    out: Annotated[Path, typer.Argument(help="Folder for everything that the demo makes.")] = Path("demo_out"),
    cases: Annotated[
        int | None, typer.Option(help=f"Generated cases, at least 8, a quarter for test [default: {CASES}].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help=f"Epochs [default: {EPOCHS}].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and the training.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Coarse volumes and few epochs: shows the steps, learns little.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an older demo made in the folder.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Go the whole way once: generated scans, a trained network, a bundle, and a page about it.

    Needs no data and some minutes on two cores. Every step is a command that you could type yourself;
    each is printed before it runs: check, plan, train, export, predict, evaluate, and at last stock MONAI on the
    same bundle, whose label maps are compared with ours. Then open OUT/index.html.

    Example: segpipe demo my_demo
    """
    from segpipe.cli.app import run
    from segpipe.cli.demo import Settings, demo_manifest, prepare, read_outcome, run_python, run_steps, write_demo_page
    from segpipe.common.processes import usable_cores

    console = Console("demo", as_json=json)
    settings = Settings(
        out=out,
        cases=(QUICK_CASES if quick else CASES) if cases is None else cases,
        epochs=(QUICK_EPOCHS if quick else EPOCHS) if epochs is None else epochs,
        seed=seed,
        threads=min(MOST_THREADS, usable_cores()),
        coarseness=QUICK_COARSENESS if quick else 1.0,
    )
    manifest = demo_manifest(settings.cases, settings.seed)  # refuses before anything is written
    prepare(out, overwrite)
    steps = run_steps(settings, manifest, console, run, run_python)
    outcome = read_outcome(out, manifest)
    write_demo_page(out / "index.html", settings, outcome, steps)

    if outcome.agreement < LEAST_AGREEMENT:
        raise SegpipeError(
            "stock MONAI and segpipe do not give the same label maps",
            found=f"{outcome.agreement:.3%} of voxels equal",
            expected=f"at least {LEAST_AGREEMENT:.2%}",
        )

    seconds = round(sum(step.seconds for step in steps))
    rows: list[tuple[str, str | int]] = [
        ("mean Dice on the test cases", f"{outcome.mean_dice or 0:.3f}"),
        ("of a guess that looks at no image", f"{outcome.guess_dice:.3f}"),
        ("voxels equal in stock MONAI and segpipe", f"{outcome.agreement:.3%}"),
        ("seconds for all steps", seconds),
    ]
    console.say()
    console.table("Demo", ["what", "figure"], rows)
    console.say(f"Open {out / 'index.html'}")
    console.document(
        page=str(out / "index.html"),
        mean_dice=outcome.mean_dice,
        guess_dice=outcome.guess_dice,
        agreement=outcome.agreement,
        seconds=seconds,
        steps=[{"command": step.command, "seconds": round(step.seconds, 1)} for step in steps],
    )
