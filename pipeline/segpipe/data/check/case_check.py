"""What can be wrong with a data set, and everything that one case's own files tell; runs in a worker process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.common.channel_names import masks_of
from segpipe.common.console import digits
from segpipe.common.files import sha256_of
from segpipe.common.nifti import Header, grid_difference, read_header, read_volume, require_3d
from segpipe.common.outliers import Outliers, find_outliers
from segpipe.data.manifest import Case, Manifest
from segpipe.errors import SegpipeError

Severity = Literal["error", "warning"]

KINDS: dict[str, Severity] = {
    "missing_file": "error",
    "unreadable_file": "error",
    "hash_differs": "error",
    "refused_series": "error",
    "not_a_volume": "error",
    "wrong_channels": "error",
    "channel_geometry_differs": "error",
    "label_geometry_differs": "error",
    "not_finite": "error",
    "outlying_voxels": "error",
    "constant_image": "error",
    "fractional_label": "error",
    "unknown_label": "error",
    "label_not_looked_for": "error",
    "nothing_annotated": "error",
    "empty_label": "warning",
    "identical_image": "error",
    "identical_label": "warning",
    "label_turned": "warning",
    "label_not_trained": "warning",
    "patient_in_two_splits": "error",
    "patient_with_unlabelled_test": "warning",
    "outlying_spacing": "warning",
    "outlying_orientation": "warning",
    "single_slice": "warning",
    "series_note": "warning",
    "no_air": "warning",
    "undeclared_padding": "warning",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks wrong, with one case.

    Attributes:
        case_id: the case; the first one where several take part.
        kind: a key of `KINDS`.
        found: what is there; never a path.
        expected: what should be there, where that can be said.
        part: ``image``, ``image 0`` (a channel) or ``label``, where it is about one file.
    """

    case_id: str
    kind: str
    found: str
    expected: str | None = None
    part: str | None = None

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return KINDS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"severity": self.severity, **asdict(self)}


MOST_VALUES = 1000
AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass
class CaseFacts:
    """What was seen of one case.

    Attributes:
        case_id: the case.
        findings: what is wrong with it by itself.
        digests: part to SHA-256 of its voxels, for comparing cases; an empty label has none.
        spacing_mm: voxel edges along the patient's left-right, front-back and head-foot axis.
        orientation: axis codes, e.g. ``RAS``.
        labels: values in its label map; None where there is none that can be read.
    """

    case_id: str
    findings: list[Finding] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    labels: frozenset[int] | None = None

    def add(self, kind: str, found: str, expected: str | None = None, part: str | None = None) -> None:
        """Note a finding of this case."""
        self.findings.append(Finding(self.case_id, kind, found, expected, part))


@dataclass(frozen=True)
class Voxels:
    """One pass over a volume; ``values`` is cut off after `MOST_VALUES`, ``outliers`` are those of each channel."""

    digest: str
    n_not_finite: int
    lowest: float
    highest: float
    values: set[float]
    outliers: tuple[Outliers, ...] = ()


def examine(case: Case, root: Path, manifest: Manifest) -> CaseFacts:
    """Read every file of a case. Never raises for what a file holds.

    Args:
        case: the manifest's entry.
        root: data folder.
        manifest: names the labels and channels; its cases are not needed.
    """
    n_channels = manifest.n_channels
    facts = CaseFacts(case.id)
    parts = ["image"] if len(case.images) == 1 else [f"image {index}" for index in range(len(case.images))]
    masks = masks_of(manifest.channels)
    grids = [
        _image(facts, case, root, path, part, n_channels, is_mask=len(parts) > 1 and index >= len(parts) - masks)
        for index, (path, part) in enumerate(zip(case.images, parts, strict=True))
    ]
    first = next((grid for grid in grids if grid is not None), None)
    if first is not None:
        facts.orientation = first.orientation
        order = np.argsort([AXIS[code] for code in first.orientation])
        facts.spacing_mm = tuple(first.spacing_mm[axis] for axis in order)  # type: ignore[assignment]
        for grid, part in zip(grids, parts, strict=True):
            difference = grid_difference(grid, first) if grid is not None else None
            if difference:
                facts.add("channel_geometry_differs", difference, "the grid of the other channels", part)
    if case.label is not None:
        _label(facts, case, root, case.label, [grid for grid in grids if grid is not None], manifest)
    return facts


def _open(facts: CaseFacts, case: Case, root: Path, path: str, part: str) -> Header | None:
    file = root / path
    if not file.is_file():
        facts.add("missing_file", "no such file", "a NIfTI file", part)
        return None
    try:
        expected = (case.sha256 or {}).get(path)
        if expected and sha256_of(file) != expected:
            facts.add("hash_differs", "other bytes than when imported", f"sha256 {expected[:12]}...", part)
        return read_header(file)
    except SegpipeError as error:
        facts.add("unreadable_file", in_words(error), error.expected, part)
    except Exception as error:  # noqa: BLE001 - whatever one file does, the others are still read
        facts.add("unreadable_file", f"{type(error).__name__}", "a complete NIfTI file", part)
    return None


def _scan(facts: CaseFacts, header: Header, part: str, *, as_label: bool) -> Voxels | None:
    try:
        return pass_over(read_volume(header), collect=as_label)
    except SegpipeError as error:
        facts.add("unreadable_file", in_words(error), error.expected, part)
    except Exception as error:  # noqa: BLE001 - e.g. too little memory
        facts.add("unreadable_file", f"{type(error).__name__}: {error}", "a complete NIfTI file", part)
    return None


