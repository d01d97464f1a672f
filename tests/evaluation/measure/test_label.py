"""The one list of measures: everything that shows them follows it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from segpipe.evaluation import measure
from segpipe.evaluation.measure.case_measures import MEASURES, LabelMeasure
from segpipe.evaluation.measure.probabilities import calibrate_labels
from segpipe.evaluation.summary import BY_LABEL, OVERALL

DOCS = Path(__file__).parents[3] / "docs"
LABELS = {1: "a", 2: "b"}


def test_schemas_and_pages_name_every_measure() -> None:
    metrics = json.loads((DOCS / "schemas/metrics.schema.json").read_text())["$defs"]["measure"]
    names = [each.name for each in fields(LabelMeasure)]
    assert sorted(metrics["properties"]) == sorted(metrics["required"]) == sorted(names)
    summary = json.loads((DOCS / "schemas/evaluate.schema.json").read_text())["$defs"]["part"]
    assert summary["properties"]["metrics"]["propertyNames"]["enum"] == list(BY_LABEL)
    page = (DOCS / "reference/metrics.md").read_text()
    assert [name for name in MEASURES if f"`{name}`" not in page] == []


def test_what_is_summed_up() -> None:
    assert set(MEASURES) - set(BY_LABEL) == {"truth_ml", "prediction_ml"}
    assert set(BY_LABEL) - set(OVERALL) == {"difference_ml"}


def test_a_measure_has_one_definition_wherever_it_is_asked_for() -> None:
    rng = np.random.default_rng(5)
    truth, prediction = (rng.random((2, 9, 8, 7)) ** 3 * 3).astype(np.uint8)
    scores = rng.random((3, 9, 8, 7))
    spacing = (0.8, 1.1, 2.5)
    found = measure.measure_case(truth, prediction, LABELS, spacing, 1.2, calibrate_labels(truth, scores, LABELS))
    for each in found:
        masks = truth == each.label, prediction == each.label
        assert all(mask.any() for mask in masks) and each.flag == ""
        for name in ("dice", "iou", "precision", "recall", "specificity", "lesion_f1", "lesion_dice"):
            assert getattr(each, name) == getattr(measure, name)(*masks)
        for name in ("hd95_mm", "assd_mm"):
            assert getattr(each, name) == pytest.approx(getattr(measure, name)(*masks, spacing))
        assert each.hd_mm == pytest.approx(measure.hausdorff_mm(*masks, spacing))
        assert each.nsd == pytest.approx(measure.nsd(*masks, spacing, 1.2))
        assert each.ece == measure.expected_calibration_error(masks[0], scores[each.label])
        assert each.truth_ml == pytest.approx(measure.volume_ml(masks[0], np.diag([*spacing, 1])))


def test_empty_masks_in_a_case() -> None:
    truth, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    truth[1:3, 1:3, 1:3] = 1
    prediction[4, 4, 4] = 2
    missed, invented = measure.measure_case(truth, prediction, LABELS, (1, 1, 1))
    assert (missed.flag, missed.recall, missed.precision, missed.specificity) == ("missed", 0, None, 1)
    assert (missed.lesion_f1, missed.lesion_dice, missed.ece) == (0, 0, None)
    assert (invented.flag, invented.recall, invented.precision) == ("false_positive", None, 0)
    assert invented.specificity == 215 / 216 and invented.lesion_f1 == 0
    absent = measure.measure_case(np.zeros_like(truth), np.zeros_like(truth), LABELS, (1, 1, 1))[0]
    assert (absent.flag, absent.dice, absent.recall, absent.lesion_f1) == ("absent", None, None, None)
    assert absent.specificity == 1 and not absent.counted
    missing = measure.measure_case(truth, None, LABELS, (1, 1, 1))
    scores = [name for name, each in MEASURES.items() if each.kind == "score"]
    assert {getattr(missing[0], name) for name in scores} == {0}
    assert {getattr(missing[1], name) for name in scores} == {None}
    assert missing[0].ece is None and missing[0].hd_mm is None
