"""The layout of the Medical Segmentation Decathlon: a ``dataset.json`` that lists every file.

Source: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.importers.found import FoundCase, FoundDataset, channel_names, label_names, require_files
from pipeline.manifest import nifti_stem


def read_decathlon(source: Path) -> FoundDataset:
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
            "not a Decathlon dataset.json", path=path,
            expected='an object with a list "training" and, where there is one, a list "test"',
        )  # fmt: skip
    training = [_case(entry, "training", path) for entry in listed[0] or []]
    test = [_case(entry, "test", path) for entry in listed[1] or []]
    require_files(path.parent, [*training, *test], path)
    return FoundDataset(
        root=path.parent,
        training=training,
        test=test,
        labels=label_names(document.get("labels"), path),
        modality=channel_names(document.get("modality") or document.get("channel_names"), path),
        about=descriptive_fields(document),
    )


def descriptive_fields(document: dict[str, Any]) -> dict[str, str]:
    """Name, description, reference and licence of a ``dataset.json``, as far as it has them."""
    said = {
        "name": document.get("name"),
        "description": document.get("description"),
        "reference": document.get("reference"),
        "licence": document.get("licence") or document.get("license"),
    }
    return {name: str(value) for name, value in said.items() if value}


def _case(entry: Any, section: str, path: Path) -> FoundCase:
    parts = {"image": entry} if isinstance(entry, str) else entry
    images = parts.get("image") if isinstance(parts, dict) else None
    images = [images] if isinstance(images, str) else images
    label = parts.get("label") if isinstance(parts, dict) else None
    usable = isinstance(images, list) and bool(images) and all(isinstance(image, str) for image in images)
    if not usable or not (label is None or isinstance(label, str)) or (section == "training" and not label):
        raise DataError(
            f"an entry of {section!r} cannot be read", path=path, found=repr(entry)[:200],
            expected='{"image": PATH, "label": PATH}' + (" or PATH" if section == "test" else ""),
        )  # fmt: skip
    patient = parts.get("patient_id")
    images = [_clean(image) for image in images or []]
    return FoundCase(
        nifti_stem(images[0]), images, _clean(label) if label else None, str(patient) if patient else None
    )


def _clean(path: str) -> str:
    return str(PurePosixPath(path))