def _image(
    facts: CaseFacts, case: Case, root: Path, path: str, part: str, n_channels: int, *, is_mask: bool
) -> Header | None:
    header = _open(facts, case, root, path, part)
    if header is None:
        return None
    stacked = len(case.images) == 1 and n_channels > 1
    grid = replace(header, shape=header.shape[:3]) if stacked and len(header.shape) == 4 else header
    try:
        require_3d(grid)
    except SegpipeError as error:
        facts.add("not_a_volume", error.found or error.message, error.expected, part)
        return None
    channels = header.shape[3] if len(header.shape) == 4 else 1
    if stacked and channels != n_channels:
        facts.add("wrong_channels", f"{channels} channels", f"{n_channels} channels", part)
    voxels = _scan(facts, header, part, as_label=False)
    if voxels is not None:
        judge_image(facts, voxels, part, is_mask)
    return grid


def judge_image(facts: CaseFacts, voxels: Voxels, part: str, is_mask: bool = False) -> None:
    """Note what is wrong with the voxels of an image, whatever kind of file they are from; a mask may be empty."""
    facts.digests[part] = voxels.digest
    if voxels.n_not_finite:
        facts.add("not_finite", f"{voxels.n_not_finite} voxels NaN or infinite", "finite numbers", part)
    elif voxels.lowest == voxels.highest and not is_mask:
        facts.add("constant_image", f"every voxel is {voxels.lowest:g}", "an image", part)
    for outliers in voxels.outliers:
        facts.add("outlying_voxels", str(outliers), "voxels that a scanner can have measured", part)


def _label(facts: CaseFacts, case: Case, root: Path, path: str, channels: Sequence[Header], manifest: Manifest) -> None:
    """Judge the label map; where the channels disagree, it has to be on the grid of one of them."""
    header = _open(facts, case, root, path, "label")
    if header is None:
        return
    try:
        require_3d(header)
    except SegpipeError as error:
        facts.add("not_a_volume", error.found or error.message, error.expected, "label")
        return
    differences = [grid_difference(header, channel) for channel in channels]
    if differences and all(differences):
        facts.add("label_geometry_differs", str(differences[0]), "the grid of the image", "label")
    voxels = _scan(facts, header, "label", as_label=True)
    if voxels is not None:
        _judge_values(facts, voxels, manifest, manifest.annotated(case))


def _judge_values(facts: CaseFacts, voxels: Voxels, manifest: Manifest, annotated: frozenset[int] | None) -> None:
    ignored = set() if manifest.ignore_label is None else {manifest.ignore_label}
    labels = {0, *manifest.foreground, *ignored}
    if voxels.n_not_finite:
        facts.add("not_finite", f"{voxels.n_not_finite} voxels NaN or infinite", "label values", "label")
    fractional = sorted(value for value in voxels.values if value != round(value))
    unknown = sorted(value for value in voxels.values if value == round(value) and value not in labels)
    known = ", ".join(map(str, sorted(labels)))
    facts.labels = frozenset(int(value) for value in voxels.values)
    unasked = set() if annotated is None else (facts.labels & set(manifest.foreground)) - annotated
    if fractional:
        facts.add("fractional_label", _some(fractional), f"whole numbers out of {known}", "label")
    if unknown:
        facts.add("unknown_label", _some(unknown), f"values out of {known}", "label")
    if unasked:
        found, looked_for = (", ".join(map(str, sorted(values))) for values in (unasked, annotated or ()))
        facts.add("label_not_looked_for", found, f"{looked_for} alone, by annotated_labels", "label")
    if ignored and voxels.values == ignored:
        facts.add("nothing_annotated", "every voxel is ignored", "voxels that somebody annotated", "label")
    elif voxels.values <= {0.0, *ignored} and not voxels.n_not_finite:
        facts.add("empty_label", "background alone", "at least one labelled voxel", "label")
    else:
        facts.digests["label"] = voxels.digest


def pass_over(volume: NDArray[np.generic], collect: bool) -> Voxels:
    """Return digest, range and (for labels) values in one pass over the slices, so that no copy is made."""
    digest = hashlib.sha256(str(volume.shape).encode())
    n_not_finite, lowest, highest = 0, np.inf, -np.inf
    values: set[float] = set()
    for index in range(volume.shape[-1]):
        part = np.asarray(volume[..., index], dtype=np.float64)
        digest.update(np.ascontiguousarray(part).tobytes())
        finite = part[np.isfinite(part)]
        n_not_finite += part.size - finite.size
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
        if collect and len(values) < MOST_VALUES:
            values.update(np.unique(finite).tolist())
    outliers = () if collect or n_not_finite else tuple(filter(None, map(find_outliers, _channels(volume))))
    return Voxels(digest.hexdigest(), n_not_finite, lowest, highest, values, outliers)


def _channels(volume: NDArray[np.generic]) -> Sequence[NDArray[np.generic]]:
    return np.moveaxis(volume, 3, 0) if volume.ndim == 4 else [volume]  # type: ignore[return-value]


def in_words(error: SegpipeError) -> str:
    """Return what was wrong, without a path."""
    return f"{error.message}: {error.found}" if error.found else error.message


def _some(values: list[float]) -> str:
    return ", ".join([digits(value) for value in values[:8]] + ["..."] * (len(values) > 8))
