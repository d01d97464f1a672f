"""``segpipe import``: a data set in a foreign layout becomes a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import AsJson, Channels, Registered, Repair, SecondaryCapture, given_beside
from segpipe.common.console import Console, quoted
from segpipe.errors import UsageError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection

    from rich.progress import TaskID

    from segpipe.data import Corrected, Imported


def command(
    context: typer.Context,
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
            help="Folder for NIfTI files made of slices or DICOM, and for label maps written anew. "
            "[default: SOURCE_nifti, or a folder beside -o; label maps: labels_for_segpipe in the data]"
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
    label_values: Annotated[
        list[str] | None,
        typer.Option(
            help="NIfTI: which value of label maps becomes which label, e.g. 255=1 or 2=1,5=2; written anew.",
            metavar="VALUE=LABEL",
            show_default=False,
        ),
    ] = None,
    ignore_label: Annotated[
        int | None,
        typer.Option(
            help="NIfTI: value of voxels that nobody annotated, left out of training and measuring, e.g. 255."
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="What to find where regions overlap: a name and the label values it joins, in order.",
            metavar="NAME=1,2,3",
            show_default=False,
        ),
    ] = None,
    annotated: Annotated[
        list[str] | None,
        typer.Option(
            help="Cases, by a pattern of their ids, in which these labels alone were looked for.",
            metavar="PATTERN=LABEL,LABEL",
            show_default=False,
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="DICOM: a case without one of the labels has it nowhere.")
    ] = False,
    unlabelled: Annotated[
        str, typer.Option(help="DICOM: series without labels: skip, or include as test cases.")
    ] = "skip",
    repair: Repair = None,
    secondary_capture: SecondaryCapture = None,
    channel: Channels = None,
    registered: Registered = False,
    pet_unit: Annotated[
        str | None,
        typer.Option(
            help="DICOM PET: SUVbw converts values by the headers; BQML, CNTS or GML is what they have to be stored in."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture of each case of several channels: these beside and over each other."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Where the data comes from.")] = None,
    patient_rule: Annotated[
        str | None,
        typer.Option(
            help="Patient from case id: pairs (2k-1 and 2k are one), regex:PATTERN (one group), none. "
            "[default: none; corrections: as the manifest's own patients]",
            show_default=False,
        ),
    ] = None,
    hashes: Annotated[
        bool,
        typer.Option(
            "--hash/--no-hash",
            help="Record the SHA-256 of every file, by which a model knows again what it was trained on.",
        ),
    ] = True,
    pseudonymise: Annotated[
        bool, typer.Option(help="Replace case and patient ids by keyed hashes; keep no name that the source has.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            help="File of the key of pseudonyms, made where it is not there. "
            "[default: segpipe/pseudonyms.key in ~/.config]",
            show_default=False,
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="Folder of corrected label maps, called by case id: NIfTI or DICOM SEG. SOURCE is the result folder, "
            "or manifest, that they began with."
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Corrections: manifest whose next version they go into. [default: a new one, -o]"),
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="Corrections: pseudonym of who made them, e.g. reader-2.", show_default=False)
    ] = None,
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="Corrections: take those that somebody found right as they began.")
    ] = False,
    selection: Annotated[
        str, typer.Option(help="Corrections: how the cases came to be annotated, chosen or (drawn at) random.")
    ] = "chosen",
    first_stage: Annotated[
        Path | None,
        typer.Option(
            help="Cross-validation of SOURCE, a manifest: its label maps become channels, to train a second stage on."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a manifest that is there, with its split.")
    ] = False,
    json: AsJson = False,
) -> None:
    r"""Build a manifest of a Decathlon or nnU-Net data set, of two folders, of slices, or of DICOM series with labels.

    The manifest names every case, its files (relative to the data folder), patient, labels, modality, licence
    and hashes; every other command starts from it. NIfTI files are not changed; label maps that have other
    values or axes than they should are written anew. TIFF and PNG slices, and DICOM series with the SEG or RTSTRUCT
    that refer to them, become NIfTI volumes in a folder of their own.
    A manifest that is there already, perhaps with a split, is kept unless --overwrite is given.
    Label maps of a result folder that somebody corrected come back with --corrections: checked against their images,
    and as cases to train on, never to measure, of the manifest's next version.

    Example: segpipe import Task04_Hippocampus --patient-rule pairs

    Example: segpipe import --images scans --labels masks --modality CT --label-name liver -o manifest.json

    Example: segpipe import --images scans --labels masks --label-values 255=1 -o manifest.json

    Example: segpipe import --images scans --labels masks --ignore-label 255 --region tumour=1,2 --region core=2

    Example: segpipe import kaggle_3m -o lgg/manifest.json

    Example: segpipe import dicom --label 'GTV*=1:tumour' -o manifest.json

    Example: segpipe import dicom --channel CT --channel PET --pet-unit SUVbw --label 'GTV*=1:tumour' -o manifest.json

    Example: segpipe import liver/manifest.json --first-stage runs/coarse -o liver/second_stage.json

    Example: segpipe import predictions --corrections corrected --annotator reader-2 --into manifest.json
    """
    from segpipe.data import NOT_HASHED, LabelsNotChosenError, dicom_label_names, import_dataset

    console = Console("import", as_json=json)
    if corrections is not None:
        source = _require_obeyed(
            context,
            source,
            "--corrections goes with a result folder or a manifest",
            "segpipe import RESULTS --corrections FOLDER, with --into, -o, --annotator, --confirmed, --selection, "
            "--skip-bad, --modality, --name, --patient-rule, --key and --overwrite",
            {"corrections", "into", "output", "annotator", "confirmed", "selection", "skip_bad", "modality", "name"}
            | {"patient_rule", "key", "overwrite"},
        )
        _correct(
            console,
            source,
            corrections,
            into=into,
            output=output,
            annotator=annotator,
            confirmed=confirmed,
            selection=selection,
            skip_bad=skip_bad,
            modality=modality or [],
            name=name,
            patient_rule=patient_rule,
            key=key,
            overwrite=overwrite,
        )
        return
    if into is not None or annotator is not None or confirmed or selection != "chosen":
        raise UsageError("--into, --annotator, --confirmed and --selection go with --corrections")
    if first_stage is not None:
        source = _require_obeyed(
            context,
            source,
            "--first-stage goes with a manifest",
            "segpipe import MANIFEST --first-stage RUN, with -o and --overwrite",
            {"first_stage", "output", "overwrite"},
        )
        _second_stage(console, source, first_stage, output, overwrite)
        return
    with console.progress() as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        if show_names:
            if source is None or images or labels or slices or masks or spacing:
                raise UsageError("--show-names goes with a folder of DICOM files alone")
            names = dicom_label_names(source, layout=layout, modality=modality or [], progress=progress)
        else:
            try:
                imported = import_dataset(
                    source,
                    output=output,
                    layout=layout,
                    images=images,
                    labels=labels,
                    label_names=label_name or [],
                    modality=modality or [],
                    slices=slices,
                    masks=masks,
                    spacing_mm=spacing,
                    converted=converted,
                    skip_bad=skip_bad,
                    label_rules=label or [],
                    overlap=overlap,
                    label_values=label_values or [],
                    ignore_label=ignore_label,
                    regions=region or [],
                    annotated=annotated or [],
                    allow_missing=allow_missing,
                    unlabelled=unlabelled,
                    repair=repair or (),
                    secondary_capture=secondary_capture or (),
                    channel=channel or (),
                    registered=registered,
                    pet_unit=pet_unit,
                    name=name,
                    licence=licence,
                    origin=origin,
                    patient_rule=patient_rule or "none",
                    hashes=hashes,
                    pseudonymise=pseudonymise,
                    key=key,
                    overwrite=overwrite,
                    progress=progress,
                    note=console.note,
                )
                if not hashes:
                    console.note(NOT_HASHED)
                if pictures is not None:
                    _draw(imported, pictures, progress)
            except LabelsNotChosenError as error:
                if sys.stdout.isatty():
                    _print_names(console, error.names)
                raise
    if show_names:
        _print_names(console, names)
    else:
        _report(console, imported)


def _require_obeyed(
    context: typer.Context, source: Path | None, message: str, expected: str, obeyed: Collection[str]
) -> Path:
    """Return the source; refuse options beside it that would be passed over."""
    others = given_beside(context, {"source", "json", *obeyed})
    if source is None or others:
        raise UsageError(message, found=", ".join(others) or "no source", expected=expected)
    return source


def _correct(console: Console, source: Path, folder: Path, **options: Any) -> None:
    """Take corrected label maps into a manifest, and say what became of each."""
    from segpipe.data import import_corrections

    with console.progress() as bar:
        task = bar.add_task("corrections", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        corrected = import_corrections(source, folder, **options, progress=progress, note=console.note)
    for words, ids in (("as they began, so left out", corrected.unchanged), ("taken before", corrected.known)):
        if ids:
            console.say(f"{words}: {', '.join(ids)}")
    for id, why in corrected.left_out.items():
        console.say(f"left out: {id}: {why}")
    console.say(f"corrected: {', '.join(corrected.taken)}")
    _report(console, corrected)


def _second_stage(console: Console, source: Path, run: Path, output: Path | None, overwrite: bool) -> None:
    """Make channels of the label maps of a first stage."""
    from segpipe.data import import_first_stage

    with console.progress() as bar:
        task = bar.add_task("masks", total=None)
        _report(
            console,
            import_first_stage(
                source,
                run,
                output=output,
                overwrite=overwrite,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            ),
        )


def _draw(imported: Imported, folder: Path, progress: Callable[[str, int, int | None], None]) -> None:
    """Draw the channels of each case."""
    from segpipe.reporting import draw_channels

    names = imported.manifest.channels
    cases = imported.manifest.cases() if len(names) > 1 else []
    if not cases:
        raise UsageError("--pictures shows channels over each other", found="one channel a case", hint="leave it out")
    for done, case in enumerate(cases, 1):
        label = None if case.label is None else imported.root / case.label
        draw_channels([imported.root / image for image in case.images], label, names, folder / f"{case.id}.png")
        progress("drawing", done, len(cases))


def _print_names(console: Console, names: Counter[str]) -> None:
    """Print the names that somebody gave to regions and segments: for the eyes of who asked, and for nothing else."""
    console.table("regions and segments", ("name", "label files"), sorted(names.items()))


def _in_words(named: dict[str, Any]) -> str:
    return ", ".join(each if isinstance(each, str) else f"{name} {each}" for name, each in named.items())


def _report(console: Console, imported: Imported | Corrected) -> None:
    from segpipe.data import Imported

    manifest, path, root = imported.manifest, imported.path, imported.root
    elsewhere = path.resolve().parent != root.resolve()
    patients = len({case.group for case in manifest.cases()}) if manifest.knows_patients else None
    facts: dict[str, Any] = {
        "name": manifest.name,
        "training": len(manifest.training),
        "test": len(manifest.test),
        "patients": patients,
        "labels": manifest.labels,
        "modality": manifest.modality,
        **({} if manifest.ignore_label is None else {"ignore_label": manifest.ignore_label}),
        **({} if manifest.regions is None else {"regions": manifest.regions}),
    }
    console.table(
        "import",
        ("what", "found"),
        [(key, _in_words(value) if isinstance(value, dict) else value) for key, value in facts.items()],
    )
    console.say(f"written: {path}")
    if elsewhere:
        console.say(f"The manifest lies outside the data: later commands need --data {quoted(root)}")
    if "unknown" in manifest.channels:
        console.say("The modality is not known: name it with --modality CT (or MRI, PT, ...)")
    if not isinstance(imported, Imported):
        kinds = ("taken", "unchanged", "known", "left_out")
        facts["corrections"] = {kind: getattr(imported, kind) for kind in kinds}
    console.document(manifest=str(path), data=str(root), needs_data_option=elsewhere, **facts)
