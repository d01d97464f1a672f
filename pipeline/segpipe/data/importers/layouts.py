"""Layouts of NIfTI files: Decathlon, nnU-Net, and two folders.

Decathlon: a ``dataset.json`` lists every file (Antonelli et al., Nature Communications 13, 4128, 2022).

nnU-Net's raw layout, version 2 (``channel_names``, name to value) and version 1 (Decathlon's words); source: its
documentation of the format, Isensee et al., Nature Methods 18, 203 (2021):

    imagesTr/CASE_0000.nii.gz  CASE_0001.nii.gz ...   one file a channel
    labelsTr/CASE.nii.gz
    imagesTs/, labelsTs/                              where there are any

Two folders: an image matches the label of the same name; where there is none, ``CASE_0000``, ``CASE_0001``, ... are
the channels of the label ``CASE``. Subfolders count as part of the name.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segpipe.common.console import digits, some_of
from segpipe.common.files import read_json
from segpipe.common.folder_walk import find_images
from segpipe.common.image_names import ENDINGS, EXPECTED, image_stem, is_nifti
from segpipe.common.nifti import read_header, read_volume
from segpipe.common.processes import Progress
from segpipe.data.importers.label_values import MOST_VALUES, NO_RULES, ValueRules, require_labels, require_run
from segpipe.data.importers.source_dataset import (
    CHANNEL_SUFFIX,
    SourceCase,
    SourceDataset,
    channel_names,
    label_names,
    passed_over,
    require_files,
    require_promised,
)
from segpipe.errors import DataError, UsageError


def read_decathlon(source: Path, rules: ValueRules = NO_RULES) -> SourceDataset:
    """Read a Decathlon ``dataset.json``, or the folder that holds it.

    Raises:
        UsageError: no such file.
        DataError: not a Decathlon list, or files missing that it names.
    """
    path = source / "dataset.json" if source.is_dir() else source
    document = read_json(path, "dataset.json")
    listed = [document.get("training"), document.get("test") or []] if isinstance(document, dict) else [None]
    if not all(isinstance(entries, list) for entries in listed):
        raise DataError(
            "not a Decathlon dataset.json",
            path=path,
            expected='an object with a list "training" and, where there is one, a list "test"',
        )
    training = [_case(entry, "training", path) for entry in listed[0] or []]
    test = [_case(entry, "test", path) for entry in listed[1] or []]
    require_promised(document, {"numTraining": len(training), "numTest": len(test)}, path)
    require_files(path.parent, [*training, *test], path)
    names = label_names(document.get("labels"), path, rules)
    return SourceDataset(
        root=path.parent,
        training=training,
        test=test,
        labels=names.labels,
        ignore_label=names.ignore_label,
        regions=names.regions,
        modality=channel_names(document.get("modality") or document.get("channel_names"), path),
        about=descriptive_fields(document),
        notes=_beside(path.parent, [*training, *test], "files beside them that dataset.json does not name"),
    )


def _beside(root: Path, cases: Sequence[SourceCase], what: str) -> tuple[str, ...]:
    """Return a note on the images that lie in the folders of the cases' files and are none of these."""
    files = {root / name for case in cases for name in [*case.images, *([case.label] if case.label else [])]}
    folders = {file.parent for file in files}
    below = [folder for folder in folders if not any(parent in folders for parent in folder.parents)]
    there = {image for folder in below for image in find_images(folder).images}
    return passed_over(there - files, what)


def descriptive_fields(document: dict[str, Any]) -> dict[str, str]:
    """Return name, description, reference and licence of a ``dataset.json``, as far as it has them."""
    fields = {
        "name": document.get("name"),
        "description": document.get("description"),
        "reference": document.get("reference"),
        "licence": document.get("licence") or document.get("license"),
    }
    return {name: str(value) for name, value in fields.items() if value}


