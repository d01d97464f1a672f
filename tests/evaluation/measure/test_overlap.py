"""Precision, recall, specificity: by hand, by properties, and torchmetrics where the definitions agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.functional.classification import (
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    binary_specificity,
)

from segpipe.evaluation import measure
from segpipe.evaluation.measure.overlap import Counts, count_voxels, per_sample

PAIRS = hnp.arrays(bool, st.tuples(st.just(2), *[st.integers(1, 5)] * 3))
MEASURES = (measure.dice, measure.iou, measure.precision, measure.recall, measure.specificity)


def test_by_hand() -> None:
    truth, prediction = np.zeros((2, 10), bool), np.zeros((2, 10), bool)
    truth[0, :6], prediction[0, 2:10] = True, True  # 4 true, 4 false, 2 missed, 10 left alone
    assert measure.precision(truth, prediction) == 4 / 8
    assert measure.recall(truth, prediction) == 4 / 6
    assert measure.specificity(truth, prediction) == 10 / 14


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [  # dice, iou, precision, recall, specificity
        ("empty", "empty", (None, None, None, None, 1)),
        ("empty", "one", (0, 0, 0, None, 26 / 27)),
        ("empty", "full", (0, 0, 0, None, 0)),
        ("one", "empty", (0, 0, None, 0, 1)),
        ("one", "one", (1, 1, 1, 1, 1)),
        ("one", "full", (2 / 28, 1 / 27, 1 / 27, 1, 0)),
        ("full", "empty", (0, 0, None, 0, None)),
        ("full", "one", (2 / 28, 1 / 27, 1, 1 / 27, None)),
        ("full", "full", (1, 1, 1, 1, None)),
    ],
)
def test_empty_one_voxel_and_full(truth: str, prediction: str, expected: tuple) -> None:
    masks = {name: np.full((3, 3, 3), name == "full") for name in ("empty", "one", "full")}
    masks["one"][1, 1, 1] = True
    assert tuple(function(masks[truth], masks[prediction]) for function in MEASURES) == pytest.approx(expected)


@given(PAIRS)
def test_ranges_symmetry_and_the_f_measure(pair: np.ndarray) -> None:
    truth, prediction = pair
    found = [function(truth, prediction) for function in MEASURES]
    assert all(value is None or 0 <= value <= 1 for value in found)
    dice, _, precision, recall, specificity = found
    assert precision == measure.recall(prediction, truth)
    assert specificity == measure.recall(~truth, ~prediction)
    if precision and recall:
        assert dice == pytest.approx(2 * precision * recall / (precision + recall))


@given(PAIRS)
def test_equal_torchmetrics_which_says_0_where_we_say_none(pair: np.ndarray) -> None:
    truth, prediction = (torch.from_numpy(mask.astype(np.int64)) for mask in pair)
    theirs = (binary_jaccard_index, binary_precision, binary_recall, binary_specificity)
    for ours, function in zip(MEASURES[1:], theirs, strict=True):
        assert float(function(prediction, truth)) == pytest.approx(ours(*pair) or 0, abs=1e-6)


@given(PAIRS)
def test_pooled_is_the_batch_and_per_sample_is_not(pair: np.ndarray) -> None:
    truth, prediction = pair
    parts = [count_voxels(*sample) for sample in zip(truth, prediction, strict=True)]
    assert sum(parts, Counts(0, 0, 0, 0)) == count_voxels(truth, prediction)
    for function in MEASURES:
        alone = per_sample(function, truth, prediction)
        assert alone == [function(*sample) for sample in zip(truth, prediction, strict=True)]
        assert per_sample(function, truth[:1], prediction[:1]) == [function(truth[:1], prediction[:1])]
