"""What a budget buys, on invented seconds: enough steps first, then resolution, and estimates that add up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from segpipe.data.fingerprint import Fingerprint
from segpipe.errors import UsageError
from segpipe.training.budget_rules import (
    FEWEST_VOXELS,
    Cases,
    Resolution,
    choose,
    estimate,
    larger,
    resolutions,
    scaled,
    validation_interval,
    whole_patch,
)
from segpipe.training.budgets import ENOUGH_STEPS, duration, parse_budget
from segpipe.training.planning_rules import profile_of
from segpipe.training.step_measurement import Measured, windows_of
from tiny_fingerprint import Shape, Triple, made_fingerprint

GB = 10**9
UNET = profile_of("unet", 8)


def scans(shape: Shape, spacing: Triple, box: Triple, ml: float = 100.0) -> Fingerprint:
    return made_fingerprint(*[(shape, spacing)] * 10, box=box, median_ml=ml, modality="CT")


CT = scans((512, 512, 200), (0.8, 0.8, 1.5), (200.0, 150.0, 180.0))
HIPPOCAMPUS = scans((35, 50, 36), (1.0, 1.0, 1.0), (22.0, 40.0, 25.0), ml=1.5)


def seconds_a_voxel(place: Resolution, voxels_a_second: float = 1e6) -> Measured:
    """A machine on which all costs are proportional to voxels."""
    patch, case = math.prod(place.patch), math.prod(place.shape)
    return Measured(place.batch * patch / voxels_a_second, patch / 4 / voxels_a_second, case / 2e7, 1.0, 2)


def planned(fingerprint: Fingerprint, seconds: float) -> Resolution:
    spacing = list(fingerprint.cases[0].spacing_mm)

    def price(place: Resolution):
        return estimate(seconds_a_voxel(place), place, fingerprint, Cases(8, 2), 5.0, seconds, 0.5)

    places = resolutions(fingerprint, spacing, UNET, 8 * GB)
    return choose(places, price, lambda place: larger(place, UNET, 8 * GB))


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("1h30m", 5400), ("90 min", 5400), ("40s", 40), ("1.5 h", 5400), (90, 90)]
)
def test_budgets(text: str | int, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "two hours", "2h and", "-1h", -5, True, "2", float("nan"), "2h30"])
def test_what_is_no_budget(text: object) -> None:
    with pytest.raises(UsageError, match="not a budget of time"):
        parse_budget(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (90, "1 min 30 s"), (120, "2 min"), (7200, "2 h"), (5430, "1 h 30 min"), (3599, "1 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(16, 64)), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_windows_are_as_many_as_monai_lays(axes: list[tuple[int, int]], overlap: float) -> None:
    shape, patch = [max(size, window) for size, window in axes], [window for _, window in axes]
    step = _get_scan_interval(shape, patch, 3, [overlap] * 3)
    assert windows_of(shape, patch, overlap) == len(dense_patch_slices(shape, patch, step))


def test_a_volume_smaller_than_a_window_is_one_window() -> None:
    assert windows_of([10, 10, 10], [16, 16, 16], 0.5) == 1


def test_more_time_buys_resolution_and_then_context() -> None:
    plans = [planned(CT, seconds) for seconds in (120, 600, 3600, 36_000, 360_000)]
    edges = [min(plan.spacing_mm) for plan in plans]
    assert edges == sorted(edges, reverse=True) and edges[0] > edges[-1] == 0.8
    assert plans[0].batch == 2


def test_context_grows_with_the_time() -> None:
    patches = [math.prod(planned(HIPPOCAMPUS, seconds).patch) for seconds in (100, 200, 400)]
    assert patches == sorted(patches) and patches[0] < patches[-1]


def test_a_small_organ_is_taken_whole_at_its_own_spacing() -> None:
    plan = planned(HIPPOCAMPUS, 3600)
    assert (plan.spacing_mm, plan.patch, plan.batch) == ([1.0, 1.0, 1.0], [40, 56, 40], 4)


def test_no_spacing_loses_the_smallest_label() -> None:
    tiny = scans((512, 512, 200), (0.8, 0.8, 1.5), (200.0, 150.0, 180.0), ml=0.5)
    for place in resolutions(tiny, [0.8, 0.8, 1.5], UNET, 8 * GB):
        assert 500 / math.prod(place.spacing_mm) >= FEWEST_VOXELS
    assert planned(tiny, 1).spacing_mm == resolutions(tiny, [0.8, 0.8, 1.5], UNET, 8 * GB)[-1].spacing_mm


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.integers(16, 600)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.sampled_from([8, 16, 32]),
    st.integers(60, 10**5),
)
def test_every_plan_fits_the_network_and_the_memory(shape, spacing, divisor: int, seconds: int) -> None:
    box = tuple(size * edge / 2 for size, edge in zip(shape, spacing, strict=True))
    fingerprint, profile, memory = scans(shape, spacing, box), replace(UNET, divisor=divisor), GB
    for place in resolutions(fingerprint, list(spacing), profile, memory):
        for bigger in [place, *larger(place, profile, memory)]:
            assert all(size % divisor == 0 and size >= 2 * divisor for size in bigger.patch)
            assert bigger.batch * math.prod(bigger.patch) * profile.bytes_per_voxel <= memory
            whole = whole_patch(place.shape, profile)
            assert all(size <= most for size, most in zip(bigger.patch, whole, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1e-3, 5),
    st.floats(1e-3, 2),
    st.floats(1e-3, 20),
    st.integers(30, 10**5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_what_is_planned_fits_the_budget_where_anything_does(step, window, load, seconds, runs, jobs, cached) -> None:
    place = Resolution(1.0, [1.0, 1.0, 1.0], [40, 56, 40], 2, (35, 50, 36))
    cases = Cases(8, 2, runs, jobs, predicted=runs > 1, cached_share=cached)
    turns = -(-runs // jobs)
    spent = estimate(Measured(step, window, load, 1.0, 2), place, HIPPOCAMPUS, cases, 5.0, seconds, 0.5)
    assert spent.epochs * spent.steps_per_epoch == spent.steps
    assert spent.epochs % spent.validation_interval == 0
    parts = spent.startup_s + spent.loading_s + spent.training_s + spent.validation_s + spent.prediction_s
    assert spent.total_s == pytest.approx(turns * parts)
    if spent.steps > 1:
        least_s = 0.3 * 0.95 * seconds / turns  # of training, come what may
        assert spent.total_s <= seconds or spent.training_s + spent.loading_s <= least_s + load * (8 + 2) * cached
    if spent.steps > ENOUGH_STEPS:
        assert spent.total_s >= 0.75 * seconds  # and it is used


def test_costs_follow_the_voxels() -> None:
    places = resolutions(CT, [0.8, 0.8, 1.5], UNET, 8 * GB)
    for place in places[1:]:
        predicted = scaled(seconds_a_voxel(places[0]), places[0], place)
        truth = seconds_a_voxel(place)
        assert (predicted.step_s, predicted.window_s) == pytest.approx((truth.step_s, truth.window_s))
        assert predicted.load_case_s == seconds_a_voxel(places[0]).load_case_s


@pytest.mark.parametrize(("epochs", "most", "interval"), [(40, 10, 4), (39, 10, 13), (7, 3, 7), (1, 5, 1), (12, 1, 12)])
def test_the_last_epoch_is_validated(epochs: int, most: int, interval: int) -> None:
    assert validation_interval(epochs, most) == interval


def test_where_nothing_is_chosen_by_validating_it_is_done_rarely() -> None:
    place = Resolution(1.0, [1.0, 1.0, 1.0], [40, 56, 40], 2, (35, 50, 36))
    measured = Measured(0.1, 1.0, 0.1, 1.0, 2)
    alone = estimate(measured, place, HIPPOCAMPUS, Cases(8, 2), 5.0, 600.0, 0.5)
    fold = estimate(measured, place, HIPPOCAMPUS, Cases(8, 2, predicted=True), 5.0, 600.0, 0.5)
    assert alone.epochs // alone.validation_interval > fold.epochs // fold.validation_interval
    assert fold.validation_s <= 0.05 * 600 and alone.validation_s <= 0.15 * 600
