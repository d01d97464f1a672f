"""Which cases can be looked at, and which files of each: of a result folder, of one case in it, or of a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segpipe.common.console import some_of
from segpipe.common.files import read_json
from segpipe.common.image_names import is_image
from segpipe.common.result_folder import (
    ENTROPY,
    MAPPING,
    NOT_ASKED_FOR,
    OVERLAY,
    RESULT,
    SEGMENTATION,
    STATE,
    find_segmentation,
    read_lines,
    result_root,
)
from segpipe.common.result_records import ResultRecord, checked
from segpipe.data import CASE_ID, Manifest, data_root, load_manifest
from segpipe.errors import SegpipeError, UsageError
from segpipe.reporting import remarks

NATS = "nat"  # of an entropy


@dataclass(frozen=True)
class LayerFile:
    """A file that is shown over the image.

    Attributes:
        name: ``prediction``, ``truth``, ``earlier`` or ``entropy``.
        path: of a label map, of masks (X, Y, Z, C) of regions, or of numbers.
        names: value to name of each label, or number to name of each region; empty for numbers.
        unit: of numbers.
        sha256: of the file as it was written, where that was recorded.
    """

    name: str
    path: Path
    names: Mapping[int, str] = field(default_factory=dict)
    unit: str = ""
    sha256: str | None = None


@dataclass(frozen=True)
class ViewedCase:
    """The files of a case.

    Attributes:
        id: its name, the only one that a page shows.
        images: a file a channel, or all files of a DICOM series and its further channels; empty where unknown.
        layers: what is shown over the image.
        channels: a name for each channel, as far as known.
        units: of the values of each channel, as far as known.
        registered: whether somebody says that files on different grids lie in one space.
        image_sha256: of the images as they were read, as far as that was recorded.
        picture: PNG that is shown where volumes cannot be.
        remarks: what is odd about the case, in words.
        labels: value to name of those that it can have, whether or not there is a label map; empty where unknown.
    """

    id: str
    images: tuple[Path, ...] = ()
    layers: tuple[LayerFile, ...] = ()
    channels: tuple[str, ...] = ()
    units: Mapping[int, str] = field(default_factory=dict)
    registered: bool = False
    image_sha256: tuple[str, ...] = ()
    picture: Path | None = None
    remarks: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_dicom(self) -> bool:
        """Return whether the image is a DICOM series."""
        return bool(self.images) and not is_image(self.images[0])


def find_viewed(
    path: Path,
    *,
    truth: Path | None = None,
    earlier: Path | None = None,
    data: Path | None = None,
    only: Sequence[str] = (),
) -> list[ViewedCase]:
    """Return the cases that a path means, sorted by id as they are listed.

    Args:
        path: a folder that `segpipe predict` wrote, a case's folder in it, or a manifest.
        truth: a manifest, or a folder of label maps, with true labels of the same case ids.
        earlier: a folder of label maps to compare with, such as an earlier prediction.
        data: folder that a manifest's paths start from.
        only: ids; none for all.

    Raises:
        UsageError: nothing of these is there, or no case has one of the ids.
        DataError: a manifest that is none.
    """
    if path.is_file():
        cases = cases_of_manifest(path, data)
    elif (path / RESULT).is_file():
        cases, only = cases_of_results(result_root(path)), (*only, path.resolve().name)
    elif path.is_dir():
        cases = cases_of_results(path)
    else:
        raise UsageError("no such file or folder", path=path, hint="name a folder that `segpipe predict` wrote")
    if not cases:
        raise UsageError(
            "there is no case to look at", path=path, expected="results of `segpipe predict`, or a manifest with cases"
        )
    missing = sorted({*only} - {case.id for case in cases})
    if missing:
        raise UsageError("no such case", path=path, found=some_of(missing), expected=some_of(case.id for case in cases))
    cases = [case for case in cases if not only or case.id in only]
    if truth is not None:
        cases = _beside(cases, "truth", _truths(truth, data, cases))
    if earlier is not None:
        cases = _beside(cases, "earlier", _folder_of_labels(earlier, "earlier", cases))
    return cases


def cases_of_results(root: Path, labels: Mapping[int, str] | None = None) -> list[ViewedCase]:
    """Return the finished cases of a result folder, sorted by id.

    Args:
        root: of the folder.
        labels: value to name, for results that do not say it themselves; None where nobody knows.

    Raises:
        UsageError: the folder's files cannot be read.
    """
    sources = _sources(root)
    folders = sorted(path.parent for path in root.glob(f"*/{RESULT}") if CASE_ID.match(path.parent.name))
    return [_of_result(folder, sources.get(folder.name, {}), labels or {}) for folder in folders]


def _sources(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return the line of each case in ``mapping.jsonl``; none to others than its owner, who see no images."""
    try:
        lines = list(read_lines(root / MAPPING))
    except UsageError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return {}
    known = [line for line in lines if isinstance(line, dict) and "refused" not in line]
    return {line["id"]: line for line in known if isinstance(line.get("id"), str)}


