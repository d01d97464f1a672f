"""Import a data set: read its layout, convert what is not NIfTI, and write the manifest.

The readers of each layout describe what they find as a `SourceDataset`; `to_manifest` makes a manifest of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segpipe.common.console import some_of
from segpipe.common.processes import Progress
from segpipe.data.importers.as_nifti import write_as_nifti
from segpipe.data.importers.dicom_import import LabelledTree, LabelOptions, convert_series, find_labelled
from segpipe.data.importers.folder_pair import folder_pair
from segpipe.data.importers.label_choice import choose_labels
from segpipe.data.importers.label_maps import adapt_labels
from segpipe.data.importers.label_values import ValueRules, parse_annotated, parse_label_values, parse_region
from segpipe.data.importers.layouts import read_folders
from segpipe.data.importers.places import Place, place_of, require_new
from segpipe.data.importers.pseudonym_key import study_key
from segpipe.data.importers.registered_channels import put_on_one_grid
from segpipe.data.importers.slice_stacks import SliceStacks, find_stacks
from segpipe.data.importers.slice_volumes import convert_stacks
from segpipe.data.importers.source_dataset import SourceDataset, with_own_ids
from segpipe.data.importers.to_manifest import add_hashes, detect_layout, find_dataset, to_manifest
from segpipe.data.manifest import Manifest, load_manifest, save_manifest, shipped_manifest
from segpipe.data.splits import require_apart
from segpipe.dicom import ChannelRule, check_repairs, parse_channels, parse_pet_unit
from segpipe.errors import DataError, UsageError

DICOM_MODALITIES = {"MRI": "MR", "PET": "PT"}  # the manifest's word to DICOM's

StageProgress = Callable[[str, int, int], object]
"""Called with the stage, what is done, and of how much."""


@dataclass(frozen=True)
class Imported:
    """A data set that was imported.

    Attributes:
        manifest: its cases, labels and channels.
        path: the manifest's file.
        root: the folder that the manifest's paths start from.
        notes: what was assumed, left out or passed over.
    """

    manifest: Manifest
    path: Path
    root: Path
    notes: list[str] = field(default_factory=list)


def import_dataset(
    source: str | Path | None = None,
    *,
    output: str | Path | None = None,
    layout: str | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    label_names: Sequence[str] = (),
    modality: Sequence[str] = (),
    slices: str | None = None,
    masks: str | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    converted: str | Path | None = None,
    skip_bad: bool = False,
    label_rules: Sequence[str] = (),
    overlap: str = "refuse",
    allow_missing: bool = False,
    unlabelled: str = "skip",
    label_values: Sequence[str] = (),
    ignore_label: int | None = None,
    regions: Sequence[str] = (),
    annotated: Sequence[str] = (),
    repair: str | Sequence[str] = (),
    secondary_capture: Sequence[str] = (),
    channel: Sequence[str] = (),
    registered: bool = False,
    pet_unit: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    origin: str | None = None,
    patient_rule: str = "none",
    hashes: bool = True,
    pseudonymise: bool = False,
    key: str | Path | None = None,
    overwrite: bool = False,
    progress: StageProgress = lambda stage, done, total: None,
    note: Callable[[str], object] = lambda text: None,
) -> Imported:
    """Build the manifest of a data set, as ``segpipe import`` does.

    Args:
        source: folder of the data set, or its dataset.json; None with ``images`` and ``labels``.
        output: manifest to write; None: manifest.json in the data.
        layout: ``decathlon``, ``nnunet``, ``folders``, ``slices`` or ``dicom``; None detects it.
        images, labels: two folders of NIfTI files, matched by name.
        label_names: name of label 1, then of 2, ... (two folders, slices).
        modality: one word a channel; of DICOM series, only those of these modalities.
        slices, masks: patterns of TIFF or PNG slices and of their masks; see `find_stacks`.
        spacing_mm: of a voxel along columns, rows and slices (slices); None assumes 1 mm.
        converted: folder for NIfTI files made of slices or DICOM, and for label maps that are written anew; None:
            ``SOURCE_nifti``, or a folder beside output; for label maps ``labels_for_segpipe`` in the data.
        skip_bad: leave out volumes that cannot be used (slices, DICOM).
        label_rules: which DICOM regions or segments are a label: ``PATTERN=VALUE:NAME``.
        overlap: DICOM voxels in two labels: ``refuse``, or keep the ``first`` or ``last`` rule's.
        allow_missing: a DICOM case without one of the labels has it nowhere.
        unlabelled: DICOM series without labels: ``skip``, or ``include`` as test cases.
        repair: of DICOM: ``tilt``, ``spacing`` or both; what series are resampled to a regular grid for.
        secondary_capture: of DICOM: SeriesInstanceUIDs and case ids of Secondary Captures to take.
        channel: of DICOM: series that are channels of one case, in their order, as of `segpipe.dicom.parse_channels`.
        registered: channels of NIfTI files are registered: those on another grid than the first are resampled to it.
        pet_unit: of DICOM PET: ``SUVbw``, to which values are converted, or the unit that they have to be stored in.
        label_values: which values of NIfTI label maps become another label, as ``255=1``; these are written anew.
        ignore_label: value of NIfTI label maps (behind ``label_values``) of voxels that nobody annotated.
        regions: what is to be found where regions overlap, in order: ``NAME=1,2,3`` with the label values it joins.
        annotated: cases in which not every label was looked for: ``PATTERN=LABEL,LABEL`` with a pattern of case ids.
        name, licence, origin: descriptive fields of the manifest.
        patient_rule: patient from case id; see `segpipe.data.importers.to_manifest`.
        hashes: record the SHA-256 of every file.
        pseudonymise: replace case and patient ids by keyed hashes, and keep no name that the source has for itself.
        key: file of the key of the pseudonyms (patients of DICOM, ``pseudonymise``), made where it is not there; None:
            that of an earlier conversion to the same folder, else one for all of a user's imports.
        overwrite: replace a manifest that is there, with its split.
        progress: called with stage, done and total.
        note: called with each of the notes at once.

    Raises:
        UsageError: options that do not go together, no such place, a manifest that is there already.
        LabelsNotChosenError: DICOM labels of several names and no rule.
        DataError: what is there cannot be used.
    """
    source = None if source is None else Path(source)
    output = None if output is None else Path(output)
    layout = _choose_layout(source, layout, images, labels, slices, masks)
    if layout not in ("slices", "dicom") and skip_bad:
        raise UsageError("--skip-bad goes with slices and DICOM")
    if layout in ("slices", "dicom") and label_values:
        raise UsageError(
            "--label-values goes with NIfTI label maps", hint="of DICOM, --label says what becomes a label"
        )
    if layout in ("slices", "dicom") and ignore_label is not None:
        raise UsageError("--ignore-label goes with NIfTI label maps")
    joined = [parse_region(word) for word in regions]
    looked_for = [parse_annotated(word) for word in annotated]
    if layout != "slices" and spacing_mm:
        raise UsageError("--spacing goes with slices")
    if layout in ("slices", "dicom") and registered:
        raise UsageError(
            "--registered goes with NIfTI files", hint="DICOM says itself what lies in one space: --channel"
        )
    of_dicom = label_rules or allow_missing or repair or secondary_capture or channel or pet_unit
    if layout != "dicom" and (of_dicom or (overlap, unlabelled) != ("refuse", "skip")):
        given = "--label, --show-names, --overlap, --allow-missing, --unlabelled, --repair, --secondary-capture"
        raise UsageError(f"{given}, --channel and --pet-unit go with DICOM")
    if channel and modality:
        raise UsageError("--modality and --channel exclude each other", hint="--channel names the modalities it takes")
    if unlabelled not in ("skip", "include"):
        raise UsageError(f"no such way with series without labels: {unlabelled!r}", expected="skip or include")
    if key is not None and not pseudonymise and layout != "dicom":
        raise UsageError("--key goes with --pseudonymise, or with DICOM")
    notes: list[str] = []
    secret = b""

    def tell(text: str) -> None:
        notes.append(text)
        note(text)

    if source is not None and layout == "dicom":
        rules_of_channels = parse_channels(channel)
        unit = parse_pet_unit(pet_unit)
        repairs = check_repairs(repair)
        tree = _find_series(source, modality, progress, repairs, secondary_capture, rules_of_channels, unit)
        rules = choose_labels(tree, label_rules, label_names, tell)
        place = place_of(source, output, converted)
        path = require_new(place.manifest, overwrite)
        if overlap not in ("refuse", "first", "last"):
            raise UsageError(f"no way {overlap!r} to go about overlaps", expected="refuse, first or last")
        secret = _study_key(key, place.folder, tell)
        options = LabelOptions(rules, overlap, allow_missing, unlabelled == "include", skip_bad, secret)  # type: ignore[arg-type]
        dataset = _convert_dicom(tree, place, options, progress, tell)
    elif source is not None and layout == "slices":
        stacks = find_stacks(source, slices, masks)
        place = place_of(source, output, converted)
        path = require_new(place.manifest, overwrite)
        dataset = _with_modality(
            _convert_slices(stacks, place, spacing_mm, label_names, skip_bad, progress, tell), modality
        )
    else:
        values = parse_label_values(label_values, ignore_label)
        if source is not None and layout == "folders" and images is None and labels is None:
            images, labels = folder_pair(source)
            tell(f"taken as images and labels: the folders {images.name} and {labels.name}")
            source = None
        dataset = with_own_ids(_read_nifti(source, layout, images, labels, label_names, modality, values, progress))
        path = require_new(output or dataset.root / "manifest.json", overwrite)
        anew = None if converted is None else Path(converted)
        dataset, written = write_as_nifti(dataset, anew, _stage(progress, "writing NIfTI"))
        dataset, said = adapt_labels(dataset, values, anew, _stage(progress, "label maps"))
        resampled: tuple[str, ...] = ()
        if registered:
            dataset, resampled = put_on_one_grid(dataset, anew, _stage(progress, "resampling channels"))
        for text in [*written, *said, *resampled]:
            tell(text)
    if joined:
        dataset = replace(dataset, regions=dict(joined))
    about = {"name": name, "licence": licence, "source": origin}
    for text in [*dataset.notes, *_renamed(dataset)] if not pseudonymise else dataset.notes:
        tell(text)
    if pseudonymise:
        secret = secret or _study_key(key, None, tell)
        dataset = _without_names(dataset, layout, tell)
    manifest = to_manifest(
        dataset, patient_rule, pseudonymise=pseudonymise, key=secret, about=about, annotated=looked_for
    )
    if manifest.patients_of_some is not None:
        tell(f"{manifest.patients_of_some}; each stands for itself, --patient-rule tells who they are of")
    if hashes:
        add_hashes(manifest, dataset.root, _stage(progress, "hashing"))
    try:
        require_apart(manifest)
    except DataError as error:
        tell(f"{error.message} ({error.found}), so no training accepts this test set: {error.hint}")
    save_manifest(manifest, path)
    return Imported(manifest, path, dataset.root, notes)


def _renamed(dataset: SourceDataset) -> list[str]:
    ids = [case.id for case in [*dataset.training, *dataset.test] if case.name is not None]
    return [f"file names that cannot be ids, or are shared: {len(ids)} have ids of their own: {some_of(ids)}"] * bool(
        ids
    )


def dicom_label_names(
    source: str | Path,
    *,
    layout: str | None = None,
    modality: Sequence[str] = (),
    progress: StageProgress = lambda stage, done, total: None,
) -> Counter[str]:
    """Return the names of the regions and segments below a folder, and in how many label files each is.

    They are free text that somebody typed: for the eyes of who asked, and for nothing else.

    Raises:
        UsageError: another layout than DICOM.
        DataError: no DICOM series.
    """
    if (layout or detect_layout(Path(source))) != "dicom":
        raise UsageError("--label, --show-names, --overlap, --allow-missing and --unlabelled go with DICOM")
    return _find_series(Path(source), modality, progress).names()


def _choose_layout(source: Path | None, layout: str | None, images: Any, labels: Any, slices: Any, masks: Any) -> Any:
    """Return the layout that is named, else the one that the options mean, else the one that is found."""
    if slices is not None or masks is not None:
        if source is None or layout not in (None, "slices"):
            raise UsageError("--slices and --masks go with the folder of the slices, without another layout")
        return "slices"
    if source is None or layout is not None or images is not None or labels is not None:
        if source is None and layout in ("slices", "dicom"):
            raise UsageError(f"which folder holds the {layout}?", expected="segpipe import FOLDER")
        return layout
    return detect_layout(source)


def _study_key(named: str | Path | None, earlier: Path | None, tell: Callable[[str], None]) -> bytes:
    key, path = study_key(named, earlier)
    tell(f"pseudonyms are made under the key {path}: keep it, and give the same --key wherever they are to agree")
    return key


def _without_names(dataset: SourceDataset, layout: str | None, tell: Callable[[str], None]) -> SourceDataset:
    """Leave out what a dataset.json says of itself in free text, all but the licence; what we wrote stays."""
    if layout in ("slices", "dicom"):
        return dataset
    kept = {name: text for name, text in dataset.about.items() if name == "licence"}
    if len(kept) < len(dataset.about):
        left_out = ", ".join(name for name in dataset.about if name not in kept)
        tell(f"left out: {left_out}, as the source has it, which may name somebody: --name says what may be known")
    return replace(dataset, about=kept)


def _stage(progress: StageProgress, name: str) -> Progress:
    return lambda done, total: progress(name, done, total)


def _find_series(
    source: Path,
    modality: Sequence[str],
    progress: StageProgress,
    repairs: Sequence[str] = (),
    captures: Sequence[str] = (),
    channels: Sequence[ChannelRule] = (),
    pet_unit: str | None = None,
) -> LabelledTree:
    words = [DICOM_MODALITIES.get(word.upper(), word.upper()) for word in modality]
    return find_labelled(source, words, _stage(progress, "reading headers"), repairs, captures, channels, pet_unit)


def _convert_dicom(
    tree: LabelledTree, place: Place, options: LabelOptions, progress: StageProgress, tell: Callable[[str], None]
) -> SourceDataset:
    dataset, left_out, notes = convert_series(tree, place.root, place.folder, options, _stage(progress, "converting"))
    for case, words in notes.items():
        tell(f"{case}: {'; '.join(words)}")
    for case, fault in left_out.items():
        tell(f"left out: {case}: {fault}")
    if "mixed" in dataset.modality.values():
        tell("the series are of several modalities: --modality CT (or MRI, PT, ...) takes those of one")
    if tree.unlabelled and not options.unlabelled:
        tell(f"passed over: {len(tree.unlabelled)} series without labels")
    if tree.without_channel:
        tell(f"passed over: {tree.without_channel} series that are no channel of a case")
    if tree.elsewhere:
        of = "other series than the first channel" if tree.channels else "other modalities"
        tell(f"passed over: {tree.elsewhere} label files of {of}")
    return dataset


def _convert_slices(
    stacks: SliceStacks,
    place: Place,
    spacing_mm: tuple[float, float, float] | None,
    label_names: Sequence[str],
    skip_bad: bool,
    progress: StageProgress,
    tell: Callable[[str], None],
) -> SourceDataset:
    if spacing_mm is not None and not all(0 < edge < 1000 for edge in spacing_mm):
        raise UsageError("no such spacing", found=spacing_mm, expected="three lengths in mm above 0")
    dataset, left_out = convert_stacks(
        stacks,
        place.root,
        place.folder,
        spacing_mm=spacing_mm or (1.0, 1.0, 1.0),
        label_names=label_names,
        skip_bad=skip_bad,
        assumed=spacing_mm is None,
        progress=_stage(progress, "converting"),
    )
    tell(dataset.about["description"])
    for case, fault in left_out.items():
        tell(f"left out: {case}: {fault}")
    if stacks.passed_over:
        tell(f"passed over: {len(stacks.passed_over)} images, e.g. {stacks.passed_over[0]}")
    return _as_listed(dataset, stacks, label_names)


def _as_listed(dataset: SourceDataset, stacks: SliceStacks, label_names: Sequence[str]) -> SourceDataset:
    """Add what the manifest that comes with the package says of the LGG data set, where it is that."""
    path = shipped_manifest("lgg_mri") if stacks.is_lgg else None
    if path is None:
        return dataset
    listed = load_manifest(path)
    known = {field: getattr(listed, field) for field in ("name", "reference", "source", "licence")}
    return replace(
        dataset,
        about={**dataset.about, **known},
        labels=dataset.labels if label_names else listed.labels,
        modality=listed.modality if len(dataset.modality) == listed.n_channels else dataset.modality,
    )


def _read_nifti(
    source: Path | None,
    layout: str | None,
    images: str | Path | None,
    labels: str | Path | None,
    label_names: Sequence[str],
    modality: Sequence[str],
    values: ValueRules,
    progress: StageProgress,
) -> SourceDataset:
    if images is not None or labels is not None:
        if images is None or labels is None or source is not None or layout not in (None, "folders"):
            raise UsageError("--images and --labels go together, without another source or layout")
        reading = _stage(progress, "reading labels")
        return read_folders(Path(images), Path(labels), label_names, modality, reading, values)
    if source is None:
        raise UsageError("what is to be imported?", expected="a data set, or --images DIR --labels DIR")
    if label_names:
        raise UsageError(
            "--label-name goes with two folders, and with slices", hint="the dataset.json names the labels"
        )
    return _with_modality(find_dataset(source, layout, values), modality)


def _with_modality(dataset: SourceDataset, modality: Sequence[str]) -> SourceDataset:
    if not modality:
        return dataset
    return replace(dataset, modality={str(index): word for index, word in enumerate(modality)})
