"""Means, intervals and what is counted."""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.evaluation.statistics import bootstrap_mean


def test_mean_median_and_what_is_left_out() -> None:
    estimate = bootstrap_mean([1.0, None, 0.5, 0.9], ["a", "b", "c", "d"])
    assert estimate.mean == pytest.approx(0.8) and estimate.median == 0.9 and estimate.n == 3
    assert estimate.low is not None and estimate.high is not None
    assert 0.5 <= estimate.low < 0.8 < estimate.high <= 1


def test_nothing_and_one_patient_have_no_interval() -> None:
    assert bootstrap_mean([None], ["a"]) == bootstrap_mean([], [])
    one = bootstrap_mean([0.2, 0.4], ["a", "a"])
    assert (one.mean, one.low, one.high) == (pytest.approx(0.3), None, None)


def test_patients_are_drawn_and_not_cases() -> None:
    """Two equal cases a patient: as wide as with one case a patient, not narrower."""
    rng = np.random.default_rng(0)
    values = rng.random(20).tolist()
    single = bootstrap_mean(values, [str(i) for i in range(20)])
    twice = bootstrap_mean(values * 2, [str(i) for i in range(20)] * 2)
    assert (twice.low, twice.high) == (pytest.approx(single.low), pytest.approx(single.high))


def test_interval_is_near_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 200).tolist()
    groups = [str(i) for i in range(200)]
    estimate = bootstrap_mean(values, groups, seed=5)
    half = 1.96 * np.std(values) / np.sqrt(200)
    assert estimate.low == pytest.approx(np.mean(values) - half, abs=0.002)
    assert estimate.high == pytest.approx(np.mean(values) + half, abs=0.002)
    assert estimate == bootstrap_mean(values, groups, seed=5)
    assert estimate != bootstrap_mean(values, groups, seed=6)


def test_unequal_patients_by_exact_enumeration() -> None:
    """Two patients, three cases and one: four equally likely draws."""
    estimate = bootstrap_mean([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"], n_bootstrap=4000)
    assert estimate.mean == 0.25
    assert (estimate.low, estimate.high) == (0.0, 1.0)
