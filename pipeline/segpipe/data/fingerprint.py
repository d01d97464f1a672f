"""The fingerprint of a dataset: what its training cases look like, in numbers; ids are the only names in it.

Only the manifest's ``training`` section is read, never ``test``: nothing that is planned from a
fingerprint can have seen a held-out case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.ndimage import find_objects

from segpipe.common.console import digits
from segpipe.common.files import read_json, write_json
from segpipe.common.grids import require_one_grid
from segpipe.common.nifti import Header, read_header, read_volume, read_voxels, require_3d
from segpipe.common.outliers import refuse_outliers
from segpipe.common.processes import Progress, over_cases, workers_to_read
from segpipe.data.manifest import Case, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLES_PER_CASE = 10_000  # foreground voxels pooled per case and channel, as nnU-Net does
BLOCK = 1 << 20  # voxels that are turned into float64 at once
RAS_AXES = ("LR", "PA", "IS")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Intensity(_Model):
    """Intensities of a set of voxels; ``percentiles`` are those of `PERCENTILES`."""

    mean: float
    std: float
    percentiles: tuple[float, float, float, float, float]


class Channel(_Model):
    """One image channel: all voxels, and those inside foreground labels (None where there are none)."""

    dtype: str
    nonzero_fraction: float
    overall: Intensity
    foreground: Intensity | None


class LabelSize(_Model):
    """How much of a case carries a label."""

    voxels: int
    volume_ml: float


class CaseFingerprint(_Model):
    """One case. ``shape``, ``spacing_mm`` and the boxes follow the file's axes, ``*_ras`` those of RAS.

    ``positive_box_mm`` is the extent of what is above 0 in any channel; None where not all labels lie in it, or where
    an earlier version did not look.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    channels: list[Channel]
    labels: dict[str, LabelSize]
    foreground_box_mm: tuple[float, float, float] | None
    positive_box_mm: tuple[float, float, float] | None = None

    @property
    def shape_ras(self) -> tuple[int, int, int]:
        """Voxels along right-left, anterior-posterior and superior-inferior."""
        x, y, z = (self.shape[axis] for axis in self._axes())
        return x, y, z

    @property
    def spacing_ras_mm(self) -> tuple[float, float, float]:
        """Voxel edges along right-left, anterior-posterior and superior-inferior."""
        x, y, z = (self.spacing_mm[axis] for axis in self._axes())
        return x, y, z

    @property
    def foreground_box_ras_mm(self) -> tuple[float, float, float] | None:
        """Extent of all labels along the axes of RAS, in mm; None where the case has none."""
        if self.foreground_box_mm is None:
            return None
        x, y, z = (self.foreground_box_mm[axis] for axis in self._axes())
        return x, y, z

    @property
    def positive_box_ras_mm(self) -> tuple[float, float, float] | None:
        """Extent of what is above 0 along the axes of RAS, in mm, as ``positive_box_mm``."""
        if self.positive_box_mm is None:
            return None
        x, y, z = (self.positive_box_mm[axis] for axis in self._axes())
        return x, y, z

    def _axes(self) -> list[int]:
        return [next(axis for axis, code in enumerate(self.orientation) if code in pair) for pair in RAS_AXES]


class Summary(_Model):
    """The dataset as a whole; shapes and spacings are medians per axis in RAS order.

    ``foreground`` pools up to `SAMPLES_PER_CASE` evenly drawn voxels of each case, per channel.
    """

    cases: int
    median_shape_ras: tuple[float, float, float]
    median_spacing_ras_mm: tuple[float, float, float]
    orientations: dict[str, int]
    foreground: list[Intensity | None]
    median_volume_ml: dict[str, float]


class Fingerprint(_Model):
    """All that `segpipe.training.planning` goes by."""

    schema_version: Literal[1] = 1
    name: str
    modality: list[str]
    summary: Summary
    cases: list[CaseFingerprint]


class Job(NamedTuple):
    """What a worker needs for one case; ``annotated`` are the labels that were looked for in it, None for all."""

    labels: dict[str, str]
    n_channels: int
    root: str
    case: Case
    ignore_label: int | None = None
    annotated: frozenset[int] | None = None


Samples = list[NDArray[np.float32]]


def measure_case(job: Job) -> tuple[CaseFingerprint, Samples]:
    """Measure one case; every error carries its id."""
    try:
        return _measure(job)
    except SegpipeError as error:
        error.case_id = job.case.id
        raise


