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
        str | None, typer.Option(help="decathlon, nnunet, folders, slices or dicom. [default: detected]")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, with --labels.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label maps, with --images.")] = None,
    label_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of label 1, then of 2, ... (two folders, slices).", show_default=False),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="CT, MRI, ... once for each channel. DICOM: only these.", show_default=False),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(help="Pattern of TIFF or PNG slices, e.g. {patient}/{slice}.png; with --masks."),
    ] = None,
    masks: Annotated[str | None, typer.Option(help="Pattern of their masks.")] = None,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Voxel along columns, rows, slices, in mm (slices). [default: 1 1 1, assumed]"),
    ] = None,
    converted: Annotated[
        Path | None,
        typer.Option(
            help="Folder for NIfTI files made of slices or DICOM. [default: SOURCE_nifti, or a folder beside -o]"
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out volumes that cannot be used (slices, DICOM).")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="DICOM: which regions or segments are a label: PATTERN=VALUE:NAME. May be repeated.",
            show_default=False,
        ),
    ] = None,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="DICOM: list the names of regions and segments, and end.")
    ] = False,
    overlap: Annotated[
        str, typer.Option(help="DICOM: voxels in two labels: refuse, or keep the first or last --label.")
    ] = "refuse",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="DICOM: a case without one of the labels has it nowhere.")
    ] = False,
    unlabelled: Annotated[
        str, typer.Option(help="DICOM: series without labels: skip, or include as test cases.")
    ] = "skip",
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
    r"""Build a manifest of a Decathlon or nnU-Net data set, of two folders, of slices, or of DICOM series with labels.

    The manifest names every case, its files (relative to the data folder), patient, labels, modality, licence
    and hashes; every other command starts from it. NIfTI files are neither changed nor copied; TIFF and PNG slices,
    and DICOM series with the SEG or RTSTRUCT that refer to them, become NIfTI volumes in a folder of their own.
    A manifest that is there already, perhaps with a split, is kept unless --overwrite is given.

    Example: segpipe import Task04_Hippocampus --patient-rule pairs

    Example: segpipe import --images scans --labels masks --modality CT --label-name liver -o manifest.json

    Example: segpipe import kaggle_3m -o lgg/manifest.json

    Example: segpipe import dicom --label 'GTV*=1:tumour' -o manifest.json
    """
    from pipeline.cli import converting
    from pipeline.importers import find_stacks, to_manifest
    from pipeline.manifest import save_manifest

    console = Console("import", as_json=json)
    kind = _layout(source, layout, images, labels, slices, masks)
    for_dicom = label or show_names or allow_missing or (overlap, unlabelled) != ("refuse", "skip")
    _require_fitting(kind, spacing, converted, skip_bad, for_dicom)
    if unlabelled not in ("skip", "include"):
        raise UsageError(
            f"no such way with series without labels: {unlabelled!r}", expected="skip or include"
        )
    if source is not None and kind == "dicom":
        tree = converting.find_series(console, source, modality or [])
        if show_names:
            return converting.show_names(console, tree)
        rules = converting.rules_of(console, tree, label or [], label_name or [])
        place = converting.place_of(source, output, converted)
        path = _new(place.manifest, overwrite)
        found = converting.convert_dicom(
            console, place, tree, rules, overlap, allow_missing, unlabelled == "include", skip_bad
        )
    elif source is not None and kind == "slices":
        stacks = find_stacks(source, slices, masks)
        place = converting.place_of(source, output, converted)
        path = _new(place.manifest, overwrite)
        found = converting.convert_slices(console, place, stacks, spacing, label_name or [], skip_bad)
        found = _with_modality(found, modality or [])
    else:
        found = _find(console, source, kind, images, labels, label_name or [], modality or [])
        path = _new(output or found.root / "manifest.json", overwrite)
    about = {"name": name, "licence": licence, "source": origin}
    manifest = to_manifest(found, patient_rule, pseudonymise=pseudonymise, about=about)
    if hashes:
        _hash(console, manifest, found.root)
    save_manifest(manifest, path)
    _report(console, manifest, path, found.root)


def _new(path: Path, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise UsageError(
            "there is a manifest already",
            path=path,
            hint="choose another file with -o, or replace it and its split with --overwrite",
        )
    return path


def _layout(
    source: Path | None,
    layout: str | None,
    images: Path | None,
    labels: Path | None,
    slices: str | None,
    masks: str | None,
) -> str | None:
    """The layout that is named, else the one that the options mean, else the one that is found."""
    from pipeline.importers import detect_layout

    if slices is not None or masks is not None:
        if source is None or layout not in (None, "slices"):
            raise UsageError("--slices and --masks go with the folder of the slices, without another layout")
        return "slices"
    if source is None or layout is not None or images is not None or labels is not None:
        if source is None and layout in ("slices", "dicom"):
            raise UsageError(f"which folder holds the {layout}?", expected="segpipe import FOLDER")
        return layout
    return detect_layout(source)


def _require_fitting(
    kind: str | None, spacing: object, converted: Path | None, skip_bad: bool, for_dicom: object
) -> None:
    """Refuse options that the layout has no use for."""
    if kind not in ("slices", "dicom") and (converted or skip_bad):
        raise UsageError("--converted and --skip-bad go with slices and DICOM")
    if kind != "slices" and spacing:
        raise UsageError("--spacing goes with slices")
    if kind != "dicom" and for_dicom:
        raise UsageError("--label, --show-names, --overlap, --allow-missing and --unlabelled go with DICOM")


def _with_modality(found: FoundDataset, modality: list[str]) -> FoundDataset:
    from dataclasses import replace

    if not modality:
        return found
    return replace(found, modality={str(index): word for index, word in enumerate(modality)})


def _find(
    console: Console,
    source: Path | None,
    layout: str | None,
    images: Path | None,
    labels: Path | None,
    label_name: list[str],
    modality: list[str],
) -> FoundDataset:
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
    return _with_modality(find_dataset(source, layout), modality)


def _hash(console: Console, manifest: Manifest, root: Path) -> None:
    from pipeline.importers import add_hashes

    with console.progress() as bar:
        task = bar.add_task("hashing", total=sum(len(case.paths) for case in manifest.cases()))
        add_hashes(manifest, root, lambda: bar.advance(task))


def _report(console: Console, manifest: Manifest, path: Path, root: Path) -> None:
    elsewhere = path.resolve().parent != root.resolve()
    known = manifest.patient_rule or any(case.patient_id for case in manifest.cases())
    patients = len({case.group for case in manifest.cases()}) if known else None
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
