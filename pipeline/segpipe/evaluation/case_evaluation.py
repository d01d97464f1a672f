"""What a clean-up rule does to one label of one case.

Calibration of a case's labels, from the probabilities that were kept beside its prediction.

One case: read truth and prediction, compare their grids, measure.

All cases, in one process or several.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.common.nifti import Header, find_nifti, grid_difference, read_header, read_volume, require_3d
from segpipe.common.processes import MOST_WORKERS, over_cases, usable_cores
from segpipe.common.result_folder import PROBABILITIES, STATE, find_probabilities, find_segmentation
from segpipe.data import Case, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.evaluation.measure import (
    Calibration,
    LabelMeasure,
    calibrate_labels,
    dice,
    measure_case,
    volume_ml,
    without_prediction,
)
from segpipe.inference import LabelRule, cleanup_transforms

MIN_VOLUMES_ML = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
"""From specks to a small organ; most labels gain from none of them."""

CANDIDATES = tuple(
    LabelRule(keep_largest, volume) for volume in (None, *MIN_VOLUMES_ML) for keep_largest in (False, True)
)[1:]
"""Simple rules first: of two that do equally well, the earlier is chosen."""


@dataclass(frozen=True)
class Trial:
    """Dice of one label of a case as predicted, and after each of `CANDIDATES`; 1 where both masks are empty."""

    label: int
    before: float
    after: tuple[float, ...]


def try_rules(
    truth: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    labels: Mapping[int, str],
    affine: NDArray[np.float64],
) -> list[Trial]:
    """Dice of every label with every candidate rule.

    A label that is empty in both counts 1 here, so that removing what is not in truth is a gain.
    """
    voxel_ml = volume_ml([True], affine)
    trials = []
    for value in labels:
        true, predicted = truth == value, prediction == value
        before = _score(true, predicted)
        sizes_ml = _component_sizes(predicted) * voxel_ml
        after = tuple(
            _score(true, apply_rule(rule, predicted, affine)) if _changes(rule, sizes_ml, voxel_ml) else before
            for rule in CANDIDATES
        )
        trials.append(Trial(value, before, after))
    return trials


def _component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return np.bincount(components.ravel())[1:]


def _changes(rule: LabelRule, sizes_ml: NDArray[np.floating[Any]], voxel_ml: float) -> bool:
    """Whether a rule could remove anything; most labels are one component, and need no transform."""
    least = None if rule.min_volume_ml is None else rule.min_volume_ml + 2 * voxel_ml  # more than rounding
    return (rule.keep_largest and len(sizes_ml) > 1) or (least is not None and bool((sizes_ml < least).any()))


def apply_rule(rule: LabelRule, mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A mask, not empty, after the very transforms that a bundle would apply."""
    import torch
    from monai.data import MetaTensor

    box = ndimage.find_objects(mask.astype(np.uint8))[0]  # and background around it, without which all is kept
    image = torch.from_numpy(np.pad(mask[box], 1)[None].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image renames an argument that MONAI passes
        item = _transforms(rule)({"pred": MetaTensor(image, affine=torch.from_numpy(affine))})
    cleaned = np.zeros_like(mask)
    cleaned[box] = item["pred"][0, 1:-1, 1:-1, 1:-1].numpy() > 0
    return cleaned


@lru_cache(maxsize=len(CANDIDATES))
def _transforms(rule: LabelRule) -> Callable[[dict[str, Any]], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.bundle import ConfigParser

        steps = cleanup_transforms({1: rule}, n_labels=2)
        parser = ConfigParser({"cleanup": {"_target_": "Compose", "transforms": steps}})
        transforms: Callable[[dict[str, Any]], dict[str, Any]] = parser.get_parsed_content("cleanup")
    return transforms


def _score(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    score = dice(truth, prediction)
    return 1.0 if score is None else score


def read_calibrations(
    path: Path, truth: NDArray[np.uint8], grid: Header, labels: Sequence[int]
) -> dict[int, Calibration]:
    """What the probabilities of every label are worth.

    Args:
        path: a file (X, Y, Z, C): a channel for every label value with background (softmax), or without (sigmoid).
        truth: label map (X, Y, Z).
        grid: of the truth.
        labels: values, without background.

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
        return calibrate_labels(truth, channels, labels)
    except ValueError as error:
        raise DataError("the probabilities cannot be used", found=str(error)) from error


LabelMap = NDArray[np.uint8]
NO_PREDICTION = "no prediction"


@dataclass(frozen=True)
class Job:
    """What a worker needs for one case; everything in it can be pickled.

    Attributes:
        id: the case.
        group: its patient, for the bootstrap alone.
        truth: file of the label map.
        prediction: file of the prediction, None where there is none.
        labels: value to name, without background.
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


@dataclass(frozen=True)
class CaseResult:
    """A case's measures, one a label.

    ``failure`` says why it could not be measured, and it then counts 0. ``remark`` says why its probabilities could not
    be used: it has no calibration error then, and counts as it is in all else.
    """

    id: str
    group: str
    measures: list[LabelMeasure]
    failure: str | None = None
    trials: list[Trial] = field(default_factory=list)
    remark: str | None = None

    @property
    def missing(self) -> bool:
        """Whether there was no prediction at all."""
        return self.failure == NO_PREDICTION


def evaluate_case(job: Job) -> CaseResult:
    """Measure one case; what is wrong with its files becomes its failure."""
    truth: LabelMap | None = None
    header: Header | None = None
    try:
        header = read_header(job.truth)
        truth = _label_map(header, job, "truth")
        if job.prediction is None:
            measures = measure_case(truth, None, job.labels, header.affine)
            return CaseResult(job.id, job.group, measures, NO_PREDICTION)
        predicted = read_header(job.prediction)
        if len(predicted.shape) > 3:
            raise DataError(
                "the prediction is not one label map",
                found=f"shape {predicted.shape}",
                expected="three axes; of regions that overlap, a file for each mask",
            )
        difference = grid_difference(header, predicted)
        if difference is not None:
            raise DataError("the prediction is not on the grid of the truth", found=difference)
        prediction = _label_map(predicted, job, "prediction")
    except (SegpipeError, MemoryError) as error:
        affine = None if header is None else header.affine
        return CaseResult(
            job.id, job.group, without_prediction(truth, job.labels, affine, "failed"), _reason(error, job)
        )
    calibrations, remark = _calibrations(job, truth, header)
    measures = measure_case(truth, prediction, job.labels, header.affine, job.tolerance_mm, calibrations)
    trials = try_rules(truth, prediction, job.labels, header.affine) if job.rules else []
    return CaseResult(job.id, job.group, measures, trials=trials, remark=remark)


def unmeasured(job: Job, reason: str) -> CaseResult:
    """A case whose worker did not come back."""
    return CaseResult(job.id, job.group, without_prediction(None, job.labels, None, "failed"), reason)


def _calibrations(job: Job, truth: LabelMap, header: Header) -> tuple[dict[int, Calibration], str | None]:
    """What the kept probabilities are worth, and why not where they cannot be used."""
    if job.probabilities is None:
        return {}, None
    try:
        return read_calibrations(job.probabilities, truth, header, list(job.labels)), None
    except (SegpipeError, MemoryError) as error:
        return {}, _reason(error, job)


def _label_map(header: Header, job: Job, what: str) -> LabelMap:
    """The voxels of a label map, whose values must all be known.

    Raises:
        DataError: not one volume, fractional values, or values that the manifest does not name.
    """
    require_3d(header)
    values = read_volume(header)
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        return _refuse_values(values, job, what)
    unknown = sorted({int(value) for value in np.unique(labels)} - {0, *job.labels})
    if unknown:
        raise _unknown(what, ", ".join(map(str, unknown[:8])), job)
    return labels


def _refuse_values(values: NDArray[np.generic], job: Job, what: str) -> NoReturn:
    numbers = values.astype(np.float64)
    if not np.array_equal(numbers, np.rint(numbers)):  # NaN differs from itself
        raise DataError(f"the {what} has values that are not whole numbers")
    raise _unknown(what, f"{numbers.min():.0f} to {numbers.max():.0f}", job)


def _unknown(what: str, found: str, job: Job) -> DataError:
    known = ", ".join(map(str, [0, *job.labels]))
    return DataError(f"the {what} has values that the manifest does not name", found=found, expected=known)


def _reason(error: Exception, job: Job) -> str:
    """An error in one line and without a path: reports carry the case's id alone."""
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


VOXELS_WORTH_A_WORKER = 50_000_000  # below this, starting a process takes longer than the work it would share


def make_jobs(
    manifest: Manifest,
    cases: Sequence[Case],
    data: Path,
    predictions: Path,
    tolerance_mm: float = 1.0,
    rules: bool = False,
) -> list[Job]:
    """A job for every case that has a label; where its prediction lies, or that there is none.

    Raises:
        UsageError: no case has a label, the data folder holds none of them, or there is no prediction at all.
    """
    labelled = [(case, case.label) for case in cases if case.label is not None]
    if not labelled:
        raise UsageError(
            "no labelled case to evaluate", found=f"{len(cases)} cases in this split", hint="choose another --split"
        )
    if not any((data / label).is_file() for _, label in labelled):
        raise UsageError("none of the labels is there", path=data, hint="name the data folder with --data")
    if not predictions.is_dir():
        raise UsageError("no such folder of predictions", path=predictions, hint="check the path")
    if not find_nifti(predictions) and not (predictions / STATE).is_file():
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
            manifest.foreground,
            tolerance_mm,
            rules,
            find_probabilities(predictions, case.id),
        )
        for case, label in labelled
    ]


def other_files(predictions: Path, jobs: Sequence[Job]) -> list[str]:
    """Label maps in the folder of predictions that are of none of the jobs: where cases are missing, perhaps they."""
    used = {job.prediction for job in jobs}
    found = [path for path in find_nifti(predictions) if path not in used and path.name != PROBABILITIES]
    return [path.relative_to(predictions).as_posix() for path in found]


def choose_workers(jobs: Sequence[Job]) -> int:
    """As many processes as the work is worth, at most the machine's cores and four."""
    voxels = 0
    for job in jobs:
        try:
            x, y, z = read_header(job.truth).shape[:3]
            voxels += x * y * z
        except (SegpipeError, ValueError):
            continue  # it fails in its turn, with its reason
    return max(1, min(MOST_WORKERS, usable_cores(), len(jobs), voxels // VOXELS_WORTH_A_WORKER))


def evaluate_cases(
    jobs: Sequence[Job], workers: int = 1, on_done: Callable[[], object] = lambda: None
) -> list[CaseResult]:
    """Measure all cases, in the order of the jobs. A worker that dies fails its case, not the batch."""
    return over_cases(evaluate_case, jobs, workers, _died, lambda job: on_done())


def _died(job: Job) -> CaseResult:
    return unmeasured(job, "the process that measured it died, perhaps for lack of memory")
