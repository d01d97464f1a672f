"""A folder of images and a folder of labels, matched by name.

An image matches the label of the same name; where there is none, ``CASE_0000``, ``CASE_0001``, ... are
the channels of the label ``CASE``. Subfolders count as part of the name.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import DataError, UsageError
from pipeline.importers.found import CHANNEL_SUFFIX, FoundCase, FoundDataset, some_of
from pipeline.manifest import nifti_stem
from pipeline.nifti import find_nifti, read_header, read_volume


def read_folders(
    images: Path,
    labels: Path,
    label_names: Sequence[str] = (),
    modality: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> FoundDataset:
    """Match two folders.

    Args:
        images: folder of images.
        labels: folder of label maps.
        label_names: names of the values 1, 2, ...; without them the label maps are read for their values.
        modality: one word a channel.
        advance: called once for every label map that is read.

    Raises:
        UsageError: no such folder.
        DataError: empty, files without partner, channels missing, or label values with gaps.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError("no such folder", path=folder, hint="check the path")
    images, labels = images.resolve(), labels.resolve()  # the files themselves may be links to elsewhere
    root = Path(os.path.commonpath([images, labels]))
    if root in (images, labels):
        raise UsageError("images and labels must be two folders side by side", path=root)
    label_files = _named(labels)
    groups = _group(_named(images), label_files, images)
    cases = [
        FoundCase(
            key.replace("/", "_"),
            [path.relative_to(root).as_posix() for path in paths],
            label_files[key].relative_to(root).as_posix(),
        )
        for key, paths in sorted(groups.items())
    ]
    if not cases:
        raise DataError("there are no NIfTI files", path=images, expected=".nii or .nii.gz")
    _require_equal_channels(cases, images)
    names = list(label_names) or _names_from_values(
        [root / case.label for case in cases if case.label], advance
    )
    n_channels = max(len(modality), len(cases[0].images))
    words = list(modality) or ["unknown"] * n_channels
    return FoundDataset(
        root=root,
        training=cases,
        test=[],
        labels={str(value): name for value, name in enumerate(["background", *names])},
        modality={str(index): word for index, word in enumerate(words)},
        about={"name": root.name or "dataset"},
    )


def _named(folder: Path) -> dict[str, Path]:
    """Path relative to the folder, without ending, to file."""
    named: dict[str, Path] = {}
    for path in find_nifti(folder):
        key = (path.relative_to(folder).parent / nifti_stem(path)).as_posix()
        if key in named:
            raise DataError("two files of one name", path=folder, found=f"{named[key].name}, {path.name}")
        named[key] = path
    return named


def _group(images: dict[str, Path], labels: dict[str, Path], folder: Path) -> dict[str, list[Path]]:
    """Label's name to its image files in the order of the channels."""
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
            f"{len(lonely)} files have no partner of the same name", path=folder, found=some_of(lonely),
            expected="for each image a label of the same name (CASE or CASE_0000, CASE_0001, ...)",
            hint="rename or move these files",
        )  # fmt: skip
    return groups


def _require_equal_channels(cases: Sequence[FoundCase], folder: Path) -> None:
    of_case = {case.id: _channels(case) for case in cases}
    expected = max(of_case.values(), key=len)
    other = [f"{case} has {', '.join(found)}" for case, found in of_case.items() if found != expected]
    if other:
        raise DataError(
            "the cases have different channels", path=folder, found=some_of(other),
            expected=f"{', '.join(expected)} in every case",
        )  # fmt: skip


def _channels(case: FoundCase) -> tuple[str, ...]:
    """The endings that tell the channels; an image that is called as its label is the first."""
    label = nifti_stem(str(case.label))
    stems = [nifti_stem(path) for path in case.images]
    return tuple("0000" if stem == label else stem.removeprefix(f"{label}_") for stem in stems)


def _names_from_values(paths: Sequence[Path], advance: Callable[[], None]) -> list[str]:
    """``label_1``, ``label_2``, ... for the values that occur."""
    values: set[float] = set()
    for path in paths:
        values.update(np.unique(read_volume(read_header(path))).tolist())
        advance()
        if len(values) > 256:
            break
    highest = len(values | {0}) - 1
    if values | {0} != set(range(highest + 1)) or highest == 0:
        raise DataError(
            "the label values do not run 1, 2, 3, ...", path=paths[0].parent,
            found=some_of(f"{value:g}" for value in sorted(values)), expected="whole numbers without gaps",
            hint="change the values in the label maps, or name each value with --label-name",
        )  # fmt: skip
    return [f"label_{value}" for value in range(1, highest + 1)]
