"""Measures by hand and by properties; against other implementations in tests/oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segpipe.evaluation import measure
from segpipe.evaluation.measure.case_measures import spacing_mm

MASKS = hnp.arrays(bool, (5, 6, 4))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.75, 1.0, 2.0, 3.0])] * 3)
LABELS = {1: "head", 2: "tail"}


def block(start: tuple[int, int, int], size: tuple[int, int, int], shape=(12, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def test_overlap_by_hand() -> None:
    one, other = block((2, 2, 2), (4, 4, 4)), block((4, 2, 2), (4, 4, 4))
    assert measure.dice(one, other) == 2 * 32 / 128
    assert measure.iou(one, other) == 32 / 96
    assert measure.dice(one.astype(np.uint8), one) == 1


def test_volume_uses_the_determinant() -> None:
    sheared = np.array([[1, 0.5, 0, 9], [0, 2, 0, 9], [0, 0, -3, 9], [0, 0, 0, 1.0]])
    assert measure.volume_ml(block((0, 0, 0), (2, 5, 10)), sheared) == pytest.approx(0.6)
    assert measure.volume_ml(np.zeros((2, 2, 2)), np.eye(4)) == 0


def test_shifted_block_in_mm_and_not_in_voxels() -> None:
    one, other = block((2, 2, 2), (4, 4, 4)), block((4, 2, 2), (4, 4, 4))
    spacing = (5.0, 1.0, 2.0)
    assert measure.hausdorff_mm(one, other, spacing) == 10
    assert measure.hd95_mm(one, other, spacing) == 10
    # Surfaces 1, 2, 3 mm apart at most count within a tolerance by their area alone.
    assert measure.nsd(one, other, spacing, 10) == 1
    assert 0 < measure.nsd(one, other, spacing, 1.0) < 1
    assert 0 < measure.assd_mm(one, other, spacing) < 10


def test_one_voxel_against_one_voxel() -> None:
    one, other = block((2, 3, 4), (1, 1, 1)), block((5, 3, 8), (1, 1, 1))
    spacing = (1.0, 1.0, 0.5)
    assert measure.hausdorff_mm(one, other, spacing) == pytest.approx(math.hypot(3, 2))
    assert measure.dice(one, other) == 0
    # Elements sit at the voxels' corners: the nearest are 2 and 1.5 mm apart, the farthest 3 and 2.
    assert math.hypot(2, 1.5) <= measure.assd_mm(one, other, spacing) <= math.hypot(3, 2)


def test_identical_masks_touching_every_border() -> None:
    full = np.ones((3, 4, 5), dtype=bool)
    assert measure.hausdorff_mm(full, full, (1, 2, 3)) == 0
    assert measure.hd95_mm(full, full, (1, 2, 3)) == 0
    assert measure.assd_mm(full, full, (1, 2, 3)) == 0
    assert measure.nsd(full, full, (1, 2, 3), 0) == 1


def test_position_in_the_image_does_not_matter() -> None:
    inner = [block((4, 4, 4), (3, 4, 2)), block((5, 4, 4), (3, 5, 3))]
    corner = [block((0, 0, 0), (3, 4, 2)), block((1, 0, 0), (3, 5, 3))]
    for function in (measure.hausdorff_mm, measure.hd95_mm, measure.assd_mm, measure.nsd):
        assert function(*inner, (1.0, 2.0, 0.5)) == function(*corner, (1.0, 2.0, 0.5))


def test_empty_masks() -> None:
    empty, some = np.zeros((4, 4, 4), dtype=bool), block((1, 1, 1), (2, 2, 2), (4, 4, 4))
    for function in (measure.hausdorff_mm, measure.hd95_mm, measure.assd_mm):
        assert function(empty, empty, (1, 1, 1)) is None
        assert function(empty, some, (1, 1, 1)) is None
        assert function(some, empty, (1, 1, 1)) is None
    assert measure.dice(empty, empty) is None and measure.iou(empty, empty) is None
    assert measure.dice(empty, some) == 0 and measure.iou(some, empty) == 0
    assert measure.nsd(empty, empty, (1, 1, 1)) is None and measure.nsd(empty, some, (1, 1, 1)) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        measure.dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="3"):
        measure.hausdorff_mm(np.ones((2, 2)), np.ones((2, 2)), (1, 1))
    with pytest.raises(ValueError, match="different shapes"):
        measure.measure_case(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), LABELS, (1, 1, 1))


def test_header_rounding_does_not_cross_the_tolerance() -> None:
    one, other = block((2, 2, 2), (4, 4, 4)), block((3, 2, 2), (4, 4, 4))
    assert measure.nsd(one, other, (1.0000001, 1, 1), 1.0) == 1


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS, SPACINGS)
def test_symmetric_bounded_and_scaled_by_spacing(one, other, spacing) -> None:
    doubled = tuple(2 * length for length in spacing)
    assert measure.dice(one, other) == measure.dice(other, one)
    for function in (measure.hausdorff_mm, measure.hd95_mm, measure.assd_mm):
        value = function(one, other, spacing)
        assert (value is None) == (not one.any() or not other.any())
        if value is not None:
            assert value == pytest.approx(function(other, one, spacing))
            assert function(one, other, doubled) == pytest.approx(2 * value)
            assert value >= 0 and (value > 0 or function is not measure.hausdorff_mm or (one == other).all())
    score = measure.nsd(one, other, spacing, 1.0)
    if score is not None:
        assert 0 <= score <= 1 + 1e-12
        assert measure.nsd(one, other, doubled, 2.0) == pytest.approx(score)
        assert measure.nsd(one, other, spacing, 2.0) >= score - 1e-12


@settings(max_examples=30, deadline=None)
@given(MASKS, MASKS)
def test_dice_and_iou_are_one_measure(one, other) -> None:
    dice, iou = measure.dice(one, other), measure.iou(one, other)
    assert (dice is None) == (iou is None)
    if dice is not None and iou is not None:
        assert dice == pytest.approx(2 * iou / (1 + iou))


def test_case_flags_every_kind_of_empty() -> None:
    labels = {1: "a", 2: "b", 3: "c", 4: "d"}
    truth, prediction = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    truth[:2], prediction[:3] = 1, 1
    truth[4] = 2
    prediction[5, 0, 0] = 3
    by_label = {m.label: m for m in measure.measure_case(truth, prediction, labels, (1, 1, 2))}
    assert by_label[1].flag == "" and by_label[1].dice == pytest.approx(2 * 72 / 180)
    assert by_label[1].hd_mm == 1 and by_label[1].difference_ml == pytest.approx(0.072)
    assert (by_label[2].flag, by_label[2].dice, by_label[2].hd_mm, by_label[2].nsd) == ("missed", 0, None, 0)
    assert (by_label[3].flag, by_label[3].dice, by_label[3].prediction_ml) == ("false_positive", 0, 0.002)
    assert (by_label[4].flag, by_label[4].dice, by_label[4].counted) == ("absent", None, False)


def test_case_without_prediction_counts_zero_for_what_is_in_truth() -> None:
    truth = block((1, 1, 1), (2, 2, 2)).astype(np.uint8)
    head, tail = measure.measure_case(truth, None, LABELS, np.eye(4))
    assert (head.flag, head.dice, head.nsd, head.hd_mm, head.prediction_ml) == ("missing", 0, 0, None, None)
    assert head.truth_ml == pytest.approx(0.008)
    assert (tail.flag, tail.dice) == ("absent", None)


def test_case_equals_the_single_functions_on_a_tilted_grid() -> None:
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(0, 3, (2, 8, 7, 6))
    angle = 0.3
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 1.5, 2.0])
    spacing = (0.5, 1.5, 2.0)
    for found in measure.measure_case(truth, prediction, LABELS, affine, tolerance_mm=0.7):
        masks = (truth == found.label, prediction == found.label)
        assert found.dice == measure.dice(*masks) and found.iou == measure.iou(*masks)
        assert found.hd_mm == pytest.approx(measure.hausdorff_mm(*masks, spacing))
        assert found.hd95_mm == pytest.approx(measure.hd95_mm(*masks, spacing))
        assert found.assd_mm == pytest.approx(measure.assd_mm(*masks, spacing))
        assert found.nsd == pytest.approx(measure.nsd(*masks, spacing, 0.7), abs=1e-5)
        assert found.truth_ml == pytest.approx(masks[0].sum() * 1.5 / 1000)


def test_sheared_grid_has_overlap_and_volume_but_no_distance() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    truth = block((1, 1, 1), (3, 3, 3)).astype(np.uint8)
    head = measure.measure_case(truth, np.roll(truth, 1, 0), LABELS, affine)[0]
    assert (head.flag, head.hd_mm, head.nsd) == ("sheared", None, None)
    assert head.dice == pytest.approx(2 / 3) and head.truth_ml == pytest.approx(0.027)
    assert spacing_mm(affine) is None and spacing_mm(np.diag([1, -2, 3, 1])) == (1, 2, 3)