def _measure(job: Job) -> tuple[CaseFingerprint, Samples]:
    names, root, case = job.labels, Path(job.root), job.case
    grid = read_header(root / str(case.label))
    require_3d(grid)
    label = read_volume(grid)
    counts = _count_labels(label, len(names), grid.path, job.ignore_label)
    foreground = label != 0
    if job.ignore_label is not None:
        foreground &= label != job.ignore_label
    shape = (int(label.shape[0]), int(label.shape[1]), int(label.shape[2]))
    del label  # an image takes its place
    channels, samples, positive = [], [], [np.zeros(size, np.bool_) for size in shape]
    for values, dtype in _read_channels(case, root, job.n_channels, grid):
        _add_positive(positive, values)
        inside = values[foreground]
        step = -(-inside.size // SAMPLES_PER_CASE) or 1
        samples.append(inside[::step].astype(np.float32))
        channels.append(
            Channel(
                dtype=dtype,
                nonzero_fraction=float(np.count_nonzero(values) / values.size),
                overall=intensity_of(values),
                foreground=intensity_of(inside) if inside.size else None,
            )
        )
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    measured = CaseFingerprint(
        id=case.id,
        shape=shape,
        spacing_mm=grid.spacing_mm,
        orientation=grid.orientation,
        channels=channels,
        labels={
            names[str(value)]: LabelSize(voxels=count, volume_ml=count * voxel_ml)
            for value, count in enumerate(counts)
            if value and (job.annotated is None or value in job.annotated)
        },
        foreground_box_mm=_box_mm(find_objects(foreground.view(np.uint8), max_label=1)[0], grid.spacing_mm),
        positive_box_mm=_box_mm(_around(positive, foreground), grid.spacing_mm),
    )
    return measured, samples


def _read_channels(case: Case, root: Path, n_channels: int, grid: Header) -> Iterator[tuple[NDArray[Any], str]]:
    """Yield each channel's voxels (X, Y, Z) and its type on disk, on the label's grid or refused."""
    headers = [read_header(root / name) for name in case.images]
    stacked = len(headers) == 1 < n_channels and headers[0].shape[3:] == (n_channels,)
    for header in () if stacked else headers:
        require_3d(header)
        if len(headers) != n_channels:
            raise DataError(
                "wrong number of channels",
                path=header.path,
                found=f"shape {header.shape}",
                expected=f"{n_channels} channels on the fourth axis",
            )
    require_one_grid(headers, grid)
    for header in headers:
        volume = read_voxels(header)
        for values in np.moveaxis(volume, 3, 0) if stacked else [volume]:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError("the image has values that are not finite", path=header.path)
            refuse_outliers(values, header.path)
            yield values, header.dtype


def _count_labels(label: NDArray[Any], n_labels: int, path: Path, ignored: int | None) -> list[int]:
    if label.dtype.kind in "iu" and label.dtype.itemsize <= 2:
        every, lowest = count_values(label)
        values = np.flatnonzero(every)
        counts, values = every[values], values + lowest
    else:
        values, counts = np.unique(label, return_counts=True)
    unknown = [value.item() for value in values if value not in range(n_labels) and value != ignored]
    if unknown:
        raise DataError(
            "the label map has values that the manifest does not know",
            path=path,
            found=", ".join(map(digits, unknown[:5])),
            expected=f"0 to {n_labels - 1}",
            hint="`segpipe check` lists all of them, and `segpipe import` makes labels of them (--label-values), or "
            "leaves them out (--ignore-label)",
        )
    count_of = dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))
    return [count_of.get(value, 0) for value in range(n_labels)]


def intensity_of(values: NDArray[Any]) -> Intensity:
    """Return mean, deviation and `PERCENTILES` of any values, without a copy of all of them in float64."""
    flat = values.ravel(order="K")
    blocks = [flat[first : first + BLOCK] for first in range(0, flat.size, BLOCK)]
    mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / flat.size
    variance = sum(float(np.square(block - mean, dtype=np.float64).sum()) for block in blocks) / flat.size
    low, five, middle, ninety_five, high = _percentiles(flat)
    return Intensity(mean=mean, std=math.sqrt(variance), percentiles=(low, five, middle, ninety_five, high))


def _percentiles(flat: NDArray[Any]) -> list[float]:
    """Return `PERCENTILES` as `numpy.percentile` has them in float64, from one copy of them at most."""
    places = [share / 100 * (flat.size - 1) for share in PERCENTILES]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    values = dict(zip(ranks, _at_ranks(flat, ranks), strict=True))
    found = []
    for place in places:
        below, above = values[math.floor(place)], values[math.ceil(place)]
        found.append(below + (above - below) * (place - math.floor(place)))
    return found


