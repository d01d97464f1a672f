"""What of a truth is measured: regions, and nothing of what nobody decided on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpipe.data.manifest import Manifest
from segpipe.evaluation.case_evaluation import Job, evaluate_case, targets_of
from segpipe.evaluation.measure import Targets, measure_case, region_masks
from segpipe.evaluation.postprocessing import choose_rules, try_rules

SHAPE = (6, 5, 4)
SPACING = (1.0, 1.0, 2.0)
NAMES = {1: "whole", 2: "core"}
REGIONS = [(1, 2, 3), (2, 3)]


def drawn(seed: int, values: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, values, SHAPE).astype(np.uint8)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_a_region_is_measured_as_a_label_map_of_it_alone(seed: int) -> None:
    truth, prediction = drawn(seed), drawn(seed + 1)
    targets = Targets(NAMES, REGIONS)
    both = (targets.masks(labels, None) for labels in (truth, prediction))
    found = measure_case(*both, NAMES, SPACING)
    for measure, region in zip(found, REGIONS, strict=True):
        alone = (np.isin(labels, region).astype(np.uint8) for labels in (truth, prediction))
        (expected,) = measure_case(*alone, {1: "x"}, SPACING)
        for name in ("dice", "hd95_mm", "nsd", "specificity", "lesion_f1", "truth_ml", "difference_ml"):
            assert getattr(measure, name) == pytest.approx(getattr(expected, name)), name


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_ignored_voxels_do_not_count_whatever_is_predicted(seed: int, regions: bool) -> None:
    truth, prediction = drawn(seed), drawn(seed + 1)
    truth[3:] = 255
    targets = Targets(NAMES if regions else {1: "a", 2: "b", 3: "c"}, REGIONS if regions else (), 255)
    counted = targets.counted(truth)
    assert counted is not None and int(counted.sum()) == truth[:3].size
    found = measure_case(
        targets.masks(truth, counted),
        targets.masks(prediction, counted),
        targets.names,
        SPACING,
        voxels=int(counted.sum()),
    )
    half = Targets(targets.names, targets.regions)
    expected = measure_case(half.masks(truth[:3], None), half.masks(prediction[:3], None), targets.names, SPACING)
    for one, other in zip(found, expected, strict=True):
        for name in ("dice", "iou", "precision", "recall", "specificity", "truth_ml", "prediction_ml"):
            assert getattr(one, name) == pytest.approx(getattr(other, name)), name


def test_region_masks_may_overlap() -> None:
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert region_masks(labels, REGIONS)[:, 0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]


def test_what_can_be_measured_where_not_all_was_looked_for() -> None:
    assert Targets({1: "a", 2: "b"}, annotated=frozenset({2})).looked_for == {2}
    assert Targets(NAMES, REGIONS, annotated=frozenset({2, 3})).looked_for == {2}
    assert Targets(NAMES, REGIONS).looked_for == {1, 2}


def save(path: Path, values: NDArray[Any]) -> Path:
    nib.save(nib.Nifti1Image(values, np.diag([*SPACING, 1.0])), path)
    return path


def job(tmp_path: Path, truth: NDArray[Any], prediction: NDArray[Any] | None, **meaning: Any) -> Job:
    labels = {"0": "background", "1": "a", "2": "b", "3": "c"}
    annotated = meaning.pop("annotated_labels", None)
    case = {"id": "k", "image": "i.nii", "label": "truth.nii", "annotated_labels": annotated}
    manifest = Manifest.model_validate(
        {"name": "d", "modality": {"0": "CT"}, "labels": labels, "training": [case], **meaning}
    )
    path = None if prediction is None else save(tmp_path / "prediction.nii", prediction)
    targets = targets_of(manifest, manifest.training[0])
    return Job("k", "k", save(tmp_path / "truth.nii", truth), path, manifest.targets, targets=targets, rules=True)


@pytest.mark.parametrize("as_masks", [True, False])
def test_a_prediction_of_regions_is_masks_or_a_label_map(tmp_path: Path, as_masks: bool) -> None:
    truth, prediction = drawn(1), drawn(2)
    truth[0] = 9
    regions = {"whole": [1, 2, 3], "core": [2, 3]}
    stored = np.moveaxis(region_masks(prediction, REGIONS), 0, 3) if as_masks else prediction
    found = evaluate_case(job(tmp_path, truth, stored, regions=regions, ignore_label=9))
    assert found.failure is None
    for measure, region in zip(found.measures, REGIONS, strict=True):
        a, b = (np.isin(labels, region) & (truth != 9) for labels in (truth, prediction))
        assert measure.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (np.zeros((*SHAPE, 3), np.uint8), "not one label map"),
        (np.full((*SHAPE, 2), 2, np.uint8), "not a mask for each region"),
        (np.full(SHAPE, 9, np.uint8), "values that the manifest does not name"),
    ],
)
def test_what_is_no_prediction_of_regions_fails(tmp_path: Path, stored: NDArray[Any], said: str) -> None:
    regions = {"whole": [1, 2, 3], "core": [2, 3]}
    found = evaluate_case(job(tmp_path, drawn(1), stored, regions=regions, ignore_label=9))
    assert said in str(found.failure) and [measure.dice for measure in found.measures] == [0.0, 0.0]


@pytest.mark.parametrize("predicted", [True, False])
def test_labels_that_nobody_looked_for_are_not_measured(tmp_path: Path, predicted: bool) -> None:
    truth = np.where(drawn(1) == 2, 2, 0).astype(np.uint8)
    found = evaluate_case(job(tmp_path, truth, drawn(2) if predicted else None, annotated_labels=["b"]))
    assert [measure.flag for measure in found.measures][::2] == ["not_annotated"] * 2
    first, second, third = found.measures
    assert first.dice is third.dice is first.prediction_ml is None and second.dice is not None
    if predicted:
        assert [trial is None for trial in found.trials] == [True, False, True]


def test_clean_up_rules_are_judged_where_the_label_was_looked_for() -> None:
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[:3], prediction[:3], prediction[5, 4, 3] = 1, 1, 1
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    known = [try_rules(truth, prediction, {1: "a"}, affine) for _ in range(4)]
    blind = [try_rules(np.zeros_like(truth), prediction, {1: "a"}, affine, looked_for=())]
    (choice,) = choose_rules([*known, *blind], list("abcde"), {1: "a"}, 100)
    assert choice.rule is not None and choice.rule.keep_largest
    assert choice.gains[0].n == 4 and choice.before < 1
    counted = np.ones(SHAPE, bool)
    counted[5] = False
    (trial,) = try_rules(truth, prediction, {1: "a"}, affine, counted)
    assert trial is not None and trial.before == trial.after[0] == 1.0
