"""Measure cases: read truth and prediction, compare their grids, measure every label, in one process or several.

A case that cannot be measured becomes a result with its reason; it never ends the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.folder_walk import find_images
from segpipe.common.nifti import Header, grid_difference, read_header, read_volume, require_3d
from segpipe.common.processes import MOST_WORKERS, Progress, over_cases, usable_cores
from segpipe.common.result_folder import PROBABILITIES, STATE, find_probabilities, find_segmentation
from segpipe.data import Case, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.evaluation.made_by import Origin, origin_of
from segpipe.evaluation.measure import (
    Calibration,
    LabelMeasure,
    Targets,
    calibrate_labels,
    measure_case,
    without_prediction,
)
from segpipe.evaluation.postprocessing import Trial, try_rules

LabelMap = NDArray[np.uint8]
NO_PREDICTION = "no prediction"
VOXELS_WORTH_A_WORKER = 50_000_000  # below this, starting a process takes longer than the work it would share


@dataclass(frozen=True)
class Job:
    """What a worker needs for one case; everything in it can be pickled.

    Attributes:
        id: the case.
        group: its patient, for the bootstrap alone.
        truth: file of the label map.
        prediction: file of the prediction, None where there is none.
        labels: value to name, without background; of regions their number.
        targets: what of the truth is measured; None: each of the labels, everywhere.
        tolerance_mm: for NSD.
        rules: also try clean-up rules on the prediction.
        probabilities: file of the probabilities, where they were kept.
    """

    id: str
    group: str
    truth: Path
    prediction: Path | None
    labels: dict[int, str]
    tolerance_mm: float = 1.0
    rules: bool = False
    probabilities: Path | None = None
    targets: Targets | None = None

    @property
    def measured(self) -> Targets:
        """What of the truth is measured."""
        return self.targets or Targets(self.labels)


@dataclass(frozen=True)
class CaseResult:
    """The measures of a case.

    Attributes:
        id: the case.
        group: its patient.
        measures: one a label, in the order of the manifest.
        failure: why it could not be measured; it then counts 0.
        trials: what each clean-up rule does to it, where that was asked for.
        remark: why its probabilities could not be used; it has no calibration error then, and counts in all else.
        origin: what made the prediction; None where there is none.
    """

    id: str
    group: str
    measures: list[LabelMeasure]
    failure: str | None = None
    trials: list[Trial | None] = field(default_factory=list)
    remark: str | None = None
    origin: Origin | None = None

    @property
    def missing(self) -> bool:
        """Whether there was no prediction at all."""
        return self.failure == NO_PREDICTION


def make_jobs(
    manifest: Manifest,
    cases: Sequence[Case],
    data: Path,
    predictions: Path,
    tolerance_mm: float = 1.0,
    rules: bool = False,
) -> list[Job]:
    """Return a job for every case that has a label, with its prediction where there is one.

    Raises:
        UsageError: no case has a label, the data folder holds none of them, or there is no prediction at all.
    """
    labelled = [(case, case.label) for case in cases if case.label is not None]
    if not labelled:
        others = {"test": manifest.test, "training": manifest.training}
        there = [f"--split {split}" for split, some in others.items() if any(case.label for case in some)]
        raise UsageError(
            "no labelled case to evaluate",
            found=f"{len(cases)} cases in this split",
            hint=f"name one that has labels: {' or '.join(there)}" if there else "the manifest has no label map",
        )
    if not any((data / label).is_file() for _, label in labelled):
        raise UsageError("none of the labels is there", path=data, hint="name the data folder with --data")
    if not predictions.is_dir():
        raise UsageError("no such folder of predictions", path=predictions, hint="check the path")
    if not find_images(predictions).images and not (predictions / STATE).is_file():
        raise UsageError(
            "the folder of predictions is empty",
            path=predictions,
            expected="what `segpipe predict` wrote, or <case id>.nii.gz files",
        )
    return [
        Job(
            case.id,
            case.group,
            data / label,
            find_segmentation(predictions, case.id),
            manifest.targets,
            tolerance_mm,
            rules,
            find_probabilities(predictions, case.id),
            targets_of(manifest, case),
        )
        for case, label in labelled
    ]


def targets_of(manifest: Manifest, case: Case) -> Targets:
    """Return what is measured in a case: its regions or labels, without what nobody decided on."""
    regions = [] if manifest.regions is None else list(manifest.regions.values())
    return Targets(manifest.targets, regions, manifest.ignore_label, manifest.annotated(case))


def unused_predictions(predictions: Path, jobs: Sequence[Job]) -> list[str]:
    """Return the label maps in the folder that belong to none of the jobs."""
    used = {job.prediction for job in jobs}
    unused = [path for path in find_images(predictions).images if path not in used and path.name != PROBABILITIES]
    return [path.relative_to(predictions).as_posix() for path in unused]


def evaluate_cases(
    jobs: Sequence[Job], workers: int | None = None, progress: Progress | None = None
) -> list[CaseResult]:
    """Measure all cases, in the order of the jobs. A worker that dies fails its case, not the batch.

    Args:
        jobs: one a case.
        workers: processes; None takes what the work is worth.
        progress: called with the number of cases done and of all.
    """
    return over_cases(evaluate_case, jobs, workers or choose_workers(jobs), _unmeasured, progress=progress)


def choose_workers(jobs: Sequence[Job]) -> int:
    """Return as many processes as the work is worth, at most the machine's cores and four."""
    voxels = 0
    for job in jobs:
        try:
            x, y, z = read_header(job.truth).shape[:3]
            voxels += x * y * z
        except (SegpipeError, ValueError):
            continue  # it fails in its turn, with its reason
    return max(1, min(MOST_WORKERS, usable_cores(), len(jobs), voxels // VOXELS_WORTH_A_WORKER))


def _unmeasured(job: Job) -> CaseResult:
    measures = without_prediction(None, job.labels, None, "failed")
    return CaseResult(job.id, job.group, measures, "the process that measured it died, perhaps for lack of memory")


def evaluate_case(job: Job) -> CaseResult:
    """Measure one case; what is wrong with its files becomes its failure."""
    origin = None if job.prediction is None else origin_of(job.prediction, job.id, job.truth)
    return replace(_measure(job), origin=origin)


def _measure(job: Job) -> CaseResult:
    targets = job.measured
    looked_for = targets.looked_for
    true: LabelMap | None = None
    grid: Header | None = None
    try:
        grid = read_header(job.truth)
        truth = _read_label_map(grid, targets, "truth")
        counted = targets.counted(truth)
        true = targets.masks(truth, counted)
        if job.prediction is None:
            measures = measure_case(true, None, job.labels, grid.affine, looked_for=looked_for)
            return CaseResult(job.id, job.group, measures, NO_PREDICTION)
        prediction = _read_prediction(job.prediction, grid, targets)
    except (SegpipeError, MemoryError) as error:
        affine = None if grid is None else grid.affine
        measures = without_prediction(true, job.labels, affine, "failed", looked_for)
        return CaseResult(job.id, job.group, measures, _reason(error, job))
    calibrations: dict[int, Calibration] = {}
    remark = None
    try:
        if job.probabilities is not None:
            calibrations = _read_calibrations(job.probabilities, true, grid, job, counted)
    except (SegpipeError, MemoryError) as error:
        remark = _reason(error, job)
    measures = measure_case(
        true,
        targets.masks(prediction, counted),
        job.labels,
        grid.affine,
        job.tolerance_mm,
        calibrations,
        None if counted is None else int(np.count_nonzero(counted)),
        looked_for,
    )
    trials: list[Trial | None] = []
    if job.rules:
        whole = targets.masks(prediction, None)  # a rule sees all of it
        trials = try_rules(true, whole, job.labels, grid.affine, counted, looked_for)
    return CaseResult(job.id, job.group, measures, trials=trials, remark=remark)


def _read_prediction(path: Path, grid: Header, targets: Targets) -> LabelMap:
    """Return a prediction on the grid of the truth: a label map, or of regions also a mask for each (R, X, Y, Z).

    Raises:
        DataError: another grid, shape or values.
    """
    header = read_header(path)
    regions = len(targets.regions)
    if len(header.shape) > 3 and not (regions and header.shape[3:] == (regions,)):
        raise DataError(
            "the prediction is not one label map",
            found=f"shape {header.shape}",
            expected=f"three axes, or a fourth of {regions} regions"
            if regions
            else "three axes; of regions that overlap, a manifest with `regions`",
        )
    difference = grid_difference(grid, replace(header, shape=header.shape[:3]))
    if difference is not None:
        raise DataError("the prediction is not on the grid of the truth", found=difference)
    if len(header.shape) == 3:
        return _read_label_map(header, replace(targets, ignore_label=None), "prediction")
    masks = np.moveaxis(read_volume(header), 3, 0)
    binary = masks.astype(np.uint8)
    if not np.array_equal(binary, masks) or binary.max(initial=0) > 1:
        raise DataError("the prediction is not a mask for each region", expected="0 and 1 alone")
    return binary


def _read_label_map(header: Header, targets: Targets, role: str) -> LabelMap:
    """Return the voxels of a label map (X, Y, Z), whose values must all be known.

    Raises:
        DataError: not one volume, fractional values, or values that the manifest does not name.
    """
    require_3d(header)
    values = read_volume(header)
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        numbers: NDArray[Any] = values.astype(np.float64)
        if not np.array_equal(numbers, np.rint(numbers)):  # NaN differs from itself
            raise DataError(f"the {role} has values that are not whole numbers")
        unknown = f"{numbers.min():.0f} to {numbers.max():.0f}"
    else:
        unknown = ", ".join(map(str, sorted(set(np.unique(labels).tolist()) - {0, *known_values(targets)})[:8]))
    if unknown:
        known = ", ".join(map(str, [0, *known_values(targets)]))
        raise DataError(f"the {role} has values that the manifest does not name", found=unknown, expected=known)
    return labels


def known_values(targets: Targets) -> list[int]:
    """Return the values that a label map may have beside background."""
    return sorted(targets.values | (set() if targets.ignore_label is None else {targets.ignore_label}))


def _read_calibrations(
    path: Path, truth: LabelMap, grid: Header, job: Job, counted: NDArray[np.bool_] | None
) -> dict[int, Calibration]:
    """Return the calibration of every label's probabilities.

    Args:
        path: a file (X, Y, Z, C): a channel for every label value with background (softmax), or without (sigmoid).
        truth: label map (X, Y, Z), or masks of regions (regions, X, Y, Z).
        grid: of the truth.
        job: names the labels.
        counted: voxels that count; None for all.

    Raises:
        UsageError: no permission to read it.
        DataError: unreadable, on another grid, another number of channels, or values that are no probabilities.
    """
    header = read_header(path)
    spatial = header.shape[:3]
    difference = grid_difference(grid, replace(header, shape=spatial))
    if len(header.shape) > 4:
        difference = f"shape {header.shape}"
    if difference is not None:
        raise DataError("the probabilities are not on the grid of the truth", found=difference)
    channels = np.moveaxis(read_volume(header).reshape(*spatial, -1), -1, 0)
    try:
        return calibrate_labels(truth, channels, job.labels, within=counted)
    except ValueError as error:
        raise DataError("the probabilities cannot be used", found=str(error)) from error


def _reason(error: Exception, job: Job) -> str:
    """Return an error in one line and without a path: reports carry the case's id alone."""
    if not isinstance(error, SegpipeError):
        return "not enough memory"
    text = error.message
    if error.path is not None and error.path == str(job.truth):
        text = f"truth: {text}"
    if error.found is not None:
        text += f": found {error.found}"
    if error.expected is not None:
        text += f", expected {error.expected}"
    for path in filter(None, (job.truth, job.prediction, job.probabilities)):
        text = text.replace(str(path), job.id).replace(path.name, job.id)
    return text
