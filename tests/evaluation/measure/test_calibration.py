"""Expected calibration error by hand, by properties, and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from segpipe.evaluation.measure import probabilities as module
from segpipe.evaluation.measure.probabilities import calibrate, calibrate_labels, expected_calibration_error

SHAPE = (4, 5, 3)
PROBABILITIES = hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))


def test_by_hand() -> None:
    truth, probability = [1, 0, 1, 1], [0.9, 0.95, 0.1, 0.05]
    # two bins: 0.05 and 0.1 are both true, of 0.9 and 0.95 one is
    expected = (abs(2 - 0.15) + abs(1 - 1.85)) / 4
    assert expected_calibration_error(truth, probability, bins=2) == pytest.approx(expected)


def test_bins_are_closed_above() -> None:
    found = calibrate([1, 1, 1, 0], [0.0, 0.5, 1.0, 0.25], bins=2)
    assert found.voxels.tolist() == [3, 1] and found.events.tolist() == [2, 1]
    assert found.probability.tolist() == [0.75, 1.0]


def test_empty_full_one_voxel_and_nothing() -> None:
    ones, zeros = np.ones(SHAPE), np.zeros(SHAPE)
    assert expected_calibration_error(zeros, zeros) == expected_calibration_error(ones, ones) == 0
    assert expected_calibration_error(zeros, ones) == expected_calibration_error(ones, zeros) == 1
    assert expected_calibration_error([1], [0.3]) == pytest.approx(0.7)
    assert expected_calibration_error([], []) is None
    assert expected_calibration_error(ones, ones, within=zeros) is None


def test_within_chooses_voxels() -> None:
    rng = np.random.default_rng(0)
    truth, probability, within = rng.random(SHAPE) > 0.5, rng.random(SHAPE), rng.random(SHAPE) > 0.3
    expected = expected_calibration_error(truth[within], probability[within])
    assert expected_calibration_error(truth, probability, within=within) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        expected_calibration_error([0, 1], [0.5, bad])
    with pytest.raises(ValueError, match="different shapes"):
        expected_calibration_error([0, 1], [0.5])


def test_rounding_of_single_precision_is_taken() -> None:
    assert expected_calibration_error([1, 0], [1 + 1e-6, -1e-6]) == pytest.approx(0, abs=1e-5)


@given(hnp.arrays(bool, SHAPE), PROBABILITIES)
def test_range_blocks_and_sums(truth, probability) -> None:
    whole = calibrate(truth, probability)
    assert whole.error is not None and 0 <= whole.error <= 1
    parts = calibrate(truth[:1], probability[:1]) + calibrate(truth[1:], probability[1:])
    assert parts.error == pytest.approx(whole.error)
    turned = expected_calibration_error(np.asfortranarray(truth), probability.copy())
    assert turned == pytest.approx(whole.error)


def test_large_volumes_go_in_blocks(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    truth, probability = rng.random((9, 4, 5)) > 0.4, rng.random((9, 4, 5), np.float32)
    whole = expected_calibration_error(truth, probability)
    monkeypatch.setattr(module, "VOXELS_AT_ONCE", 41)
    assert expected_calibration_error(truth, probability) == pytest.approx(whole)


@pytest.mark.parametrize("bins", [5, 15])
def test_equals_torchmetrics_off_the_edges_of_bins(bins: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand((2000, 4), generator=generator, dtype=torch.float64).mul(4).softmax(1)
    truth = torch.randint(0, 4, (2000,), generator=generator)
    for label in range(4):
        theirs = binary_calibration_error(scores[:, label].contiguous(), (truth == label).long(), n_bins=bins)
        ours = expected_calibration_error(truth == label, scores[:, label], bins=bins)
        assert ours == pytest.approx(float(theirs), abs=1e-6)
    chosen = multiclass_calibration_error(scores, truth, num_classes=4, n_bins=bins)
    ours = expected_calibration_error(scores.argmax(1) == truth, scores.amax(1), bins=bins)
    assert ours == pytest.approx(float(chosen), abs=1e-6)


def test_channels_with_and_without_background() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, SHAPE)
    scores = rng.random((3, *SHAPE))
    with_background = calibrate_labels(truth, scores, [1, 2])
    without = calibrate_labels(truth, scores[1:], [1, 2])
    for label in (1, 2):
        expected = expected_calibration_error(truth == label, scores[label])
        assert with_background[label].error == without[label].error == pytest.approx(expected)
    with pytest.raises(ValueError, match="4 channels, expected 3, or 2"):
        calibrate_labels(truth, rng.random((4, *SHAPE)), [1, 2])