def _of_result(folder: Path, source: Mapping[str, Any], labels: Mapping[int, str]) -> ViewedCase:
    try:
        result = read_json(folder / RESULT)
        checked(ResultRecord, result, folder / RESULT)
    except SegpipeError:
        result = {}
    named = {value: name for name, value in (result.get("labels") or {}).items() if value} or dict(labels)
    hashes = result.get("sha256") or {}
    layers = [
        LayerFile(name, folder / file, names, unit, hashes.get(file))
        for name, file, names, unit in (("prediction", SEGMENTATION, named, ""), ("entropy", ENTROPY, {}, NATS))
        if (folder / file).is_file()
    ]
    listed = source.get("paths")
    paths = [path for path in listed if isinstance(path, str)] if isinstance(listed, list) else []
    picture = folder / OVERLAY
    return ViewedCase(
        folder.name,
        tuple(Path(path) for path in paths),
        tuple(layers),
        registered=True,  # a batch takes files on different grids only where somebody said so
        image_sha256=tuple(result.get("source_sha256") or ()),
        picture=picture if picture.is_file() else None,
        remarks=_remarks(result),
    )


def _remarks(result: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(words for words in remarks(result) if not words.endswith(NOT_ASKED_FOR))
    except (AttributeError, TypeError):  # no result of ours
        return ()


def cases_of_manifest(path: Path, data: Path | None = None) -> list[ViewedCase]:
    """Return the cases of a manifest with their true labels, in its order.

    Raises:
        UsageError: no such file or data folder.
        DataError: it is no manifest.
    """
    manifest, base = load_manifest(path), data_root(path, data)
    return [
        ViewedCase(
            case.id,
            tuple(base / image for image in case.images),
            () if case.label is None else (_truth_of(manifest, base / case.label),),
            channels=tuple(manifest.channels),
            units={int(index): unit for index, unit in (manifest.units or {}).items()},
            registered=bool(case.registered),
            remarks=tuple(case.notes or ()),
            labels=_labels_of(manifest),
        )
        for case in manifest.cases()
    ]


def _truth_of(manifest: Manifest, label: Path) -> LayerFile:
    return LayerFile("truth", label, _labels_of(manifest))


def _labels_of(manifest: Manifest) -> dict[int, str]:
    ignored = {} if manifest.ignore_label is None else {manifest.ignore_label: "ignored"}
    return {**manifest.foreground, **ignored}


def _truths(truth: Path, data: Path | None, cases: Sequence[ViewedCase]) -> dict[str, LayerFile]:
    if truth.is_dir():
        return _folder_of_labels(truth, "truth", cases)
    found = {case.id: case.layers[0] for case in cases_of_manifest(truth, data) if case.layers}
    if not found.keys() & {case.id for case in cases}:
        raise UsageError(
            "the manifest has no true labels of these cases",
            path=truth,
            found=some_of(found) or "no case with a label",
            expected=some_of(case.id for case in cases),
        )
    return found


def _folder_of_labels(folder: Path, name: str, cases: Sequence[ViewedCase]) -> dict[str, LayerFile]:
    """Return a label map of each case, with the names that the case's own labels have, where its folder says none."""
    if not folder.is_dir():
        raise UsageError("no such folder of label maps", path=folder, hint="check the path")
    own = {case.id: case for case in cases_of_results(folder)} if (folder / STATE).is_file() else {}
    found = {}
    for case in cases:
        path = find_segmentation(folder, case.id)
        if path is not None:
            names = next((layer.names for layer in (*_layers(own, case.id), *case.layers) if layer.names), {})
            found[case.id] = LayerFile(name, path, names)
    if not found:
        raise UsageError(
            "the folder has no label map of these cases",
            path=folder,
            expected=f"<case id>/{SEGMENTATION} or <case id>.nii.gz of {some_of(case.id for case in cases)}",
        )
    return found


def _layers(cases: Mapping[str, ViewedCase], case_id: str) -> tuple[LayerFile, ...]:
    return cases[case_id].layers if case_id in cases else ()


def _beside(cases: Sequence[ViewedCase], name: str, found: Mapping[str, LayerFile]) -> list[ViewedCase]:
    """Return the cases with a further layer each, where there is one; one of the same name is replaced."""
    return [
        replace(
            case, layers=(*(layer for layer in case.layers if layer.name != name), replace(found[case.id], name=name))
        )
        if case.id in found
        else case
        for case in cases
    ]