def _case(entry: Any, section: str, path: Path) -> SourceCase:
    parts = {"image": entry} if isinstance(entry, str) else entry
    images = parts.get("image") if isinstance(parts, dict) else None
    images = [images] if isinstance(images, str) else images
    label = parts.get("label") if isinstance(parts, dict) else None
    usable = isinstance(images, list) and bool(images) and all(isinstance(image, str) for image in images)
    if not usable or not (label is None or isinstance(label, str)) or (section == "training" and not label):
        raise DataError(
            f"an entry of {section!r} cannot be read",
            path=path,
            found=repr(entry)[:200],
            expected='{"image": PATH, "label": PATH}' + (" or PATH" if section == "test" else ""),
        )
    images = [_clean(image) for image in images or []]
    patient = _patient(parts.get("patient_id"), path)
    return SourceCase(image_stem(images[0]), images, _clean(label) if label else None, patient)


def _patient(stated: Any, path: Path) -> str | None:
    """Return whom an entry says that it is of: text or a whole number, of which 0 is one as well."""
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, (str, int)) or not str(stated).strip():
        raise DataError(
            "the patient of a case cannot be read",
            path=path,
            found=f'"patient_id": {stated!r}'[:200],
            expected="text or a whole number, or no patient_id where it is not known",
        )
    return str(stated)


def _clean(path: str) -> str:
    return str(PurePosixPath(path))


def read_nnunet(source: Path, rules: ValueRules = NO_RULES) -> SourceDataset:
    """Read an nnU-Net raw folder, or its ``dataset.json``.

    Raises:
        UsageError: no such file or folder.
        DataError: a format that is not read here, channels or labels missing.
    """
    path = source / "dataset.json" if source.is_dir() else source
    document = read_json(path, "dataset.json")
    if not isinstance(document, dict):
        raise DataError("not an nnU-Net dataset.json", path=path, found=type(document).__name__)
    ending = str(document.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise DataError(
            "files of this kind are not read here",
            path=path,
            found=ending,
            expected=", ".join(ENDINGS),
            hint="convert them to NIfTI with their own program",
        )
    if "dataset" in document:
        raise DataError(
            'lists of files ("dataset") in dataset.json are not supported',
            path=path,
            expected="the files themselves in imagesTr and labelsTr",
        )
    modality = channel_names(document.get("channel_names") or document.get("modality"), path)
    root = path.parent
    training = _cases(root, "Tr", ending, len(modality))
    if not training:
        raise DataError("there are no training images", path=root / "imagesTr", expected=f"CASE_0000{ending}")
    test = _cases(root, "Ts", ending, len(modality))
    require_promised(document, {"numTraining": len(training), "numTest": len(test)}, path)
    unlabelled = [case.id for case in training if case.label is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} training cases have no label", path=root / "labelsTr", found=some_of(unlabelled)
        )
    require_files(root, [*training, *test], path)
    names = label_names(document.get("labels"), path, rules)
    return SourceDataset(
        root=root,
        training=training,
        test=test,
        labels=names.labels,
        ignore_label=names.ignore_label,
        regions=names.regions,
        modality=modality,
        about={"name": root.resolve().name, **descriptive_fields(document)},
        notes=_beside(root, [*training, *test], f"files beside them without a case, or not called CASE_0000{ending}"),
    )


def looks_like_nnunet(root: Path, document: Any) -> bool:
    """Return whether a ``dataset.json`` beside image folders is nnU-Net's rather than the Decathlon's."""
    if not isinstance(document, dict):
        return False
    if "channel_names" in document or "training" not in document:
        return True
    images = root / "imagesTr"
    return images.is_dir() and bool(_channel_files(images, ".nii.gz")) and _lists_cases_without_channel(root, document)


def _lists_cases_without_channel(root: Path, document: dict[str, Any]) -> bool:
    listed = document["training"]
    first = listed[0] if isinstance(listed, list) and listed else None
    image = first.get("image") if isinstance(first, dict) else None
    return isinstance(image, str) and not (root / image).exists()


