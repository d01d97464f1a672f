"""What networks make of generated images: each network has usual cases of its own, and few of them carry a distance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from segpipe.errors import DataError
from segpipe.quality import QualityModel, Rules, decide, fit, of_member, regression
from segpipe.quality.embedding import EMBEDDING, Embedding, Space, embedding_features, vectors_of
from segpipe.quality.fitting import Row
from segpipe.quality.plausibility import calibrated
from tiny_quality import LABEL, rows

CHANNELS, MEMBERS = 24, 3


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(regression, "TREES", 10)
    yield


def held(member: int, count: int, seed: int = 0, far: float = 0.0) -> np.ndarray:
    """What a network holds of some cases: a few directions of its own, about a middle of its own."""
    own = np.random.default_rng(100 + member)
    middle, directions = own.normal(5, 3, CHANNELS), own.normal(size=(3, CHANNELS))
    random = np.random.default_rng(seed)
    usual = middle + random.normal(size=(count, 3)) @ directions + random.normal(0, 0.3, (count, CHANNELS))
    return usual + far * own.normal(size=CHANNELS)


def seen_by_folds(patients: int, spoiled: int = 0, seed: int = 0) -> list[Row]:
    """Rows as a cross-validation gives them: each seen by the network that did not see its patient."""
    made = []
    for number, row in enumerate(rows(patients, seed=seed, spoiled=spoiled)):
        member = int(row.patient[1:]) % MEMBERS
        vector = held(member, 1, seed=1000 * (seed + 1) + number)[0]
        made.append(replace(row, features={**row.features, **embedding_features([vector], first=member)}))
    return made


def by_all(far: float = 0.0, seed: int = 5) -> dict[str, float]:
    """A new case, as all networks together see it."""
    vectors = [held(member, 1, seed=seed + member, far=far)[0] for member in range(MEMBERS)]
    return {**rows(1, seed=9)[0].features, **embedding_features(vectors)}


def test_a_distance_is_that_of_mahalanobis_where_cases_are_many() -> None:
    random = np.random.default_rng(3)
    deviations = np.array([3.0, 1, 1, 1, 1, 0.5])
    mixed = np.linalg.qr(random.normal(size=(6, 6)))[0]
    vectors = random.normal(size=(5000, 6)) * deviations @ mixed
    space = Space.of(vectors)
    inverse = np.linalg.inv(mixed.T @ np.diag(deviations**2) @ mixed)
    for point in random.normal(size=(20, 6)) * 4:
        assert space.distance(point) == pytest.approx(np.sqrt(point @ inverse @ point / 6), rel=0.1)


def test_what_lies_outside_of_the_usual_directions_is_far() -> None:
    known = held(0, 40)
    space = Space.of(known)
    usual = [space.distance(vector) for vector in held(0, 40, seed=1)]
    assert len(space.directions) == 8
    assert 0.5 < np.median(usual) < 1.6
    assert space.distance(held(0, 1, seed=2, far=2.0)[0]) > 2 * max(usual)
    assert space.distance(space.centre) == 0


def test_a_dead_channel_is_no_reason() -> None:
    known = held(0, 30)
    known[:, 4] = 0.0
    space = Space.of(known)
    assert np.isfinite([space.distance(vector) for vector in known]).all()
    numbers = json.loads(json.dumps(space.as_dict()))
    assert Space.from_dict(numbers).distance(known[0]) == pytest.approx(space.distance(known[0]), rel=1e-3)


def test_each_network_has_its_own_cases_and_a_case_is_the_mean_of_them() -> None:
    found = Embedding.of([row.features for row in seen_by_folds(60)])
    assert found is not None
    assert len(found.members) == MEMBERS
    case = by_all()
    alone = [found.members[member].distance(vector) for member, vector in vectors_of(case).items()]
    assert found.distance(case) == pytest.approx(np.mean(alone))
    swapped = embedding_features([held(1, 1)[0], held(2, 1)[0], held(0, 1)[0]])
    assert (found.distance(swapped) or 0) > 3 * (found.distance(case) or 0)  # numbers of one mean nothing to another
    assert found.distance({"image:noise": 1.0}) is None


def test_too_few_cases_of_one_network_say_nothing() -> None:
    cases = [row.features for row in seen_by_folds(60)]
    few = [case for number, case in enumerate(cases) if 0 not in vectors_of(case) or number < 12]
    assert Embedding.of(few) is None
    assert calibrated(cases[:12], [f"p{n}" for n in range(12)], [n % 5 for n in range(12)]).embedding is None


def test_a_case_that_only_the_networks_find_odd_is_outside_and_said() -> None:
    model = fit(seen_by_folds(60, spoiled=1), [LABEL])
    usual, far = (model.assess(by_all(far), {LABEL: 1100.0}) for far in (0.0, 3.0))
    assert usual.groups[EMBEDDING] < 1.5
    assert usual.no_interval is None
    assert far.groups[EMBEDDING] > 2
    assert far.distance == far.groups[EMBEDDING]
    assert "what the network makes of the image as a whole is unlike that of the 60 cases" in far.findings
    assert far.no_interval == "outside what was calibrated (what the network makes of the image as a whole)"


def test_good_cases_stay_usual_as_often_as_it_says() -> None:
    """Of new patients, each seen by one network as the calibration cases were, one in twenty has a p-value of 0.05."""
    known = seen_by_folds(90)
    model = calibrated([r.features for r in known], [r.patient for r in known], [n % 5 for n in range(90)])
    assert model.embedding is not None
    new = seen_by_folds(300, seed=7)
    values = np.array([model.p_value(max(model.by_group(row.features).values())) for row in new])
    assert 0.01 <= np.mean(values <= 0.05) <= 0.11


def test_numbers_come_back_from_json_without_a_row_of_a_patient() -> None:
    known = seen_by_folds(45, spoiled=1)
    model = fit(known, [LABEL])
    assert model.plausibility.embedding is not None
    text = json.dumps(model.as_dict())
    again = QualityModel.from_dict(json.loads(text))
    for case in (by_all(), by_all(3.0)):
        assert again.assess(case, {LABEL: 900.0}) == model.assess(case, {LABEL: 900.0})
    for row in known:  # a median may be the number of a patient, and then of one channel
        numbers = [str(value) for name, value in row.features.items() if name.startswith(EMBEDDING)]
        assert sum(f"{number}," in text for number in numbers) < CHANNELS / 2


@pytest.mark.parametrize("lacking", [EMBEDDING, "image"])
def test_a_case_of_which_not_all_was_measured_is_not_taken_for_near(lacking: str) -> None:
    model = fit(seen_by_folds(60, spoiled=1), [LABEL])
    case = {name: value for name, value in by_all().items() if not name.startswith(lacking)}
    found = model.assess(case, {LABEL: 1100.0})
    assert "no_distance" not in decide(model.assess(by_all(), {LABEL: 1100.0}), {}, Rules()).kinds
    assert (found.distance, found.p_value, found.dice_low, found.volume_ml) == (None, None, {}, {})
    assert str(found.no_interval).startswith("not measured: ")
    decision = decide(found, {}, Rules())
    assert (decision.decision, decision.kinds[-1]) == ("look", "no_distance")


def test_a_case_that_is_far_by_what_was_measured_of_it_is_held_all_the_same() -> None:
    model = fit(seen_by_folds(60, spoiled=1), [LABEL])
    features = {**rows(1, seed=9)[0].features, "image:p50": 40.0}
    decision = decide(model.assess(features, {LABEL: 1100.0}), {}, Rules())
    assert decision.decision == "hold"
    assert ", distance at least " in decision.reasons[0]


def test_a_model_without_an_embedding_is_read_and_passes_it_over() -> None:
    model = fit(rows(40), [LABEL])
    old = {name: value for name, value in model.as_dict().items() if name != "embedding"} | {"schema_version": 1}
    again = QualityModel.from_dict(json.loads(json.dumps(old)))
    plain = {name: value for name, value in by_all().items() if not name.startswith(EMBEDDING)}
    assert again.assess(by_all(), {LABEL: 900.0}) == model.assess(plain, {LABEL: 900.0})


@pytest.mark.parametrize(
    "broken",
    [
        lambda document: document["embedding"].update(limit=0),
        lambda document: document["embedding"]["members"][0]["centre"].__setitem__(2, float("nan")),
        lambda document: document["embedding"]["members"][0].update(left=float("inf")),
        lambda document: document["groups"]["image"].update(limit=0),
        lambda document: document["groups"]["image"]["scale"].__setitem__(0, float("nan")),
        lambda document: document["population"]["age_years"].append([40, float("inf"), 5]),
    ],
)
def test_numbers_that_cannot_be_are_said_to_be_when_it_is_read(broken: Any) -> None:
    document = json.loads(json.dumps(fit(seen_by_folds(40), [LABEL]).as_dict()))
    broken(document)
    with pytest.raises(DataError, match="quality model of a bundle cannot be read"):
        QualityModel.from_dict(document)


def test_a_fold_is_a_member_and_a_label_may_have_any_name() -> None:
    features = {"embedding 0:003": 1.0, "embedding 0:volume": 2.0, "embedding of cells:volume": 3.0}
    assert of_member(features, 4) == {
        "embedding 4:003": 1.0,
        "embedding 0:volume": 2.0,
        "embedding of cells:volume": 3.0,
    }
    assert list(vectors_of(features)) == [0]
