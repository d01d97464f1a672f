"""``segpipe split``: a test set and folds by patient."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder
from segpipe.common.console import Console

if TYPE_CHECKING:
    from segpipe.data import Manifest

COUNTED = "test cases of this manifest have been measured before, models: {}; with a new test set that count goes on"


def command(
    manifest: Annotated[Path, typer.Argument(help="Manifest to split.", show_default=False)],
    test: Annotated[
        str, typer.Option(help="Test set: fraction (0.25) or number (45) of the labelled cases, or keep.")
    ] = "0.25",
    folds: Annotated[int, typer.Option(help="Folds for cross-validation; 0 draws none.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, another draw.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Manifest to write. [default: the same file]")
    ] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Give up the split that the manifest has.")] = False,
    data: DataFolder = None,
    json: AsJson = False,
) -> None:
    """Draw a held-out test set and folds, never tearing a patient apart.

    The draw depends on the seed and the patient ids alone. The test set has at least as many cases as asked
    for, in whole patients; folds are of equal size as far as patients allow. No image is read; label maps are, where
    they are there, to warn of a label that the training of a fold would lack.

    Example: segpipe split manifest.json --test 0.25 --folds 5 --seed 0
    """
    from segpipe.data import carry_readings, data_root, draw_split, load_manifest, patients_note, save_manifest

    console = Console("split", as_json=json)
    split = draw_split(load_manifest(manifest), test, folds, seed, redraw=redraw)
    path = output or manifest
    root = data_root(manifest, data)
    readings = carry_readings(manifest, path)
    save_manifest(split, path)
    parts = [("test", split.test)]
    parts += [(f"fold {fold}", [case for case in split.training if case.fold == fold]) for fold in split.folds()]
    parts += [] if split.folds() else [("training", split.training)]
    known = split.knows_patients
    rows = [(name, len(cases), len({case.group for case in cases}) if known else "unknown") for name, cases in parts]
    console.table("split", ("part", "cases", "patients"), rows)
    doubt = patients_note(split) if known else None
    notes = [COUNTED.format(readings)] if readings and test != "keep" else []
    notes += [*([doubt] if doubt else []), *_lacking(split, root, console)]
    for note in notes:
        console.note(note)
    console.say(f"written: {path}")
    if path.resolve().parent != manifest.resolve().parent:
        console.say("The manifest's paths still start from the data folder: later commands may need --data")
    console.document(
        manifest=str(path),
        test=len(split.test),
        training=len(split.training),
        folds=split.fold_sizes(),
        split_rule=split.split_rule,
        notes=notes,
    )


def _lacking(split: Manifest, root: Path, console: Console) -> list[str]:
    """Return what is to be said of labels that a fold's training lacks, as far as the label maps are there."""
    from segpipe.data import labels_not_trained, labels_present, not_trained_words

    if not all((root / str(case.label)).is_file() for case in split.training):
        return [
            "the label maps are not there (--data), so whether the training of each fold has all labels is not known"
        ]
    with console.progress() as bar:
        task = bar.add_task("label maps", total=None)
        present = labels_present(split, root, lambda done, total: bar.update(task, completed=done, total=total))
    return [not_trained_words(split, *each) for each in labels_not_trained(split, present)]
