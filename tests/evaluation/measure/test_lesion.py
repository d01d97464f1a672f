"""Lesions by hand, and against a plain loop over SciPy's components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from segpipe.evaluation.measure.lesion import lesion_dice, lesion_f1, match_lesions
from segpipe.evaluation.measure.overlap import dice

MASKS = hnp.arrays(bool, (7, 6, 5), elements=st.sampled_from([True, False, False, False]))
RANK = {6: 1, 18: 2, 26: 3}


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A mask of one row of twenty voxels, with runs of start and length."""
    mask = np.zeros((20, 1, 1), bool)
    for start, length in runs:
        mask[start : start + length] = True
    return mask


def by_loop(truth: np.ndarray, prediction: np.ndarray, connectivity: int) -> tuple[list[float], int, int]:
    structure = ndimage.generate_binary_structure(3, RANK[connectivity])
    ours, n = ndimage.label(truth, structure)
    theirs, m = ndimage.label(prediction, structure)
    found, used = [], set()
    for lesion in range(1, n + 1):
        touching = set(theirs[ours == lesion]) - {0}
        used |= touching
        if touching:
            found.append(dice(ours == lesion, np.isin(theirs, list(touching))))
    return found, n - len(found), m - len(used)


@pytest.mark.parametrize("axis", range(3))
def test_a_line_of_voxels(axis: int) -> None:
    shape = np.ones(3, int)
    shape[axis] = 3
    truth = np.array([True, False, True]).reshape(shape)
    assert match_lesions(truth, truth).found == (1.0, 1.0)
    assert (match_lesions(truth, ~truth).missed, match_lesions(truth, ~truth).false) == (2, 1)


def test_found_missed_and_false() -> None:
    truth, prediction = row((0, 4), (8, 2), (14, 2)), row((2, 4), (14, 2), (18, 1))
    lesions = match_lesions(truth, prediction)
    assert lesions.found == (0.5, 1.0) and (lesions.missed, lesions.false) == (1, 1)
    assert lesion_f1(truth, prediction) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert lesion_dice(truth, prediction) == pytest.approx(1.5 / 4)


def test_one_that_covers_two_and_two_that_find_one() -> None:
    truth, bridge = row((0, 3), (5, 3)), row((0, 8))
    assert match_lesions(truth, bridge).found == pytest.approx((6 / 11, 6 / 11))
    assert lesion_f1(truth, bridge) == 1
    assert match_lesions(bridge, truth).found == pytest.approx((12 / 14,))
    assert lesion_f1(bridge, truth) == 1
    assert lesion_f1(truth, bridge, iou_threshold=0.3) == pytest.approx(2 / 3)  # one pair, one truth left
    assert lesion_f1(bridge, truth, iou_threshold=0.3) == pytest.approx(2 / 3)


def test_pairs_go_by_iou_and_not_by_order() -> None:
    truth, prediction = row((0, 4), (6, 6)), row((3, 8))
    lesions = match_lesions(truth, prediction, iou_threshold=0.05)
    assert lesions.found == pytest.approx((2 * 5 / 14,)) and (lesions.missed, lesions.false) == (1, 0)
    assert match_lesions(truth, prediction, iou_threshold=5 / 9).found == lesions.found
    assert match_lesions(truth, prediction, iou_threshold=0.56).found == ()


def test_corners_join_by_default() -> None:
    diagonal = np.zeros((3, 3, 3), bool)
    diagonal[(0, 1, 2), (0, 1, 2), (0, 1, 2)] = True
    one = np.zeros_like(diagonal)
    one[0, 0, 0] = True
    assert match_lesions(diagonal, one).missed == 0
    assert match_lesions(diagonal, one, connectivity=6).missed == 2


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_empty_full_and_one_voxel(threshold: float | None) -> None:
    empty, full, one = np.zeros((3, 3, 3)), np.ones((3, 3, 3)), np.zeros((3, 3, 3))
    one[1, 1, 1] = 1
    for function in (lesion_f1, lesion_dice):
        assert function(empty, empty, iou_threshold=threshold) is None
        for some in (one, full):
            assert function(empty, some, iou_threshold=threshold) == 0
            assert function(some, empty, iou_threshold=threshold) == 0
            assert function(some, some, iou_threshold=threshold) == 1
    assert lesion_f1(one, full) == 1 and lesion_f1(one, full, iou_threshold=0.5) == 0
    assert lesion_dice(one, full) == pytest.approx(2 / 28)
    assert lesion_f1(empty[:0], empty[:0]) is None


@pytest.mark.parametrize(
    ("words", "options"), [("connectivity 8", {"connectivity": 8}), ("IoU threshold 0", {"iou_threshold": 0.0})]
)
def test_options_without_sense(words: str, options: dict) -> None:
    with pytest.raises(ValueError, match=words):
        lesion_f1(np.ones((2, 2, 2)), np.ones((2, 2, 2)), **options)
    with pytest.raises(ValueError, match="2 axes"):
        lesion_f1(np.ones((2, 2)), np.ones((2, 2)))


@given(MASKS, MASKS, st.sampled_from([6, 18, 26]))
def test_equals_a_plain_loop(truth, prediction, connectivity) -> None:
    found, missed, false = by_loop(truth, prediction, connectivity)
    lesions = match_lesions(truth, prediction, connectivity)
    assert sorted(lesions.found) == pytest.approx(sorted(found))
    assert (lesions.missed, lesions.false) == (missed, false)


@given(MASKS, MASKS, st.sampled_from([None, 0.1, 0.5, 1.0]))
def test_range_flips_and_symmetry(truth, prediction, threshold) -> None:
    for function in (lesion_f1, lesion_dice):
        value = function(truth, prediction, iou_threshold=threshold)
        assert (value is None) == (not truth.any() and not prediction.any())
        assert value is None or 0 <= value <= 1
        if threshold is not None and threshold >= 0.5:  # pairs are unique: nothing depends on an order
            assert value == pytest.approx(function(prediction, truth, iou_threshold=threshold))
            flipped = function(truth[::-1, :, ::-1], prediction[::-1, :, ::-1], iou_threshold=threshold)
            assert value == pytest.approx(flipped)
    assert lesion_f1(truth, truth, iou_threshold=threshold) in (None, 1)
    assert lesion_dice(truth, truth, iou_threshold=threshold) in (None, pytest.approx(1))
