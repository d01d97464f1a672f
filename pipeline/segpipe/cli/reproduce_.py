"""segpipe reproduce: a bundle's weights, trained again from its own record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segpipe.cli.shared_options import Allow, AllowFile, AsJson, BundlePath, RunUnvetted, allowed_names
from segpipe.common.console import Console, Interrupted, quiet_libraries
from segpipe.errors import OK, REFUSED

HEAD = ("schema_version", "command")  # of every document, which the console adds itself


def command(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="Folder of the data set that it was trained on.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run folder [default: NAME-reproduced, here]; the same command goes on in it.")
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(help="Bundle that its training began with, or a folder that holds it: found by its weights."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check bundle, data and environment, and train nothing.")
    ] = False,
    allow: Allow = None,
    allow_file: AllowFile = None,
    run_unvetted_code: RunUnvetted = False,
    json: AsJson = False,
) -> int:
    """Train a bundle's weights again from its own record, and say whether they are the same.

    The bundle is vetted first. The files that the training reads are compared with the hashes in the bundle's manifest;
    missing and changed ones are named. Then its config is trained with the recorded seed, threads and workers; the
    members of an ensemble one after the other. With the recorded versions and processor the weights are bit-identical;
    elsewhere the difference in validation Dice is judged by the recorded spread over seeds. A training that began with
    another bundle needs that one as --parent. Exit code 0: reproduced. 5:
    not, or the bundle was refused.

    Example: segpipe reproduce bundles/hippocampus_mri --data Task04_Hippocampus --out runs/again
    """
    console = Console("reproduce", as_json=json)
    quiet_libraries()
    from segpipe.bundle import TrustPolicy, bundle_folder, require_vetted
    from segpipe.studies import check_record, read_recorded, report_head, reproduce

    policy = TrustPolicy(allowed_names(allow, allow_file), run_unvetted_code)
    with bundle_folder(bundle) as root:
        require_vetted(root, policy)
        recorded = read_recorded(root, changed_too=run_unvetted_code).with_parent(parent, policy)
        with console.progress() as bar:
            task = bar.add_task("checking the data", total=None)
            checked = check_record(recorded, data, lambda total: bar.update(task, total=total, advance=1))
        for note in checked.notes:
            console.note(note)
        if dry_run:
            files = checked.data["files"]
            same = files - checked.data["without_hash"]
            console.say(f"{same} of {files} files are as recorded, nothing was trained")
            console.document(**report_head(recorded, checked))
            return OK
        out = out or run_folder(bundle)
        try:
            report = reproduce(recorded, checked, out, data)
        except KeyboardInterrupt as interruption:
            if not any(out.glob(run) for run in ("run.json", "fold_*/run.json")):
                raise
            raise Interrupted("the same command goes on from here") from interruption
    _show(console, report)
    console.say(f"run folder: {out}")
    console.document(run=str(out), **{name: value for name, value in report.items() if name not in HEAD})
    return OK if report["reproduced"] else REFUSED


def run_folder(bundle: Path) -> Path:
    """Return where a bundle is trained again where nobody said: beside nothing else that is called as it.

    >>> run_folder(Path("/bundles/liver-1.2")), run_folder(Path("/bundles/liver-1.2.zip"))
    (PosixPath('liver-1.2-reproduced'), PosixPath('liver-1.2-reproduced'))
    """
    path = bundle.resolve()
    return Path(f"{path.name[: -len('.zip')] if path.name.lower().endswith('.zip') else path.name}-reproduced")


def _show(console: Console, report: dict[str, Any]) -> None:
    from segpipe.studies import VERDICTS

    weights, validation = report["weights"], report["validation"]
    sides = ("recorded", "here")
    best = [validation[side] or {} for side in sides]
    rows = [
        ("weights (sha256)", *(weights["sha256"][side][:16] for side in sides)),
        ("best validation Dice", *(f"{epoch['val_mean_dice']:.4f}" if epoch else None for epoch in best)),
        ("in epoch", *(epoch.get("epoch") for epoch in best)),
        *((part["what"], part["recorded"], part["here"]) for part in report["environment"]["differences"]),
    ]
    console.table("Reproduction", ["what", *sides], rows)
    if members := report.get("members"):
        cells = [(each["folder"], *(each["weights"]["sha256"][side][:16] for side in sides)) for each in members]
        rows = [(*row, each["verdict"]) for row, each in zip(cells, members, strict=True)]
        console.table("Members", ["run", *sides, "verdict"], rows)
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
    console.say(VERDICTS[report["verdict"]])
