"""The raw layout of nnU-Net, version 2 (``channel_names``, name to value) and version 1 (Decathlon's words).

    imagesTr/CASE_0000.nii.gz  CASE_0001.nii.gz ...   one file a channel
    labelsTr/CASE.nii.gz
    imagesTs/, labelsTs/                              where there are any

Source: nnU-Net's documentation of its dataset format; Isensee et al., Nature Methods 18, 203 (2021).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, UsageError
from pipeline.files import read_json
from pipeline.importers.decathlon import descriptive_fields
from pipeline.importers.found import (
    CHANNEL_SUFFIX,
    FoundCase,
    FoundDataset,
    channel_names,
    label_names,
    some_of,
)
from pipeline.nifti import find_nifti

ENDINGS = (".nii.gz", ".nii")


def read_nnunet(source: Path) -> FoundDataset:
    """Read an nnU-Net raw folder, or its ``dataset.json``.

    Raises:
        UsageError: no such file or folder.
        DataError: regions, an ignore label, a format other than NIfTI, channels or labels missing.
    """
    path = source / "dataset.json" if source.is_dir() else source
    document = read_json(path, "dataset.json")
    if not isinstance(document, dict):
        raise DataError("not an nnU-Net dataset.json", path=path, found=type(document).__name__)
    ending = str(document.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise DataError("files of this kind are not read here", path=path, found=ending, expected=ENDINGS)
    if "dataset" in document:
        raise DataError(
            'lists of files ("dataset") in dataset.json are not supported', path=path,
            expected="the files themselves in imagesTr and labelsTr",
        )  # fmt: skip
    modality = channel_names(document.get("channel_names") or document.get("modality"), path)
    root = path.parent
    training = _cases(root, "Tr", ending, len(modality))
    if not training:
        raise DataError("there are no training images", path=root / "imagesTr", expected=f"CASE_0000{ending}")
    unlabelled = [case.id for case in training if case.label is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} training cases have no label",
            path=root / "labelsTr",
            found=some_of(unlabelled),
        )
    return FoundDataset(
        root=root,
        training=training,
        test=_cases(root, "Ts", ending, len(modality)),
        labels=label_names(document.get("labels"), path),
        modality=modality,
        about={"name": root.resolve().name, **descriptive_fields(document)},
    )


def looks_like_nnunet(root: Path, document: Any) -> bool:
    """Whether a ``dataset.json`` beside image folders is nnU-Net's rather than the Decathlon's."""
    if not isinstance(document, dict):
        return False
    if "channel_names" in document or "training" not in document:
        return True
    images = root / "imagesTr"
    return (
        images.is_dir()
        and bool(_channels(images, ".nii.gz"))
        and _lists_cases_without_channel(root, document)
    )


def _lists_cases_without_channel(root: Path, document: dict[str, Any]) -> bool:
    listed = document["training"]
    first = listed[0] if isinstance(listed, list) and listed else None
    image = first.get("image") if isinstance(first, dict) else None
    return isinstance(image, str) and not (root / image).exists()


def _channels(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Case to channel to file; files without a channel suffix are left out."""
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in find_nifti(folder) if folder.is_dir() else []:
        match = CHANNEL_SUFFIX.match(path.name.removesuffix(ending)) if path.name.endswith(ending) else None
        if match and path.parent == folder:
            channels[match["case"]][int(match["channel"])] = path
    return channels


def _cases(root: Path, part: str, ending: str, n_channels: int) -> list[FoundCase]:
    folder = root / f"images{part}"
    if part == "Tr" and not folder.is_dir():
        raise UsageError(
            "no such folder", path=folder, hint="name the folder that holds imagesTr and labelsTr"
        )
    cases, expected = [], list(range(n_channels))
    for case, files in sorted(_channels(folder, ending).items()):
        if sorted(files) != expected:
            raise DataError(
                "the channels of a case are not complete", path=folder, case_id=case,
                found=f"channels {sorted(files)}", expected=f"channels {expected}",
            )  # fmt: skip
        images = [files[channel].relative_to(root).as_posix() for channel in expected]
        label = root / f"labels{part}" / f"{case}{ending}"
        cases.append(FoundCase(case, images, label.relative_to(root).as_posix() if label.is_file() else None))
    return cases