def _at_ranks(flat: NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """Return the values that stand at these places of the sorted ones; counted where there are few different ones."""
    if flat.dtype.kind in "iu" and flat.dtype.itemsize <= 2:
        counts, lowest = count_values(flat)
        found = np.searchsorted(np.cumsum(counts), ranks, side="right") + lowest
    else:
        found = np.partition(flat, ranks)[list(ranks)]
    return [float(value) for value in found]


def count_values(values: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Count whole numbers of at most 16 bits; returns counts of the lowest possible one on, and that one."""
    bounds, flat = np.iinfo(values.dtype), values.ravel(order="K")
    counts = np.zeros(int(bounds.max) - int(bounds.min) + 1, np.int64)
    for first in range(0, flat.size, BLOCK):
        numbers = flat[first : first + BLOCK].astype(np.int64) - bounds.min
        counts += np.bincount(numbers, minlength=counts.size)
    return counts, int(bounds.min)


def _add_positive(found: list[NDArray[np.bool_]], values: NDArray[Any]) -> None:
    """Mark where along each axis there is a voxel above 0, a slice at a time."""
    along_x, along_y, along_z = found
    for index in range(values.shape[2]):
        above = values[..., index] > 0
        along_x |= above.any(1)
        along_y |= above.any(0)
        along_z[index] |= bool(above.any())


def _around(found: list[NDArray[np.bool_]], foreground: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the box of what was marked along each axis, None where it does not hold all of the foreground."""
    if not all(marks.any() for marks in found):
        return None
    ends = [(int(np.argmax(marks)), int(marks.size - np.argmax(marks[::-1]))) for marks in found]
    labelled = find_objects(foreground.view(np.uint8), max_label=1)[0]
    if labelled is not None and any(
        side.start < first or side.stop > end for side, (first, end) in zip(labelled, ends, strict=True)
    ):
        return None
    return tuple(slice(first, end) for first, end in ends)


def _box_mm(box: tuple[slice, ...] | None, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float] | None:
    if box is None:
        return None
    x, y, z = (float(side.stop - side.start) * edge for side, edge in zip(box, spacing_mm, strict=True))
    return x, y, z


FINGERPRINT = "fingerprint.json"  # in a run, and after the name of a task fragment


def take_fingerprint(
    manifest: Manifest, root: str | Path, workers: int | None = None, progress: Progress | None = None
) -> Fingerprint:
    """Read every training case once, several at a time.

    Args:
        manifest: the dataset.
        root: the folder that its paths start from.
        workers: processes; None takes what the files are worth.
        progress: called with the number of cases read and of all.

    Raises:
        UsageError: there are no training cases, or a file is missing.
        DataError: a file cannot be used; the error names the case.
    """
    if not manifest.training:
        raise UsageError("the manifest has no training cases", hint="add cases with `segpipe import`")
    jobs = [
        Job(manifest.labels, manifest.n_channels, str(root), case, manifest.ignore_label, manifest.annotated(case))
        for case in manifest.training
    ]
    files = [Path(root) / path for case in manifest.training for path in case.paths]
    measured = over_cases(measure_case, jobs, workers or workers_to_read(files), _died, progress=progress)
    cases, samples = [case for case, _ in measured], [sample for _, sample in measured]
    return Fingerprint(
        name=manifest.name,
        modality=manifest.channels,
        summary=_summarise(cases, samples, list(manifest.foreground.values())),
        cases=cases,
    )


def save_fingerprint(fingerprint: Fingerprint, path: str | Path) -> None:
    """Write ``fingerprint.json``, whole or not at all."""
    write_json(path, fingerprint.model_dump(mode="json"))


def fingerprint_path(task: str | Path) -> Path:
    """Return where the fingerprint of a planned task fragment lies: beside it."""
    return Path(task).with_name(f"{Path(task).stem}.{FINGERPRINT}")


def read_fingerprint(path: str | Path) -> Fingerprint | None:
    """Return a saved fingerprint, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    if not Path(path).is_file():
        return None
    try:
        return Fingerprint.model_validate(read_json(path, "fingerprint"))
    except ValidationError as error:
        raise DataError("the fingerprint cannot be read", path=path, found=str(error).splitlines()[0]) from error


def _died(job: Job) -> NoReturn:
    raise DataError(
        "the process that read the case died", case_id=job.case.id, hint="perhaps there is too little memory"
    )


def _summarise(cases: list[CaseFingerprint], samples: list[Samples], labels: list[str]) -> Summary:
    pooled = [np.concatenate(channel).astype(np.float64) for channel in zip(*samples, strict=True)]
    orientations = sorted(case.orientation for case in cases)
    return Summary(
        cases=len(cases),
        median_shape_ras=_median([case.shape_ras for case in cases]),
        median_spacing_ras_mm=_median([case.spacing_ras_mm for case in cases]),
        orientations={code: orientations.count(code) for code in dict.fromkeys(orientations)},
        foreground=[intensity_of(values) if values.size else None for values in pooled],
        median_volume_ml={name: _median_volume(cases, name) for name in labels},
    )


def _median_volume(cases: list[CaseFingerprint], label: str) -> float:
    """Return the median over the cases in which the label was looked for; 0 where it was in none."""
    volumes = [case.labels[label].volume_ml for case in cases if label in case.labels]
    return float(np.median(volumes)) if volumes else 0.0


def _median(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in np.median(rows, axis=0))
    return x, y, z
