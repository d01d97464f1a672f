"""One case: read truth and prediction, compare their grids, measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, SegpipeError
from pipeline.evaluate.calibration import read_calibrations
from pipeline.evaluate.trial import Trial, try_rules
from pipeline.measure import Calibration, LabelMeasure, measure_case, without_prediction
from pipeline.nifti import Header, grid_difference, read_header, read_volume, require_3d

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
                "the prediction is not one label map", found=f"shape {predicted.shape}",
                expected="three axes; of regions that overlap, a file for each mask",
            )  # fmt: skip
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
