"""``segpipe import``: a data set in a foreign layout becomes a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import Console
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.importers import FoundDataset
    from pipeline.manifest import Manifest


def command(
    source: Annotated[
        Path | None, typer.Argument(help="Folder of the data set, or its dataset.json.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Manifest to write. [default: manifest.json in the data]"),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="decathlon, nnunet or folders. [default: detected]")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, with --labels.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label maps, with --images.")] = None,
    label_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of label 1, then of 2, ... (two folders).", show_default=False),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="CT, MRI, ... once for each channel.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Where the data comes from.")] = None,
    patient_rule: Annotated[
        str,
        typer.Option(
            help="Patient from case id: pairs (2k-1 and 2k are one), regex:PATTERN (one group), none."
        ),
    ] = "none",
    hashes: Annotated[
        bool, typer.Option("--hash/--no-hash", help="Record the SHA-256 of every file.")
    ] = True,
    pseudonymise: Annotated[bool, typer.Option(help="Replace case and patient ids by hashes.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a manifest that is there, with its split.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    r"""Build a manifest of a Decathlon or nnU-Net data set, or of two folders.

    The manifest names every case, its files (relative to the data folder), patient, labels, modality, licence
    and hashes; every other command starts from it. No image is changed or copied. A manifest that is there
    already, perhaps with a split, is kept unless --overwrite is given.

    Example: segpipe import Task04_Hippocampus --patient-rule pairs

    Example: segpipe import --images scans --labels masks --modality CT --label-name liver -o manifest.json
    """
    from pipeline.importers import to_manifest
    from pipeline.manifest import save_manifest

    console = Console("import", as_json=json)
    found = _find(console, source, layout, images, labels, label_name or [], modality or [])
    path = output or found.root / "manifest.json"
    if path.exists() and not overwrite:
        raise UsageError(
            "there is a manifest already",
            path=path,
            hint="choose another file with -o, or replace it and its split with --overwrite",
        )
    about = {"name": name, "licence": licence, "source": origin}
    manifest = to_manifest(found, patient_rule, pseudonymise=pseudonymise, about=about)
    if hashes:
        _hash(console, manifest, found.root)
    save_manifest(manifest, path)
    _report(console, manifest, path, found.root)


def _find(
    console: Console,
    source: Path | None,
    layout: str | None,
    images: Path | None,
    labels: Path | None,
    label_name: list[str],
    modality: list[str],
) -> FoundDataset:
    from dataclasses import replace

    from pipeline.importers import find_dataset, read_folders

    if images is not None or labels is not None:
        if images is None or labels is None or source is not None or layout not in (None, "folders"):
            raise UsageError("--images and --labels go together, without another source or layout")
        with console.progress() as bar:
            task = bar.add_task("reading labels", total=None)
            return read_folders(images, labels, label_name, modality, lambda: bar.advance(task))
    if source is None:
        raise UsageError("what is to be imported?", expected="a data set, or --images DIR --labels DIR")
    if label_name:
        raise UsageError(
            "--label-name goes with --images and --labels", hint="the dataset.json names the labels"
        )
    found = find_dataset(source, layout)
    if modality:
        found = replace(found, modality={str(index): word for index, word in enumerate(modality)})
    return found


def _hash(console: Console, manifest: Manifest, root: Path) -> None:
    from pipeline.importers import add_hashes

    with console.progress() as bar:
        task = bar.add_task("hashing", total=sum(len(case.paths) for case in manifest.cases()))
        add_hashes(manifest, root, lambda: bar.advance(task))


def _report(console: Console, manifest: Manifest, path: Path, root: Path) -> None:
    elsewhere = path.resolve().parent != root.resolve()
    patients = len({case.group for case in manifest.cases()}) if manifest.patient_rule else None
    facts = {
        "name": manifest.name,
        "training": len(manifest.training),
        "test": len(manifest.test),
        "patients": patients,
        "labels": manifest.labels,
        "modality": manifest.modality,
    }
    console.table(
        "import",
        ("what", "found"),
        [
            (key, ", ".join(value.values()) if isinstance(value, dict) else value)
            for key, value in facts.items()
        ],
    )
    console.say(f"written: {path}")
    if elsewhere:
        console.say(f"The manifest lies outside the data: later commands need --data {root}")
    if "unknown" in manifest.channels:
        console.say("The modality is not known: name it with --modality CT (or MRI, PT, ...)")
    console.document(manifest=str(path), data=str(root), needs_data_option=elsewhere, **facts)
