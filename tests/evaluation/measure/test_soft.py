"""Dice of probabilities: published numbers, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segpipe.evaluation.measure.overlap import dice, mean_defined, per_sample
from segpipe.evaluation.measure.probabilities import soft_dice

SIX = 5e-7
SHAPE = (3, 4, 2, 3)
SOFT = hnp.arrays(float, SHAPE, elements=st.floats(0, 1, allow_subnormal=False))
MASK = hnp.arrays(bool, SHAPE)


def test_laplace_smoothing() -> None:
    prediction = [
        [0.38574776, 0.08795848, 0.83927506],
        [0.21592768, 0.44453627, 0.10463644],
        [0.8793516, 0.65118235, 0.5184219],
    ]
    truth = [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert soft_dice(truth, prediction, smooth=1) == pytest.approx(0.64307916, abs=SIX)
    assert soft_dice(truth, prediction) == pytest.approx(0.59916145, abs=SIX)
    assert (np.array(truth) * prediction).sum() == pytest.approx(2.4347036, abs=SIX)


PREDICTION, TRUTH = [[0.2, 0.5], [0.3, 0.1], [0.9, 0.6]], [[0, 1], [1, 0], [0, 1]]
MINDSPORE = {"squared": True, "smooth": 1e-5, "smooth_above": 0}


def test_squared_and_pooled_which_mindspore_divides_by_the_samples() -> None:
    pooled = soft_dice(TRUTH, PREDICTION, **MINDSPORE)
    assert pooled == pytest.approx(0.614033, abs=1e-6)  # published cut, not rounded
    assert pooled / len(TRUTH) == pytest.approx(0.20467791713802546, abs=SIX)
    assert 1 - pooled / len(TRUTH) == pytest.approx(0.7953220862819745, abs=SIX)


def test_multi_class_pooled() -> None:
    scores = np.exp(PREDICTION) / np.exp(PREDICTION).sum(1, keepdims=True)
    by_class = [soft_dice(np.array(TRUTH)[:, c], scores[:, c], **MINDSPORE) for c in range(2)]
    assert by_class == pytest.approx([0.6064087, 0.7369896], abs=SIX)
    assert np.mean([1 - each / len(TRUTH) for each in by_class]) == pytest.approx(0.7761003, abs=SIX)


def test_per_sample_is_the_mean_of_the_samples() -> None:
    alone = per_sample(soft_dice, TRUTH, PREDICTION)
    assert alone == pytest.approx([2 * 0.5 / 1.7, 2 * 0.3 / 1.4, 2 * 0.6 / 2.5])
    assert mean_defined([*alone, None]) == pytest.approx(np.mean(alone)) and mean_defined([None]) is None
    with pytest.raises(ValueError, match=r"argument 2|shorter|longer"):
        per_sample(soft_dice, TRUTH, PREDICTION[:2])


@pytest.mark.parametrize("squared", [False, True])
def test_empty_full_and_one_voxel(squared: bool) -> None:
    empty, full, one = np.zeros((3, 3, 3)), np.ones((3, 3, 3)), np.zeros((3, 3, 3))
    one[0, 0, 0] = 1
    assert soft_dice(empty, empty, squared) is None
    assert soft_dice(empty, empty, squared, smooth=1) == 1
    assert soft_dice(empty, one, squared) == soft_dice(one, empty, squared) == 0
    assert soft_dice(full, full, squared) == soft_dice(one, one, squared) == 1
    assert soft_dice(full, full / 2, squared) == (0.8 if squared else pytest.approx(2 / 3))
    with pytest.raises(ValueError, match="different shapes"):
        soft_dice(full, full[:2], squared)


@given(MASK, SOFT, st.booleans(), st.floats(0, 5))
def test_range_symmetry_and_order(truth, prediction, squared, smooth) -> None:
    value = soft_dice(truth, prediction, squared, smooth)
    if value is None:
        sizes = prediction * prediction if squared else prediction  # the square of a tiny one is 0
        assert not truth.any() and not sizes.any() and not smooth
        return
    assert 0 <= value <= 1 + 1e-12
    assert value == pytest.approx(soft_dice(prediction, truth, squared, smooth))
    order = np.random.default_rng(0).permutation(truth.size)
    shuffled = soft_dice(truth.ravel()[order], prediction.ravel()[order], squared, smooth)
    assert value == pytest.approx(shuffled, rel=1e-9)


@given(MASK, MASK, st.booleans())
def test_on_masks_it_is_dice(truth, prediction, squared) -> None:
    assert soft_dice(truth, prediction, squared) == dice(truth, prediction)
    assert per_sample(soft_dice, truth, prediction, squared=squared) == per_sample(dice, truth, prediction)
