"""What a budget of time buys: spacing, patch, batch, steps and validations, from what a step costs on this machine.

Enough steps come first, then resolution, then context and batch. All of it is arithmetic on measured seconds, so the
same numbers give the same plan on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segpipe.data import Fingerprint
from segpipe.training.budgets import ENOUGH_STEPS
from segpipe.training.config_checks import divisors_of
from segpipe.training.first_stage_rules import foreground_box
from segpipe.training.planning_rules import LARGEST_PATCH, NetworkProfile, resampled_shape
from segpipe.training.step_measurement import Measured, windows_of

PLENTY = 2.0  # times that, and patch and batch grow
FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)  # voxel edges, as multiples of the finest one
SEEN_SHARE = 0.5  # of the foreground's box, along each axis, that a patch holds at least
FEWEST_VOXELS = 200  # of the smallest label in its median case, below which no coarser spacing is tried
MOST_VALIDATIONS, VALIDATION_SHARE = 10, 0.15  # validations cost at most this share of a run, but one is always made
MOST_WATCHED, WATCHED_SHARE = (
    4,
    0.05,
)  # the same where nothing is chosen by them, since the cases are predicted after all
LEAST_TRAINED = (
    0.3  # of a run is training at least, also where the rest then exceeds the budget: else nothing is learnt
)
RESERVE = 0.05  # of the budget, for writing and for what no measurement foresees
PROCESSES_OF_A_PREDICTION = 3  # as long as starting so many trainings take export, prediction and evaluation of a fold
MOST_EPOCHS, FEWEST_STEPS_AN_EPOCH = 40, 10


@dataclass(frozen=True)
class Resolution:
    """Where a training looks: voxel edges (mm), patch (voxels), patches a step, and the median case (voxels)."""

    factor: float
    spacing_mm: list[float]
    patch: list[int]
    batch: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Cases:
    """How many cases a run has.

    Attributes:
        training, validation: cases of one run.
        runs: that share the budget: 1, or one a fold.
        jobs: runs at the same time.
        predicted: whether each validation case is predicted once more after the run.
        cached_share: of the cases that stay in memory.
    """

    training: int
    validation: int
    runs: int = 1
    jobs: int = 1
    predicted: bool = False
    cached_share: float = 1.0

    @property
    def turns(self) -> int:
        """Return how many runs follow one another."""
        return math.ceil(self.runs / self.jobs)


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run, by what takes them, and what they were computed from.

    Attributes:
        startup_s: imports, and building network and trainer.
        loading_s: filling the cache, and preparing the cases that do not fit.
        training_s, validation_s: all steps, all validations.
        prediction_s: of the validation cases after the run, where the folds are pooled.
        total_s: until all runs have ended.
        steps, steps_per_epoch, epochs, validation_interval, runs: what is run.
        step_s, validation_case_s, load_case_s: as measured.
    """

    startup_s: float
    loading_s: float
    training_s: float
    validation_s: float
    prediction_s: float
    total_s: float
    steps: int
    steps_per_epoch: int
    epochs: int
    validation_interval: int
    runs: int
    step_s: float
    validation_case_s: float
    load_case_s: float


def resolutions(
    fingerprint: Fingerprint, spacing_mm: Sequence[float], profile: NetworkProfile, memory_bytes: int
) -> list[Resolution]:
    """Return what is tried, finest first: each with the smallest patch that sees half of the foreground's box.

    Args:
        fingerprint: of the training cases.
        spacing_mm: the finest spacing, the one without a budget.
        profile: of the network.
        memory_bytes: what one training step may use; a spacing whose smallest patch does not fit is left out.
    """
    box_mm = foreground_box(fingerprint)
    smallest_ml = min((ml for ml in fingerprint.summary.median_volume_ml.values() if ml), default=math.inf)
    tried: list[Resolution] = []
    for factor in FACTORS:
        spacing = [round(max(edge, factor * min(spacing_mm)), 4) for edge in spacing_mm]
        if tried and spacing == tried[-1].spacing_mm:
            continue
        if factor > 1 and smallest_ml * 1000 / math.prod(spacing) < FEWEST_VOXELS:
            break
        shape = resampled_shape(fingerprint, spacing)
        divisors, whole = divisors_of(profile.divisor), whole_patch(shape, profile)
        seen = [
            _multiple(max(4 * divisor, SEEN_SHARE * mm / edge), divisor)
            for divisor, mm, edge in zip(divisors, box_mm, spacing, strict=True)
        ]
        patch = [min(most, size) for most, size in zip(whole, seen, strict=True)]
        tried.append(Resolution(factor, spacing, patch, profile.batches[0], shape))
    fitting = [place for place in tried if _fits(place, profile, memory_bytes)]
    if fitting:
        return fitting
    return [replace(tried[-1], patch=profile.smallest)]


def whole_patch(shape: Sequence[int], profile: NetworkProfile) -> list[int]:
    """Return the patch that holds a whole case, or a whole slice: its shape, in multiples that the network takes."""
    divisors = divisors_of(profile.divisor)
    sizes = [max(2 * each, _multiple(size, each)) for size, each in zip(shape, divisors, strict=True)]
    return profile.within_slice(sizes)


