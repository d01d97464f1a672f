"""What `segpipe import` does with slices and with DICOM: both become NIfTI files in a folder of their own.

``segpipe import``: a data set in a foreign layout becomes a manifest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.common.console import Console
from segpipe.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections import Counter

    from segpipe.data import DicomTree, Found, FoundDataset, LabelRules, Manifest


DICOM_WORDS = {"MRI": "MR", "PET": "PT"}


@dataclass(frozen=True)
class Place:
    """Where the results go: the manifest, the NIfTI files, and the folder that the manifest's paths start from."""

    manifest: Path
    folder: Path
    root: Path


def place_of(source: Path, output: Path | None, converted: Path | None) -> Place:
    """NIfTI files lie in ``converted``, else beside the manifest, else beside the source with the manifest in it."""
    folder = converted or _beside(source, output)
    manifest = output or folder / "manifest.json"
    folder, beside = folder.resolve(), manifest.resolve().parent
    return Place(manifest, folder, beside if folder.is_relative_to(beside) else folder)


def _beside(source: Path, output: Path | None) -> Path:
    if output is not None:
        return output.parent / f"{output.stem}_nifti"
    source = source.resolve()
    return source.with_name(f"{source.name}_nifti")


def convert_slices(
    console: Console,
    place: Place,
    stacks: Found,
    spacing: tuple[float, float, float] | None,
    label_name: Sequence[str],
    skip_bad: bool,
) -> FoundDataset:
    """Make volumes of stacks of slices."""
    from segpipe.data import read_slices

    if spacing is not None and not all(0 < edge < 1000 for edge in spacing):
        raise UsageError("no such spacing", found=spacing, expected="three lengths in mm above 0")
    with console.progress() as bar:
        task = bar.add_task("converting", total=len(stacks.stacks))
        found, left_out = read_slices(
            stacks,
            place.root,
            place.folder,
            spacing_mm=spacing or (1.0, 1.0, 1.0),
            label_names=label_name,
            skip_bad=skip_bad,
            assumed=spacing is None,
            advance=lambda: bar.advance(task),
        )
    console.note(found.about["description"])
    _tell_left_out(console, left_out)
    if stacks.passed_over:
        console.note(f"passed over: {len(stacks.passed_over)} images, e.g. {stacks.passed_over[0]}")
    return _as_listed(found, stacks, label_name)


def _as_listed(found: FoundDataset, stacks: Found, label_name: Sequence[str]) -> FoundDataset:
    """What the manifest that comes with the package says of the LGG data set, where it is that."""
    from segpipe.data import load_manifest, shipped_manifest

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


def find_series(console: Console, source: Path, modality: Sequence[str]) -> DicomTree:
    """The series of a tree of DICOM files, with what labels them."""
    from segpipe.data import find_labelled

    words = [DICOM_WORDS.get(word.upper(), word.upper()) for word in modality]
    with console.progress() as bar:
        task = bar.add_task("reading headers", total=None)
        return find_labelled(source, words, lambda done, total: bar.update(task, completed=done, total=total))


def print_names(console: Console, tree: DicomTree) -> None:
    """The names that somebody gave to regions and segments: for the eyes of who asked, and for nothing else."""
    names = sorted(tree.names().items())
    console.table("regions and segments", ("name", "label files"), names)


def rules_of(console: Console, tree: DicomTree, label: Sequence[str], label_name: Sequence[str]) -> LabelRules:
    """The user's rules; where everything that is labelled has one name, it needs none.

    Raises:
        UsageError: several names and no rule, or a rule that fits none.
        DataError: there are no labels.
    """
    from segpipe.data import LabelRules, label_rules

    names = tree.names()
    if not names:
        faults = "".join(f"; {file}: {fault}" for file, fault in tree.faults.items())
        raise DataError(
            "no DICOM SEG or RTSTRUCT labels these series",
            path=tree.root,
            found=f"{len(tree.labelled) + len(tree.unlabelled)} series{faults}",
            expected="series and the labels that refer to them, in one tree",
        )
    if label:
        rules = label_rules(label)
        unused = rules.unused(names)
        if unused:
            raise UsageError(
                "no region or segment has such a name", found=", ".join(unused), hint="--show-names lists the names"
            )
        others = [name for name in names if rules.value_of(name) is None]
        if others:
            console.note(f"left out: {len(others)} names that fit no --label (--show-names lists all)")
        return rules
    if len({name.casefold() for name in names}) == 1 and len(label_name) <= 1:
        only = next(iter(names))
        return LabelRules(((only, 1),), {1: label_name[0] if label_name else "label_1"})
    raise _which_labels(console, tree, names)


