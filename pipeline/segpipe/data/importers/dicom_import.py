"""DICOM series with SEG or RTSTRUCT become NIfTI images and label maps, under pseudonyms and without header text.

`find_labelled` tells which labels belong to which volume by what they refer to; `convert_series` writes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.common.console import some_of
from segpipe.common.files import require_writable, sha256_of, write_json
from segpipe.common.processes import Progress, over_cases, workers_to_read
from segpipe.common.resampling import require_covered
from segpipe.data.importers.dicom_patients import doubts
from segpipe.data.importers.label_rules import LabelRules
from segpipe.data.importers.made_files import digest_of_sources, earlier_conversion, write_beside
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, refusal
from segpipe.dicom import (
    ChannelRule,
    LabelFile,
    Series,
    admitted,
    channel_note,
    covariates_of,
    in_unit,
    join_channels,
    load_channels,
    open_labels,
    open_registrations,
    read_labels,
    read_patient,
    registration_note,
    scan,
    shared_unit,
    write_mapping,
    write_volume,
)
from segpipe.errors import DataError


@dataclass(frozen=True)
class LabelledSeries:
    """A volume and every SEG and RTSTRUCT that refers to it, copies left out."""

    series: Series
    labels: tuple[LabelFile, ...]


@dataclass
class LabelledTree:
    """The series of a tree by whether labels refer to them.

    Attributes:
        root: the tree.
        labelled: loaded or refused.
        unlabelled: loaded or refused.
        faults: label files that belong to none, or to several, by their path below the root, with the reason.
        elsewhere: number of label files that belong to series that were not chosen, or to further channels.
        channels: names of the channels that series were joined for; empty where each series is a case.
        without_channel: number of series that are no channel of a case.
    """

    root: Path
    labelled: list[LabelledSeries] = field(default_factory=list)
    unlabelled: list[Series] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0
    channels: tuple[str, ...] = ()
    without_channel: int = 0

    def names(self) -> Counter[str]:
        """Return the names of regions and segments, free text, and in how many label files each is."""
        return Counter(name for volume in self.labelled for file in volume.labels for name in set(file.names))


def find_labelled(
    root: Path,
    modalities: Collection[str] = (),
    progress: Callable[[int, int], object] | None = None,
    repairs: Sequence[str] = (),
    captures: Sequence[str] = (),
    channels: Sequence[ChannelRule] = (),
    pet_unit: str | None = None,
) -> LabelledTree:
    """Scan a tree and match labels to series.

    A file belongs to the series whose images it names; where none of these is in the tree, to the series whose UID it
    names; where it names neither, to the only series in its frame of reference.

    Args:
        root: the tree.
        modalities: only series of these (``CT``, ``MR``, ...).
        progress: called with the number of files read and of all files.
        repairs: what refused series are resampled for, never across a gap.
        captures: SeriesInstanceUIDs and case ids of Secondary Captures to take.
        pet_unit: that the values of PET are to be in; see `segpipe.dicom.in_unit`.
        channels: rules by which series are joined to cases of several channels; labels are those of the first channel.

    Raises:
        UsageError: no such folder.
        DataError: no DICOM series, or none that is the first channel.
    """
    scanned = scan(root, progress=progress)
    everything = [in_unit(series, pet_unit) for series in admitted(scanned.series, repairs, captures)]
    if not scanned.series:
        raise DataError(
            "there is no DICOM series",
            path=root,
            found=scanned.others,
            expected="slices of CT, MR, PET or the like",
            hint="`segpipe scan` lists the files; give the folder of the images",
        )
    tree = LabelledTree(root)
    selected = [series for series in everything if not modalities or series.modality in modalities]
    if channels:
        joined = join_channels(everything, channels, registrations=open_registrations(scanned.passed_over))
        selected, tree.channels = joined.cases, tuple(rule.name for rule in channels)
        tree.without_channel = len(joined.others)
        if not selected:
            raise DataError(
                f"no series is the channel {channels[0].name}",
                path=root,
                found=some_of(sorted({series.modality for series in everything})),
                expected=channels[0].modality,
                hint="`segpipe scan` lists the series; --channel NAME=MODALITY:PATTERN goes by their descriptions",
            )
    files: dict[str, list[LabelFile]] = defaultdict(list)
    for path in [passed.path for passed in scanned.passed_over if passed.is_label_file]:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        try:
            labels = open_labels(path)
        except DataError as error:
            tree.faults[name] = error.sentence(root).removeprefix(f"{name}: ")
            continue
        everywhere = _referred(labels, everything)
        referred = {series.case_id for series in everywhere}
        here = [series for series in selected if series.case_id in referred]
        if len(here) == 1:
            files[here[0].case_id].append(labels)
        elif here:
            ids = ", ".join(series.case_id for series in here)
            tree.faults[name] = f"it refers to {len(here)} volumes: {ids}; choose by --modality, or remove the others"
        elif everywhere:
            tree.elsewhere += 1
        else:
            tree.faults[name] = "the series that it refers to is not here; add it, or remove this file"
    for series in selected:
        if series.case_id in files:
            tree.labelled.append(LabelledSeries(series, _without_copies(files[series.case_id])))
        else:
            tree.unlabelled.append(series)
    return tree


def _referred(labels: LabelFile, series: Sequence[Series]) -> list[Series]:
    """Return the series that a label file refers to: by image, else by series, else by frame of reference."""
    uid, place = labels.series_uid, labels.frame_of_reference_uid
    matches = [item for item in series if any(frame.sop_instance_uid in labels.instances for frame in item.frames)]
    matches = matches or [item for item in series if uid and item.series_uid == uid]
    if not (matches or labels.instances or uid):
        matches = [item for item in series if place and item.frame_of_reference_uid == place]
    volumes = [item for item in matches if item.reason != "single_slice"]  # a scout of the series
    return volumes or matches


def _without_copies(files: Sequence[LabelFile]) -> tuple[LabelFile, ...]:
    if len(files) == 1:
        return tuple(files)
    return tuple({sha256_of(file.path): file for file in reversed(files)}.values())[::-1]


Overlap = Literal["refuse", "first", "last"]
BY_OBJECT = "a rigid DICOM registration object"
MODALITIES = {"MR": "MRI"}  # where the manifest's word is not DICOM's


@dataclass(frozen=True)
class LabelOptions:
    """What the user wants of the labels.

    Attributes:
        rules: which region becomes which label.
        overlap: which of two labels a voxel gets that is in both: none, the one whose rule stands first, or last.
        allow_missing: whether a case without one of the labels has it nowhere; else it is refused.
        unlabelled: whether series without labels become test cases.
        skip_bad: leave out what cannot be used, instead of refusing all.
        key: of the patients' pseudonyms.
    """

    rules: LabelRules
    overlap: Overlap = "refuse"
    allow_missing: bool = False
    unlabelled: bool = False
    skip_bad: bool = False
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Job:
    """One series to write into ``folder``: ``images/ID.nii.gz`` and, with labels, ``labels/ID.nii.gz``.

    With further channels the images are ``images/ID_0000.nii.gz``, ``images/ID_0001.nii.gz`` and so on.

    Attributes:
        series: loadable.
        labels: label files, each with its regions to take and their values.
        names: value to name, in the order in which overlaps are decided.
        channels: names of the channels; of one alone none is needed.
        overlap: see `LabelOptions`.
        root: the tree, to name files by.
        folder: where to write.
    """

    series: Series
    labels: tuple[tuple[Path, dict[str, int]], ...]
    names: dict[int, str]
    overlap: Overlap
    root: Path
    folder: Path
    channels: tuple[str, ...] = ()

    @property
    def images(self) -> list[str]:
        """The names of the images, one a channel."""
        id, several = self.series.case_id, len(self.series.channels) > 1
        return [f"{id}_{index:04}.nii.gz" if several else f"{id}.nii.gz" for index in range(len(self.series.channels))]


@dataclass(frozen=True)
class Converted:
    """How a series ended: files below the folder, what was noticed, and why it was refused where it was."""

    id: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fault: str = ""


def convert_series(
    tree: LabelledTree, root: Path, folder: Path, options: LabelOptions, progress: Progress | None = None
) -> tuple[SourceDataset, dict[str, str], dict[str, tuple[str, ...]]]:
    """Convert every labelled series and describe the data set that they are then.

    Args:
        tree: what `segpipe.data.importers.dicom_import.find_labelled` found.
        root: the data root; the manifest's paths start here, and ``folder`` is it or lies below it.
        folder: for the NIfTI files and the mapping from case ids to files.
        options: which labels, and what to do in doubt.
        progress: called with the number of series done and of all.

    Returns:
        The data set, what was left out with the reason, and notes on cases that are in.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: series or label files that cannot be used, each with the reason, or no series that can.
    """
    faults = {**tree.faults, **_refused(item.series for item in tree.labelled)}
    faults |= _label_faults([item for item in tree.labelled if item.series.case_id not in faults], options)
    chosen = [(item.series, item.labels) for item in tree.labelled if item.series.case_id not in faults]
    if options.unlabelled:
        chosen += [(series, ()) for series in tree.unlabelled if series.state == "loaded"]
    jobs = [_job(series, files, tree, folder, options) for series, files in chosen]
    if not jobs or (faults and not options.skip_bad):
        raise refusal("series or label files", faults, len(jobs))
    require_writable(folder)
    workers = workers_to_read(path for job in jobs for path in job.series.all_files)
    done = over_cases(convert, jobs, workers, lost=_lost, progress=progress)
    faults |= {volume.id: volume.fault for volume in done if volume.fault}
    kept = [(job, volume.files) for job, volume in zip(jobs, done, strict=True) if not volume.fault]
    if not any(job.labels for job, _ in kept) or (faults and not options.skip_bad):
        raise refusal("series or label files", faults, len(kept))
    dataset = _describe(kept, root, folder, options)
    write_mapping(folder, [channel for job, _ in kept for channel in job.series.channels])
    if options.unlabelled:
        faults |= _refused(tree.unlabelled)
    return dataset, faults, {volume.id: volume.notes for volume in done if volume.notes and not volume.fault}


def _refused(series: Iterable[Series]) -> dict[str, str]:
    return {item.case_id: f"{item.reason}: {item.detail}" for item in series if item.state == "refused"}


def _label_faults(labelled: Sequence[LabelledSeries], options: LabelOptions) -> dict[str, str]:
    """Return the series whose labels leave a doubt that names alone can tell."""
    faults = {}
    for volume in labelled:
        id = volume.series.case_id
        values = [value for file in volume.labels for value in set(_values(file, options.rules).values())]
        twice = sorted({value for value in values if values.count(value) > 1})
        missing = [name for value, name in options.rules.names.items() if value not in values]
        if not values:
            faults[id] = "none of its labels fits a --label"
        elif twice:
            name = options.rules.names[twice[0]]
            faults[id] = f"{len(volume.labels)} label files, of which several have {name!r}; keep one"
        elif missing and not options.allow_missing:
            faults[id] = (
                f"no {' and no '.join(map(repr, missing))}; where that means that there is none: --allow-missing"
            )
    return faults


def _values(file: LabelFile, rules: LabelRules) -> dict[str, int]:
    """Return the names in a file that become a label, with its value."""
    return {name: value for name in file.names if (value := rules.value_of(name))}


def _job(series: Series, files: Iterable[LabelFile], tree: LabelledTree, folder: Path, options: LabelOptions) -> Job:
    of_file = [(file.path, _values(file, options.rules)) for file in files]
    order = dict.fromkeys(value for _, value in options.rules.patterns if value)
    names = {value: options.rules.names[value] for value in order}
    labels = tuple((path, values) for path, values in of_file if values)
    return Job(series, labels, names, options.overlap, tree.root, folder, tree.channels)


def _lost(job: Job) -> Converted:
    return Converted(job.series.case_id, fault="the process that read it died; is there enough memory?")


def convert(job: Job) -> Converted:
    """Write a series and its label map, unless both are there already from the same files.

    Raises:
        UsageError: the folder cannot be written to.
    """
    id = job.series.case_id
    paths = [job.folder / "images" / name for name in job.images]
    note = job.folder / ".sources" / f"{id}.json"
    values = [sorted(values.items()) for _, values in job.labels]
    sources = [*job.series.all_files, *(path for path, _ in job.labels)]
    repaired = [channel.repaired for channel in job.series.channels]
    units = [channel.converted_to for channel in job.series.channels if channel.converted_to]
    moved = [channel.registration.matrix_ras for channel in job.series.channels if channel.registration]
    digest = digest_of_sources(sources, [values, list(job.names), job.overlap, *repaired, *units, *moved])
    known = earlier_conversion(note, digest, job.folder)
    if known is not None:
        return Converted(id, tuple(known["files"]), tuple(known["notes"]))
    try:
        labels = label_map(job) if job.labels else None
        volumes = load_channels(job.series)
    except DataError as error:
        return Converted(id, fault=error.sentence(job.root))
    planned = [*zip(paths, volumes, strict=True)]
    if labels is not None:
        planned.append((job.folder / "labels" / f"{id}.nii.gz", replace(volumes[0], array=labels)))
    written = [write_beside(path, partial(write_volume, volume)) for path, volume in planned]
    files = [path.relative_to(job.folder).as_posix() for path in written]
    further = [
        f"channel {name}: {words}"
        for name, volume in zip(job.channels[1:], volumes[1:], strict=True)
        for words in volume.notes
        if words not in volume.series.notes
    ]
    notes = tuple(dict.fromkeys([*volumes[0].notes, *further]))
    write_json(note, {"digest": digest, "files": files, "notes": list(notes)})
    return Converted(id, tuple(files), notes)


def label_map(job: Job) -> NDArray[np.uint8]:
    """Return the labels of a series as one map (C, R, S), uint8.

    Raises:
        DataError: labels that cannot be read or are not on the grid, or a voxel in two of them without an order.
    """
    shape = job.series.shape
    masks: dict[int, NDArray[np.bool_]] = {}
    for path, values in job.labels:
        for name, mask in read_labels(path, job.series, list(values)).items():
            value = values[name]
            masks[value] = masks[value] | mask if value in masks else mask
    labels = np.zeros(shape or (), np.uint8)
    for value in [value for value in job.names if value in masks]:
        taken = masks[value] & (labels > 0)
        if job.overlap == "refuse" and taken.any():
            first = job.names[int(labels[taken][0])]
            raise DataError(
                f"labels {first!r} and {job.names[value]!r} overlap",
                found=f"{int(taken.sum())} voxels in both",
                expected="each voxel in one, or --overlap first or last",
            )
        labels[masks[value] & ~taken if job.overlap == "first" else masks[value]] = value
    affine = job.series.affine_ras
    for name, channel in zip(job.channels[1:], job.series.further, strict=True):
        if channel.shape is not None and channel.affine_ras is not None and affine is not None:
            require_covered(labels, f"channel {name}", channel.shape, channel.placed(channel.affine_ras), affine)
    return labels


def _describe(
    done: Sequence[tuple[Job, tuple[str, ...]]], root: Path, folder: Path, options: LabelOptions
) -> SourceDataset:
    below = folder.relative_to(root)
    jobs = [job for job, _ in done]
    patients = {job.series.case_id: read_patient(job.series.files[0]) for job in jobs}

    def case(job: Job, files: Sequence[str]) -> SourceCase:
        images = [(below / file).as_posix() for file in files]
        label = images.pop() if job.labels else None
        patient = patients[job.series.case_id].pseudonym(options.key)
        members = [*zip(job.channels[1:], job.series.further, strict=True)]
        moved = [
            f"channel {name} {registration_note(member.registration, member)}"
            for name, member in members
            if member.registration
        ]
        notes = filter(None, [channel_note(name, job.series, member) for name, member in members])
        said = (*job.series.caveats, *moved, *notes)
        return SourceCase(
            job.series.case_id,
            images,
            label,
            patient,
            said,
            registered=BY_OBJECT if moved else False,
            covariates=covariates_of(job.series),
        )

    modalities = sorted({job.series.modality for job in jobs})
    modality = MODALITIES.get(modalities[0], modalities[0]) if len(modalities) == 1 else "mixed"
    channels = next((job.channels for job in jobs if job.channels), (modality,))
    units = {
        str(index): unit
        for index in range(len(channels))
        if (unit := shared_unit(job.series.channels[index] for job in jobs))
    }
    return SourceDataset(
        root=root,
        training=[case(job, files) for job, files in done if job.labels],
        test=[case(job, files) for job, files in done if not job.labels],
        labels={"0": "background", **{str(value): name for value, name in sorted(options.rules.names.items())}},
        modality={str(index): name for index, name in enumerate(channels)},
        units=units,
        about={"name": "dicom", "description": "Volumes and label maps made of DICOM series, SEG and RTSTRUCT."},
        notes=doubts(patients),
        has_pseudonyms=True,
    )
