"""DICOM series with SEG or RTSTRUCT become NIfTI images and label maps, under pseudonyms and without header text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom import Series, load_series
from pipeline.dicom.convert import write_mapping, write_volume
from pipeline.dicom.labels import LabelFile, read_labels
from pipeline.dicom.patients import patient_pseudonym
from pipeline.errors import DataError, UsageError
from pipeline.files import require_writable, write_json, write_text
from pipeline.importers.dicom_labels import DicomTree, LabelledSeries
from pipeline.importers.found import FoundCase, FoundDataset, digest_of_sources, refusal
from pipeline.importers.label_rules import LabelRules
from pipeline.processes import over_cases, workers_to_read

Overlap = Literal["refuse", "first", "last"]
KEY = "pseudonyms.key"  # beside the mapping, for its owner alone
MODALITIES = {"MR": "MRI"}  # where the manifest's word is not DICOM's


@dataclass(frozen=True)
class Wanted:
    """What the user wants of the labels.

    Attributes:
        rules: which region becomes which label.
        overlap: which of two labels a voxel gets that is in both: none, the one whose rule stands first, or last.
        allow_missing: whether a case without one of the labels has it nowhere; else it is refused.
        unlabelled: whether series without labels become test cases.
        skip_bad: leave out what cannot be used, instead of refusing all.
    """

    rules: LabelRules
    overlap: Overlap = "refuse"
    allow_missing: bool = False
    unlabelled: bool = False
    skip_bad: bool = False


@dataclass(frozen=True)
class Job:
    """One series to write into ``folder``: ``images/ID.nii.gz`` and, with labels, ``labels/ID.nii.gz``.

    Attributes:
        series: loadable.
        labels: label files, each with its regions to take and their values.
        names: value to name, in the order in which overlaps are decided.
        overlap: see `Wanted`.
        root: the tree, to name files by.
        folder: where to write.
    """

    series: Series
    labels: tuple[tuple[Path, dict[str, int]], ...]
    names: dict[int, str]
    overlap: Overlap
    root: Path
    folder: Path


@dataclass(frozen=True)
class Converted:
    """How a series ended: what was noticed, and why it was refused where it was."""

    id: str
    notes: tuple[str, ...] = ()
    fault: str = ""


def read_dicom(
    tree: DicomTree, root: Path, folder: Path, wanted: Wanted, advance: Callable[[], None] = lambda: None
) -> tuple[FoundDataset, dict[str, str], dict[str, tuple[str, ...]]]:
    """Convert every labelled series and describe the data set that they are then.

    Args:
        tree: what `pipeline.importers.dicom_labels.find_labelled` found.
        root: the data root; the manifest's paths start here, and ``folder`` is it or lies below it.
        folder: for the NIfTI files, the mapping from case ids to files, and the key of the patients' pseudonyms.
        wanted: which labels, and what to do in doubt.
        advance: called once a series.

    Returns:
        The data set, what was left out with the reason, and notes on cases that are in.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: series or label files that cannot be used, each with the reason, or no series that can.
    """
    faults = {**tree.faults, **_refused(each.series for each in tree.labelled)}
    faults |= _label_faults([each for each in tree.labelled if each.series.case_id not in faults], wanted)
    chosen = [(each.series, each.labels) for each in tree.labelled if each.series.case_id not in faults]
    if wanted.unlabelled:
        chosen += [(series, ()) for series in tree.unlabelled if series.state == "loaded"]
    jobs = [_job(series, files, tree.root, folder, wanted) for series, files in chosen]
    if not jobs or (faults and not wanted.skip_bad):
        raise refusal("series or label files", faults, len(jobs))
    require_writable(folder)
    workers = workers_to_read(path for job in jobs for path in job.series.files)
    done = over_cases(convert, jobs, workers, lost=_lost, on_done=lambda job: advance())
    faults |= {each.id: each.fault for each in done if each.fault}
    kept = [job for job, each in zip(jobs, done, strict=True) if not each.fault]
    if not any(job.labels for job in kept) or (faults and not wanted.skip_bad):
        raise refusal("series or label files", faults, len(kept))
    found = _described(kept, root, folder, wanted.rules)
    write_mapping(folder, [job.series for job in kept])
    if wanted.unlabelled:
        faults |= _refused(tree.unlabelled)
    return found, faults, {each.id: each.notes for each in done if each.notes and not each.fault}


def _refused(series: Iterable[Series]) -> dict[str, str]:
    return {one.case_id: f"{one.reason}: {one.detail}" for one in series if one.state == "refused"}


def _label_faults(labelled: Sequence[LabelledSeries], wanted: Wanted) -> dict[str, str]:
    """Series whose labels leave a doubt that names alone can tell."""
    faults = {}
    for each in labelled:
        values = [value for file in each.labels for value in set(_values(file, wanted.rules).values())]
        twice = sorted({value for value in values if values.count(value) > 1})
        missing = [name for value, name in wanted.rules.names.items() if value not in values]
        if not values:
            faults[each.series.case_id] = "none of its labels fits a --label"
        elif twice:
            name = wanted.rules.names[twice[0]]
            faults[each.series.case_id] = (
                f"{len(each.labels)} label files, of which several have {name!r}; keep one"
            )
        elif missing and not wanted.allow_missing:
            faults[each.series.case_id] = (
                f"no {' and no '.join(map(repr, missing))}; where that means that there is none: --allow-missing"
            )
    return faults


def _values(file: LabelFile, rules: LabelRules) -> dict[str, int]:
    """Of the names that become a label."""
    return {name: value for name in file.names if (value := rules.value_of(name))}


def _job(series: Series, files: Iterable[LabelFile], root: Path, folder: Path, wanted: Wanted) -> Job:
    of_file = [(file.path, _values(file, wanted.rules)) for file in files]
    order = dict.fromkeys(value for _, value in wanted.rules.patterns if value)
    names = {value: wanted.rules.names[value] for value in order}
    labels = tuple((path, values) for path, values in of_file if values)
    return Job(series, labels, names, wanted.overlap, root, folder)


def _lost(job: Job) -> Converted:
    return Converted(job.series.case_id, fault="the process that read it died; is there enough memory?")


def convert(job: Job) -> Converted:
    """Write a series and its label map, unless both are there already from the same files.

    Raises:
        UsageError: the folder cannot be written to.
    """
    id = job.series.case_id
    paths = [
        job.folder / kind / f"{id}.nii.gz" for kind in (("images", "labels") if job.labels else ("images",))
    ]
    note = job.folder / ".sources" / f"{id}.json"
    values = [sorted(values.items()) for _, values in job.labels]
    sources = [*job.series.files, *(path for path, _ in job.labels)]
    digest = digest_of_sources(sources, [values, list(job.names), job.overlap])
    known = json.loads(note.read_text()) if note.is_file() else {}
    if known.get("digest") == digest and all(path.is_file() for path in paths):
        return Converted(id, tuple(known["notes"]))
    try:
        volume = load_series(job.series)
        labels = label_map(job) if job.labels else None
    except DataError as error:
        return Converted(id, fault=error.sentence(job.root))
    write_volume(volume, paths[0])
    if labels is not None:
        write_volume(replace(volume, array=labels), paths[1])
    write_json(note, {"digest": digest, "notes": list(volume.notes)})
    return Converted(id, volume.notes)


def label_map(job: Job) -> NDArray[np.uint8]:
    """The labels of a series as one map (C, R, S), uint8.

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
            other = job.names[int(labels[taken][0])]
            raise DataError(
                f"labels {other!r} and {job.names[value]!r} overlap", found=f"{int(taken.sum())} voxels in both",
                expected="each voxel in one, or --overlap first or last",
            )  # fmt: skip
        labels[masks[value] & ~taken if job.overlap == "first" else masks[value]] = value
    return labels


