"""segpipe reproduce: a bundle's weights, trained again from its own record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import Allow, RunUnvetted
from segpipe.common.console import SCHEMA_VERSION, Console
from segpipe.errors import OK

if TYPE_CHECKING:
    from segpipe.studies import Difference, Outcome, Recorded


def command(
    bundle: Annotated[Path, typer.Argument(help="Bundle: a folder, or one zip file.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder of the data set that it was trained on.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run folder [default: NAME-reproduced, here]; the same command goes on in it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check bundle, data and environment, and train nothing.")
    ] = False,
    allow: Allow = None,
    run_unvetted_code: RunUnvetted = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Train a bundle's weights again from its own record, and say whether they are the same.

    The bundle is vetted first. The files that the training reads are compared with the hashes in the bundle's manifest;
    missing and changed ones are named. Then its config is trained with the recorded seed, threads and workers. With the
    recorded versions and processor the weights are bit-identical; elsewhere the difference in validation Dice is judged
    by the recorded spread over seeds. Exit code 0: reproduced. 5: not, or the bundle was refused.

    Example: segpipe reproduce bundles/hippocampus_mri --data Task04_Hippocampus --out runs/again
    """
    from segpipe.common.console import quiet_libraries

    console = Console("reproduce", as_json=json)
    quiet_libraries()
    from segpipe.bundle import TrustPolicy, bundle_folder, require_vetted
    from segpipe.studies import read_recorded

    with bundle_folder(bundle) as root:
        require_vetted(root, TrustPolicy(tuple(allow or ()), run_unvetted_code))
        recorded = read_recorded(root, changed_too=run_unvetted_code)
        checked, differing = _check(console, recorded, data)
        if dry_run:
            same = checked["files"] - checked["without_hash"]
            console.say(f"{same} of {checked['files']} files are as recorded, nothing was trained")
            console.document(**_head(recorded, checked, differing))
            return OK
        out = out or Path(f"{bundle.resolve().stem}-reproduced")
        return _train(console, recorded, checked, out, data)


def _check(console: Console, recorded: Recorded, data: Path) -> tuple[dict[str, int], list[Difference] | None]:
    """Data and environment against the record, with a note of what is not as it was."""
    from segpipe.common.processes import usable_cores
    from segpipe.common.provenance import environment
    from segpipe.data import data_root
    from segpipe.studies import check_data, differences, trained_on

    cases = trained_on(recorded.manifest, recorded.config["fold"])
    with console.progress() as bar:
        task = bar.add_task("checking the data", total=len(cases))
        checked = check_data(cases, data_root(recorded.manifest_file, data), lambda: bar.advance(task))
    if checked["without_hash"]:
        console.note(f"{checked['without_hash']} of {checked['files']} files have no recorded hash: taken as they are")
    if not recorded.finished:
        console.note("the recorded training did not finish: this one goes on to its end")
    if usable_cores() < recorded.config["threads"]:
        console.note(f"recorded with {recorded.config['threads']} threads, which is more than the cores here")
    differing = differences(recorded.environment, environment(), recorded.on_gpu)
    if differing is None:
        console.note("the bundle does not record where it was trained: a difference could not be explained")
    for each in differing or []:
        console.note(f"{each.what}: recorded {each.recorded}, here {each.here}")
    if differing:
        console.note("so the weights may differ")
    return checked, differing


def _train(console: Console, recorded: Recorded, checked: dict[str, int], out: Path, data: Path) -> int:
    from segpipe.bundle import read_state
    from segpipe.common.files import write_json
    from segpipe.studies import REPORT, differences, judge, train_again

    try:
        record = train_again(recorded, out, data)
    except KeyboardInterrupt:
        console.note("interrupted; the same command goes on from here")
        raise
    differing = differences(recorded.environment, record["environment"], recorded.on_gpu)  # of when it was trained
    outcome = judge(recorded, read_state(out / "best.pt"), record.get("best"), differing)
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": console.command,
        **_head(recorded, checked, differing),
        "seconds": round(sum(session["seconds"] for session in record["sessions"]), 1),
        "weights": outcome.weights,
        "validation": outcome.validation,
        "verdict": outcome.verdict,
        "reproduced": outcome.reproduced,
    }
    write_json(out / REPORT, report)
    _tell(console, outcome, differing)
    console.say(f"run folder: {out}")
    console.document(run=str(out), **report)
    return outcome.exit_code


def _head(recorded: Recorded, checked: dict[str, int], differing: list[Difference] | None) -> dict[str, Any]:
    return {
        "bundle": recorded.bundle,
        "training": {name: recorded.config[name] for name in ("seed", "fold", "threads", "num_workers", "max_epochs")},
        "data": checked,
        "environment": {"recorded": differing is not None, "differences": [each.as_dict() for each in differing or []]},
    }


def _tell(console: Console, outcome: Outcome, differing: list[Difference] | None) -> None:
    weights, validation = outcome.weights, outcome.validation
    sides = ("recorded", "here")
    best = [validation[side] or {} for side in sides]
    rows = [
        ("weights (sha256)", *(weights["sha256"][side][:16] for side in sides)),
        ("best validation Dice", *(f"{each['val_mean_dice']:.4f}" if each else None for each in best)),
        ("in epoch", *(each.get("epoch") for each in best)),
        *((each.what, each.recorded, each.here) for each in differing or []),
    ]
    console.table("Reproduction", ["what", *sides], rows)
    if not weights["identical"]:
        largest = weights["max_abs_difference"]
        console.say(
            f"{weights['differing']} of {weights['tensors']} tensors differ, "
            + ("in name, type or shape" if largest is None else f"a weight by {largest:.3g} at most")
        )
    spread = validation["spread"]
    if spread and spread["sd"] is not None:
        console.say(
            f"seed-to-seed spread of {spread['n']} runs: mean {spread['mean']:.4f}, standard deviation "
            f"{spread['sd']:.4f}, range {spread['min']:.4f} to {spread['max']:.4f}"
        )
    console.say(outcome.words)