def _channel_files(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Return case to channel to file; files without a channel suffix are left out."""
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in find_images(folder).images if folder.is_dir() else []:
        match = CHANNEL_SUFFIX.match(path.name.removesuffix(ending)) if path.name.endswith(ending) else None
        if match and path.parent == folder:
            channels[match["case"]][int(match["channel"])] = path
    return channels


def _cases(root: Path, part: str, ending: str, n_channels: int) -> list[SourceCase]:
    folder = root / f"images{part}"
    if part == "Tr" and not folder.is_dir():
        raise UsageError("no such folder", path=folder, hint="name the folder that holds imagesTr and labelsTr")
    cases, expected = [], list(range(n_channels))
    for case, files in sorted(_channel_files(folder, ending).items()):
        if sorted(files) != expected:
            raise DataError(
                "the channels of a case are not complete",
                path=folder,
                case_id=case,
                found=f"channels {sorted(files)}",
                expected=f"channels {expected}",
            )
        images = [files[channel].relative_to(root).as_posix() for channel in expected]
        label = root / f"labels{part}" / f"{case}{ending}"
        cases.append(SourceCase(case, images, label.relative_to(root).as_posix() if os.path.lexists(label) else None))
    return cases


def read_folders(
    images: Path,
    labels: Path,
    label_names: Sequence[str] = (),
    modality: Sequence[str] = (),
    progress: Progress | None = None,
    rules: ValueRules = NO_RULES,
) -> SourceDataset:
    """Match two folders.

    Args:
        images: folder of images.
        labels: folder of label maps.
        label_names: names of the values 1, 2, ...; without them these are called ``label_1``, ``label_2``, ...
        modality: one word a channel.
        progress: called with the number of label maps read and of all.
        rules: which values become another label.

    Raises:
        UsageError: no such folder.
        DataError: empty, files without partner, channels missing, or label values with gaps or without a name.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError("no such folder", path=folder, hint="check the path")
    images, labels = images.resolve(), labels.resolve()  # the files themselves may be links to elsewhere
    root = Path(os.path.commonpath([images, labels]))
    if root in (images, labels):
        raise UsageError("images and labels must be two folders side by side", path=root)
    label_files, label_notes = _named(labels)
    image_files, image_notes = _named(images)
    lonely = _lonely(image_files, label_files)
    groups = _group(image_files, label_files, images)
    cases = [
        SourceCase(
            key.replace("/", "_"),
            [path.relative_to(root).as_posix() for path in paths],
            label_files[key].relative_to(root).as_posix(),
        )
        for key, paths in sorted(groups.items())
    ]
    if not cases:
        raise DataError("there are no images", path=images, expected=f"files with {EXPECTED}")
    require_files(root, cases, images)
    _require_equal_channels(cases, images)
    names = _names_from_values([root / case.label for case in cases if case.label], label_names, rules, progress)
    n_channels = max(len(modality), len(cases[0].images))
    words = list(modality) or ["unknown"] * n_channels
    return SourceDataset(
        root=root,
        training=cases,
        test=[],
        labels={str(value): name for value, name in enumerate(["background", *names])},
        ignore_label=rules.ignored,
        modality={str(index): word for index, word in enumerate(words)},
        about={"name": root.name or "dataset"},
        notes=(*image_notes, *label_notes, *passed_over(lonely, "files of other formats without a partner")),
    )


def _named(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return path relative to the folder, without ending, to file, and notes on what is no image.

    Raises:
        UsageError: a folder cannot be listed.
        DataError: two files differ in their ending alone.
    """
    found, named = find_images(folder), dict[str, Path]()
    others = found.others
    if found.closed:
        raise UsageError("a folder cannot be listed", path=found.closed[0], hint="ask for permission, or take it out")
    for path in found.images:
        key = (path.relative_to(folder).parent / image_stem(path)).as_posix()
        if key in named and is_nifti(path) != is_nifti(named[key]):  # the same in another format, as it seems
            others.append(path if is_nifti(named[key]) else named[key])
            named[key] = named[key] if is_nifti(named[key]) else path
            continue
        if key in named:
            raise DataError(
                "two files of one name",
                path=folder,
                found=f"{named[key].name}, {path.name}",
                hint="keep one of them: which belongs to the other file of the case cannot be told",
            )
        named[key] = path
    where = f"in the folder {folder.name}"
    notes = passed_over(found.hidden, f"hidden images {where}")
    return named, (*notes, *passed_over(others, f"other files {where}"))


def _lonely(images: dict[str, Path], labels: dict[str, Path]) -> list[Path]:
    """Take out what is not NIfTI and has no partner, and return it: it may be anything."""
    case_of = {
        key: match["case"] if key not in labels and (match := CHANNEL_SUFFIX.match(key)) else key for key in images
    }
    without_label = [key for key, case in case_of.items() if case not in labels and not is_nifti(images[key])]
    without_image = [key for key, path in labels.items() if key not in case_of.values() and not is_nifti(path)]
    return [images.pop(key) for key in without_label] + [labels.pop(key) for key in without_image]


def _group(images: dict[str, Path], labels: dict[str, Path], folder: Path) -> dict[str, list[Path]]:
    """Return each label's name with its image files in the order of the channels."""
    groups: dict[str, list[Path]] = defaultdict(list)
    lonely = []
    for key, path in sorted(images.items()):
        match = CHANNEL_SUFFIX.match(key)
        if key in labels:
            groups[key].append(path)
        elif match and match["case"] in labels:
            groups[match["case"]].append(path)
        else:
            lonely.append(f"image {key}")
    lonely += [f"label {key}" for key in sorted(labels) if key not in groups]
    if lonely:
        raise DataError(
            f"{len(lonely)} files have no partner of the same name",
            path=folder,
            found=some_of(lonely),
            expected="for each image a label of the same name (CASE or CASE_0000, CASE_0001, ...)",
            hint="rename or move these files",
        )
    return groups


def _require_equal_channels(cases: Sequence[SourceCase], folder: Path) -> None:
    of_case = {case.id: _channels(case) for case in cases}
    expected = max(of_case.values(), key=len)
    differing = [f"{case} has {', '.join(names)}" for case, names in of_case.items() if names != expected]
    if differing:
        raise DataError(
            "the cases have different channels",
            path=folder,
            found=some_of(differing),
            expected=f"{', '.join(expected)} in every case",
        )


def _channels(case: SourceCase) -> tuple[str, ...]:
    """Return the endings that tell the channels; an image that is called as its label is the first."""
    label = image_stem(str(case.label))
    stems = [image_stem(path) for path in case.images]
    return tuple("0000" if stem == label else stem.removeprefix(f"{label}_") for stem in stems)


def _names_from_values(
    paths: Sequence[Path], given: Sequence[str], rules: ValueRules, progress: Progress | None
) -> list[str]:
    """Return the names that are given, else ``label_1``, ``label_2``, ... for the values that occur."""
    found: dict[float, Path] = {}
    for done, path in enumerate(paths, start=1):
        for value in np.unique(read_volume(read_header(path))).tolist():
            found.setdefault(value, path)
        if progress is not None:
            progress(done, len(paths))
        if len(found) > MOST_VALUES:
            break
    rules.require_apart(found, paths[0].parent)
    labels = {rules.label_of(value): path for value, path in found.items()}
    if rules.ignored is not None and labels.pop(rules.ignored, None) is None:
        raise UsageError(
            "no label map has the value that is to be ignored",
            found=some_of(map(digits, sorted(labels))),
            expected=f"{rules.ignored} among them",
        )
    require_labels(labels, len(given) or None)
    if given:
        return list(given)
    require_run(labels, paths[0].parent)
    return [f"label_{label}" for label in range(1, int(max(labels)) + 1)]