def _described(jobs: Sequence[Job], root: Path, folder: Path, rules: LabelRules) -> FoundDataset:
    key = _key(folder)
    below = folder.relative_to(root)

    def case(job: Job) -> FoundCase:
        file = f"{job.series.case_id}.nii.gz"
        label = (below / "labels" / file).as_posix() if job.labels else None
        patient = patient_pseudonym(job.series.files[0], key)
        return FoundCase(job.series.case_id, [(below / "images" / file).as_posix()], label, patient)

    modalities = sorted({job.series.modality for job in jobs})
    modality = MODALITIES.get(modalities[0], modalities[0]) if len(modalities) == 1 else "mixed"
    return FoundDataset(
        root=root,
        training=[case(job) for job in jobs if job.labels],
        test=[case(job) for job in jobs if not job.labels],
        labels={"0": "background", **{str(value): name for value, name in sorted(rules.names.items())}},
        modality={"0": modality},
        about={
            "name": "dicom",
            "description": "Volumes and label maps made of DICOM series, SEG and RTSTRUCT.",
        },
    )


def _key(folder: Path) -> bytes:
    """The key of this folder's pseudonyms, made once: an import that goes on names the same patients."""
    path = folder / KEY
    try:
        if not path.is_file():
            write_text(path, secrets.token_hex(32) + "\n", mode=0o600)
        key = path.read_text().strip()
    except OSError as error:
        raise UsageError("cannot read the key of the pseudonyms", path=path, found=error.strerror) from error
    if len(key) < 32:
        raise DataError(
            "not a key of pseudonyms", path=path, hint="remove it; patients get new pseudonyms then"
        )
    return key.encode()