def larger(place: Resolution, profile: NetworkProfile, memory_bytes: int) -> list[Resolution]:
    """Return what more time would buy at the same spacing, each costlier than the one before.

    The patch grows along the axis on which it sees the smallest share of the case, then the batch.
    """
    whole = whole_patch(place.shape, profile)
    grown: list[Resolution] = []
    while place.patch != whole:
        share = [patch / most for patch, most in zip(place.patch, whole, strict=True)]
        axis = share.index(min(share))
        patch = list(place.patch)
        patch[axis] += divisors_of(profile.divisor)[axis]
        place = replace(place, patch=patch)
        if not _fits(place, profile, memory_bytes):
            return grown
        grown.append(place)
    while place.batch < profile.batches[1]:
        place = replace(place, batch=place.batch + 1)
        if not _fits(place, profile, memory_bytes):
            break
        grown.append(place)
    return grown


def _fits(place: Resolution, profile: NetworkProfile, memory_bytes: int) -> bool:
    voxels = math.prod(place.patch)
    return voxels <= LARGEST_PATCH and place.batch * voxels * profile.bytes_per_voxel <= memory_bytes


def scaled(measured: Measured, was: Resolution, place: Resolution) -> Measured:
    """Return what a place would cost, by its voxels, from what was measured at another."""
    patches = math.prod(place.patch) / math.prod(was.patch)
    case = math.prod(place.shape) / math.prod(was.shape)
    return replace(
        measured,
        step_s=measured.step_s * patches * place.batch / was.batch,
        window_s=measured.window_s * patches,
        load_case_s=measured.load_case_s * max(1.0, case),  # reading the file stays, whatever the spacing
    )


def estimate(
    measured: Measured,
    place: Resolution,
    fingerprint: Fingerprint,
    cases: Cases,
    startup_s: float,
    seconds: float,
    overlap: float,
) -> Estimate:
    """Lay out the runs that fill the budget: as many steps as fit beside loading, validating and starting.

    Args:
        measured: at that place.
        place: spacing, patch and batch.
        fingerprint: whose cases are validated.
        cases: of each run.
        startup_s: of one run.
        seconds: the budget of all runs.
        overlap: of the windows.
    """
    validation_case_s = measured.window_s * _windows_of_a_case(fingerprint, place, overlap)
    uncached = 1 - cases.cached_share
    fill_s = measured.load_case_s * (cases.training + cases.validation) * cases.cached_share
    once_s = cases.validation * (validation_case_s + uncached * measured.load_case_s)
    predicted_s = 0.0
    if cases.predicted:
        processes_s = PROCESSES_OF_A_PREDICTION * (startup_s + measured.build_s)
        predicted_s = processes_s + cases.validation * (validation_case_s + measured.load_case_s)
    step_s = measured.step_s + uncached * place.batch * measured.load_case_s
    fixed_s = startup_s + measured.build_s + fill_s + predicted_s
    run_s = seconds * (1 - RESERVE) / cases.turns
    most, share = (MOST_WATCHED, WATCHED_SHARE) if cases.predicted else (MOST_VALIDATIONS, VALIDATION_SHARE)
    validations = max(1, min(most, int(share * run_s / max(once_s, 1e-9))))
    steps = max(1, int(max(LEAST_TRAINED * run_s, run_s - fixed_s - validations * once_s) / step_s))
    per_epoch = max(min(FEWEST_STEPS_AN_EPOCH, steps), steps // MOST_EPOCHS)
    epochs = min(MOST_EPOCHS, max(1, steps // per_epoch))
    interval = validation_interval(epochs, validations)
    made = epochs // interval
    training_s, validation_s = epochs * per_epoch * step_s, made * once_s
    return Estimate(
        startup_s=startup_s + measured.build_s,
        loading_s=fill_s + epochs * per_epoch * uncached * place.batch * measured.load_case_s,
        training_s=training_s - epochs * per_epoch * uncached * place.batch * measured.load_case_s,
        validation_s=validation_s,
        prediction_s=predicted_s,
        total_s=cases.turns * (fixed_s + training_s + validation_s),
        steps=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        epochs=epochs,
        validation_interval=interval,
        runs=cases.runs,
        step_s=measured.step_s,
        validation_case_s=validation_case_s,
        load_case_s=measured.load_case_s,
    )


def validation_interval(epochs: int, validations: int) -> int:
    """Return the smallest divisor of the epochs that validates at most so often, so that the last one is validated."""
    return next(step for step in range(1, epochs + 1) if epochs % step == 0 and epochs // step <= max(1, validations))


def choose(
    places: Sequence[Resolution],
    price: Callable[[Resolution], Estimate],
    grow: Callable[[Resolution], Sequence[Resolution]],
) -> Resolution:
    """Take the finest spacing that leaves enough steps, then the largest patch and batch that leave plenty.

    Args:
        places: finest first.
        price: what a place gives and costs.
        grow: what more time buys at a place.
    """
    chosen = next((place for place in places if price(place).steps >= ENOUGH_STEPS), places[-1])
    for place in grow(chosen):
        if price(place).steps < PLENTY * ENOUGH_STEPS:
            break
        chosen = place
    return chosen


def _windows_of_a_case(fingerprint: Fingerprint, place: Resolution, overlap: float) -> float:
    """Return the mean number of windows over the cases."""
    counts = []
    for case in fingerprint.cases:
        extent_mm = np.multiply(case.shape_ras, case.spacing_ras_mm)
        shape = [
            max(1, math.ceil(round(float(mm / edge), 3))) for mm, edge in zip(extent_mm, place.spacing_mm, strict=True)
        ]
        counts.append(windows_of(shape, place.patch, overlap))
    return float(np.mean(counts))


def _multiple(size: float, divisor: int) -> int:
    return divisor * math.ceil(size / divisor)