def _which_labels(console: Console, tree: DicomTree, names: Counter[str]) -> UsageError:
    if sys.stdout.isatty():
        print_names(console, tree)
    return UsageError(
        "which regions or segments are wanted?",
        found=f"{len(names)} different names",
        expected="--label 'PATTERN=VALUE:NAME', e.g. --label 'GTV*=1:tumour' --label 'node*=2:lymph node'",
        hint="--show-names lists them on this terminal: free text that somebody typed, kept nowhere",
    )


def convert_dicom(
    console: Console,
    place: Place,
    tree: DicomTree,
    rules: LabelRules,
    overlap: str,
    allow_missing: bool,
    unlabelled: bool,
    skip_bad: bool,
) -> FoundDataset:
    """Make volumes and label maps of labelled series."""
    from segpipe.data import Wanted, read_dicom

    if overlap not in ("refuse", "first", "last"):
        raise UsageError(f"no way {overlap!r} to go about overlaps", expected="refuse, first or last")
    wanted = Wanted(rules, overlap, allow_missing, unlabelled, skip_bad)  # type: ignore[arg-type]
    with console.progress() as bar:
        total = len(tree.labelled) + (len(tree.unlabelled) if unlabelled else 0)
        task = bar.add_task("converting", total=total)
        found, left_out, notes = read_dicom(tree, place.root, place.folder, wanted, lambda: bar.advance(task))
    for case, words in notes.items():
        console.note(f"{case}: {'; '.join(words)}")
    _tell_left_out(console, left_out)
    if "mixed" in found.modality.values():
        console.note("the series are of several modalities: --modality CT (or MRI, PT, ...) takes those of one")
    if tree.unlabelled and not unlabelled:
        console.note(f"passed over: {len(tree.unlabelled)} series without labels")
    if tree.elsewhere:
        console.note(f"passed over: {tree.elsewhere} label files of other modalities")
    return found


def _tell_left_out(console: Console, left_out: dict[str, str]) -> None:
    for case, fault in left_out.items():
        console.note(f"left out: {case}: {fault}")


def command(
    source: Annotated[
        Path | None, typer.Argument(help="Folder of the data set, or its dataset.json.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Manifest to write. [default: manifest.json in the data]")
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
        str | None, typer.Option(help="Pattern of TIFF or PNG slices, e.g. {patient}/{slice}.png; with --masks.")
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
        str, typer.Option(help="Patient from case id: pairs (2k-1 and 2k are one), regex:PATTERN (one group), none.")
    ] = "none",
    hashes: Annotated[bool, typer.Option("--hash/--no-hash", help="Record the SHA-256 of every file.")] = True,
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
    from segpipe.data import find_stacks, save_manifest, to_manifest

    console = Console("import", as_json=json)
    kind = _layout(source, layout, images, labels, slices, masks)
    for_dicom = label or show_names or allow_missing or (overlap, unlabelled) != ("refuse", "skip")
    _require_fitting(kind, spacing, converted, skip_bad, for_dicom)
    if unlabelled not in ("skip", "include"):
        raise UsageError(f"no such way with series without labels: {unlabelled!r}", expected="skip or include")
    if source is not None and kind == "dicom":
        tree = find_series(console, source, modality or [])
        if show_names:
            return print_names(console, tree)
        rules = rules_of(console, tree, label or [], label_name or [])
        place = place_of(source, output, converted)
        path = _new(place.manifest, overwrite)
        found = convert_dicom(console, place, tree, rules, overlap, allow_missing, unlabelled == "include", skip_bad)
    elif source is not None and kind == "slices":
        stacks = find_stacks(source, slices, masks)
        place = place_of(source, output, converted)
        path = _new(place.manifest, overwrite)
        found = convert_slices(console, place, stacks, spacing, label_name or [], skip_bad)
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
    from segpipe.data import detect_layout

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
    from segpipe.data import find_dataset, read_folders

    if images is not None or labels is not None:
        if images is None or labels is None or source is not None or layout not in (None, "folders"):
            raise UsageError("--images and --labels go together, without another source or layout")
        with console.progress() as bar:
            task = bar.add_task("reading labels", total=None)
            return read_folders(images, labels, label_name, modality, lambda: bar.advance(task))
    if source is None:
        raise UsageError("what is to be imported?", expected="a data set, or --images DIR --labels DIR")
    if label_name:
        raise UsageError("--label-name goes with --images and --labels", hint="the dataset.json names the labels")
    return _with_modality(find_dataset(source, layout), modality)


def _hash(console: Console, manifest: Manifest, root: Path) -> None:
    from segpipe.data import add_hashes

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
        [(key, ", ".join(value.values()) if isinstance(value, dict) else value) for key, value in facts.items()],
    )
    console.say(f"written: {path}")
    if elsewhere:
        console.say(f"The manifest lies outside the data: later commands need --data {root}")
    if "unknown" in manifest.channels:
        console.say("The modality is not known: name it with --modality CT (or MRI, PT, ...)")
    console.document(manifest=str(path), data=str(root), needs_data_option=elsewhere, **facts)
