"""Quality models of generated patients: the usual passes, the far does not, bounds hold as often as they say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from segpipe.errors import DataError
from segpipe.quality import AS_IT_IS, Assessment, Judged, QualityModel, Rules, decide, fit, fitting, regression
from segpipe.quality.fitting import auroc, conformal_quantile, cross_fit, dice_margin, parts_of, volume_margins
from segpipe.quality.plausibility import Group, calibrated
from tiny_quality import LABEL, rows


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(regression, "TREES", 30)
    monkeypatch.setattr(regression, "RATE", 0.3)
    yield


def test_a_usual_case_passes_and_a_far_one_is_named() -> None:
    model = fit(rows(60), [LABEL])
    usual = model.assess(rows(1, seed=9)[0].features, {LABEL: 1100.0})
    assert usual.p_value is not None
    assert usual.p_value > 0.03
    assert usual.no_interval is None
    assert usual.dice_low[LABEL] < usual.dice[LABEL]
    low, high = usual.volume_ml[LABEL]
    assert low < 1100 < high
    far = model.assess({**rows(1, seed=9)[0].features, f"{LABEL}:volume": 81_000.0}, {LABEL: 81_000.0})
    assert far.distance is not None
    assert far.distance > 3
    assert far.p_value == pytest.approx(1 / 61, abs=1e-4)
    assert "volume of liver: 8.1e+04 mL; 90 % of 60 cases: " in far.findings[0]
    assert not far.dice_low
    assert not far.volume_ml
    assert far.no_interval == "outside what was calibrated (liver)"


@pytest.mark.parametrize("patients", [8, 30, 32, 33])
def test_a_case_farther_than_every_patient_is_outside_however_few_these_are(patients: int) -> None:
    model = fit(rows(patients), [LABEL])
    near = model.assess(rows(1, seed=9)[0].features, {LABEL: 1100.0})
    assert decide(near, {}, Rules()).decision == "ok"
    assert (near.no_interval is None) == (patients >= 30)
    far = model.assess({**rows(1, seed=9)[0].features, f"{LABEL}:volume": 81_000.0}, {LABEL: 81_000.0})
    assert (far.dice_low, far.volume_ml) == ({}, {})
    if patients >= 30:
        assert far.no_interval == "outside what was calibrated (liver)"
    decided = decide(far, {}, replace(Rules(), hold_distance=None, hold_dice=None, look_dice=None))
    assert (decided.decision, decided.kinds) == ("look", ("unusual",))
    assert ("farther than each of them" in decided.reasons[0]) == (patients < 33)


def test_margins_come_from_those_that_are_not_outside() -> None:
    """Of 30 patients each is judged by 24, so that no p-value is as small as that of the rules."""
    known = rows(30, spoiled=0)
    known[0] = replace(known[0], features={**known[0].features, f"{LABEL}:volume": 1e9})
    judged = cross_fit(known, [LABEL], parts_of([f"p{n}" for n in range(30)], 0))
    assert [each.row.case for each in judged if each.is_outside and each.row.case == "c0"]
    assert sum(each.is_outside for each in judged) < 10


def test_an_empty_label_is_named_as_absent() -> None:
    model = fit(rows(40), [LABEL])
    assessment = model.assess({"image:noise": 0.05, "image:p50": 0.0, f"{LABEL}:volume": 0.0}, {LABEL: 0.0})
    assert assessment.absent == (LABEL,)
    assert assessment.findings[0] == "liver is absent or missed; it was there in 40 of 40 cases"
    assert not assessment.dice


def test_the_same_numbers_come_back_from_json() -> None:
    model = fit(rows(40), [LABEL])
    again = QualityModel.from_dict(json.loads(json.dumps(model.as_dict())))
    features = rows(1, seed=4)[0].features
    assert again.assess(features, {LABEL: 900.0}) == model.assess(features, {LABEL: 900.0})
    text = json.dumps(model.as_dict())
    assert not any(f'"c{number}"' in text or f'"p{number}"' in text for number in range(40))


@pytest.mark.parametrize(
    "broken", [None, [], {"schema_version": 2}, {"schema_version": 1}, {"schema_version": 1, "groups": 3}]
)
def test_something_else_is_refused(broken: object) -> None:
    with pytest.raises(DataError, match="quality model"):
        QualityModel.from_dict(broken)


def test_too_few_patients_get_no_bound_and_still_fewer_no_model() -> None:
    model = fit(rows(12), [LABEL])
    assessment = model.assess(rows(1, seed=9)[0].features, {LABEL: 1000.0})
    assert not assessment.dice
    assert assessment.no_interval == "too few patients were known to calibrate it"
    with pytest.raises(DataError, match="too few patients") as error:
        fit(rows(5), [LABEL])
    assert "at least 8" in str(error.value.expected)
    assert "at least 30" in str(error.value.expected)


@pytest.mark.slow
def test_bounds_hold_as_often_as_they_say() -> None:
    """Over data sets drawn anew, the share of new patients above the bound is that of the level, not much more."""
    held: list[bool] = []
    within: list[bool] = []
    for seed in range(12):
        known = rows(40, seed=seed)
        judged = [each for each in cross_fit(known, [LABEL], parts_of([f"p{n}" for n in range(40)], seed))]
        clean = [each for each in judged if each.row.kind == AS_IT_IS]
        margin, (low, high) = dice_margin(clean, LABEL, 0.9), volume_margins(clean, LABEL, 0.9)
        model = fit(known, [LABEL], seed=seed)
        for row in rows(60, seed=1000 + seed, spoiled=0):
            dice = model.assess(row.features, {LABEL: 1000.0}).dice[LABEL]
            held.append(row.dice[LABEL] >= dice - margin)
            within.append(low <= math.log(row.volume_ratio[LABEL]) <= high)
    assert 0.86 <= np.mean(held) <= 0.96
    assert 0.86 <= np.mean(within) <= 0.97


def test_good_cases_are_seldom_outside() -> None:
    """Of patients that nothing was made from, about as many are at a p-value of 0.05 as it says."""
    known = [row for row in rows(100, spoiled=0)]
    parts = parts_of([row.patient for row in known], 0)
    model = calibrated([r.features for r in known], [r.patient for r in known], [parts[r.patient] for r in known])
    new = rows(400, seed=77, spoiled=0)
    values = [model.p_value(max(model.by_group(row.features).values())) or 0.0 for row in new]
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.1


def test_distances_are_those_of_mahalanobis() -> None:
    random = np.random.default_rng(5)
    values = random.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 4000)
    group = Group.of(["image:p25", "image:p75"], [{"image:p25": a, "image:p75": b} for a, b in values])
    along, across = ({"image:p25": a, "image:p75": b} for a, b in ((2.0, 2.0), (2.0, -2.0)))
    inverse = np.linalg.inv(np.array([[1, 0.8], [0.8, 1]]))
    for case in (along, across):
        point = np.array([case["image:p25"], case["image:p75"]])
        assert group.distances([case])[0] == pytest.approx(math.sqrt(point @ inverse @ point / 2), rel=0.1)
    assert group.distances([{"image:p25": 2.0}])[0] == pytest.approx(2, rel=0.1)
    assert group.distances([{}])[0] == 0


def test_conformal_quantile_and_auroc() -> None:
    assert conformal_quantile(list(range(1, 10)), 0.9) == 9
    assert conformal_quantile(list(range(1, 9)), 0.9) == math.inf
    random = np.random.default_rng(0)
    scores, positive = random.normal(size=50).round(1), random.random(50) < 0.4
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-4)
    assert auroc(scores, np.zeros(50, bool)) is None
    assert fitting.LEAST_PATIENTS == 30


def test_cases_of_unknown_patients_are_counted_as_cases(tmp_path: Path) -> None:
    def reason(assessment: Assessment) -> str:
        found = decide(assessment, {}, Rules())
        return found.reasons[found.kinds.index("unusual")]

    known = [replace(row, patient=row.case) for row in rows(31)]
    model = QualityModel.from_dict(fit(known, [LABEL], patients_known=False).as_dict())
    features, volumes = {**known[0].features, f"{LABEL}:volume": 81_000.0}, {LABEL: 81_000.0}
    far = model.assess(features, volumes)
    assert not Assessment.from_dict(far.as_dict()).patients_known
    assert "unusual among 31 calibration cases, patients unknown, p = 0.031 (" in reason(far)
    assert not Judged.of(far, {}, Rules(), tmp_path).judgement(tmp_path).patients_known  # type: ignore[union-attr]
    with pytest.raises(DataError) as error:
        fit(known[:10], [LABEL], patients_known=False)
    assert error.value.found == "5 cases, patients unknown"
    before = fit(rows(31), [LABEL]).as_dict()
    older = QualityModel.from_dict({key: before[key] for key in before if key != "patients_known"})
    assert "unusual among 31 calibration patients, p" in reason(older.assess(features, volumes))
