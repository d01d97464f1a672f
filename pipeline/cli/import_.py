"""``segpipe import``: a data set in a foreign layout becomes a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import Console
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.importers import FoundDataset
    from pipeline.importers.slices import Found
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
        str | None, typer.Option(help="decathlon, nnunet, folders or slices. [default: detected]")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, with --labels.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label maps, with --images.")] = None,
    label_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of label 1, then of 2, ... (two folders, slices).", show_default=False),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="CT, MRI, ... once for each channel.", show_default=False)
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
            help="Folder for the NIfTI files made of slices. [default: SOURCE_nifti, or a folder beside -o]"
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out volumes that cannot be used (slices).")
    ] = False,
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
    r"""Build a manifest of a Decathlon or nnU-Net data set, of two folders, or of slices beside their masks.

    The manifest names every case, its files (relative to the data folder), patient, labels, modality, licence
    and hashes; every other command starts from it. NIfTI files are neither changed nor copied; TIFF and PNG slices
    become NIfTI volumes in a folder of their own. A manifest that is there already, perhaps with a split, is kept
    unless --overwrite is given.

    Example: segpipe import Task04_Hippocampus --patient-rule pairs

    Example: segpipe import --images scans --labels masks --modality CT --label-name liver -o manifest.json

    Example: segpipe import kaggle_3m -o lgg/manifest.json
    """
    from pipeline.importers import to_manifest
    from pipeline.manifest import save_manifest

    console = Console("import", as_json=json)
    stacks = _slices(source, layout, slices, masks)
    if stacks is not None and source is not None:
        folder = converted or _beside(source, output)
        path = output or folder / "manifest.json"
        _require_new(path, overwrite)
        found = _convert(console, stacks, path, folder, spacing, label_name or [], skip_bad)
        found = _with_modality(_as_listed(found, stacks, label_name or []), modality or [])
    else:
        if spacing or converted or skip_bad:
            raise UsageError("--spacing, --converted and --skip-bad go with slices")
        found = _find(console, source, layout, images, labels, label_name or [], modality or [])
        path = output or found.root / "manifest.json"
        _require_new(path, overwrite)
    about = {"name": name, "licence": licence, "source": origin}
    manifest = to_manifest(found, patient_rule, pseudonymise=pseudonymise, about=about)
    if hashes:
        _hash(console, manifest, found.root)
    save_manifest(manifest, path)
    _report(console, manifest, path, found.root)


def _require_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(
            "there is a manifest already",
            path=path,
            hint="choose another file with -o, or replace it and its split with --overwrite",
        )


def _slices(source: Path | None, layout: str | None, slices: str | None, masks: str | None) -> Found | None:
    """The stacks of a folder of slices; None where it is another layout."""
    from pipeline.importers import detect_layout, find_stacks

    if slices is None and masks is None and layout != "slices":
        detected = source is not None and source.is_dir() and layout is None and detect_layout(source)
        if detected != "slices":
            return None
    if source is None or layout not in (None, "slices"):
        raise UsageError("--slices and --masks go with the folder of the slices, without another layout")
    return find_stacks(source, slices, masks)


def _beside(source: Path, output: Path | None) -> Path:
    if output is not None:
        return output.parent / f"{output.stem}_nifti"
    source = source.resolve()
    return source.with_name(f"{source.name}_nifti")


def _convert(
    console: Console,
    stacks: Found,
    path: Path,
    folder: Path,
    spacing: tuple[float, float, float] | None,
    label_name: list[str],
    skip_bad: bool,
) -> FoundDataset:
    from pipeline.importers import read_slices

    if spacing is not None and not all(0 < edge < 1000 for edge in spacing):
        raise UsageError("no such spacing", found=spacing, expected="three lengths in mm above 0")
    folder, beside = folder.resolve(), path.resolve().parent
    root = beside if folder.is_relative_to(beside) else folder
    with console.progress() as bar:
        task = bar.add_task("converting", total=len(stacks.stacks))
        found, left_out = read_slices(
            stacks,
            root,
            folder,
            spacing_mm=spacing or (1.0, 1.0, 1.0),
            label_names=label_name,
            skip_bad=skip_bad,
            assumed=spacing is None,
            advance=lambda: bar.advance(task),
        )
    console.note(found.about["description"])
    for case, fault in left_out.items():
        console.note(f"left out: {case}: {fault}")
    if stacks.passed_over:
        console.note(f"passed over: {len(stacks.passed_over)} images, e.g. {stacks.passed_over[0]}")
    return found


def _as_listed(found: FoundDataset, stacks: Found, label_name: list[str]) -> FoundDataset:
    """What the manifest that comes with the package says of the LGG data set, where it is that."""
    from dataclasses import replace

    from pipeline.fetch import shipped_manifest
    from pipeline.manifest import load_manifest

    path = shipped_manifest("lgg_mri") if stacks.is_lgg else None
    if path is None:
        return found
    listed = load_manifest(path)
    said = {field: getattr(listed, field) for field in ("name", "reference", "source", "licence")}
    return replace(
        found,
        about={**found.about, **said},
        labels=found.labels if label_name else listed.labels,
        modality=listed.modality if len(found.modality) == listed.n_channels else found.modality,
    )


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
