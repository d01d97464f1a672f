"""Who the calibration patients are, in counts, and whether a case is of them: covered, outside, or unknown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.errors import DataError
from segpipe.quality import Assessment, Population, QualityModel, Rules, decide, fit
from tiny_quality import LABEL, rows

ADULTS = Population.of(
    [(f"p{n}", {"age_years": 30.0 + n, "sex": "FM"[n % 2], "maker": "SIEMENS" if n < 36 else "GE"}) for n in range(38)]
    + [("p38", {}), ("p39", {})]
)


def test_counts_are_of_patients_and_values_of_few_are_not_named() -> None:
    assert ADULTS.ages == ((30, 40, 10), (40, 50, 10), (50, 60, 10), (60, 70, 5))
    assert ADULTS.values == {"sex": {"F": 15, "M": 15}, "maker": {"SIEMENS": 35}}
    assert (ADULTS.fewer, ADULTS.unknown) == ({}, {})
    twice = Population.of([("p1", {"sex": "F"})] * 9)
    assert twice.values == {"sex": {}}
    assert ADULTS.in_words("maker") == "SIEMENS: at least 35 patients"
    assert ADULTS.in_words("age_years").startswith("30 to 39 years: at least 10 patients, ")
    assert ADULTS.in_words("kernel") == ""


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"age_years": 44.0, "sex": "F", "maker": "Siemens"}, ("covered", "covered", "covered")),
        ({"age_years": 6.0, "maker": "GE"}, ("outside", "unknown", "outside")),
        ({"age_years": 70.0, "sex": "O"}, ("outside", "outside", "unknown")),
        ({"kernel": "B30F"}, ("unknown", "unknown", "unknown")),
    ],
)
def test_a_case_is_covered_outside_or_unknown(known: dict[str, str | float], said: tuple[str, ...]) -> None:
    found = ADULTS.judge(known)
    assert tuple(found[name] for name in ("age_years", "sex", "maker")) == said
    assert found["kernel"] == "unknown"  # of the case or of the patients


def test_a_strength_is_a_number_and_no_word() -> None:
    found = Population.of([(f"p{n}", {"field_strength_t": 3 if n < 6 else 1.5}) for n in range(9)])
    assert found.values == {"field_strength_t": {"3": 5}}
    assert found.judge({"field_strength_t": 3.0})["field_strength_t"] == "covered"
    assert found.in_words("field_strength_t") == "3 T: at least 5 patients"


def of_ages(**patients: int) -> Population:
    """So many patients of each decade, as ``of_ages(_0=1, _50=50)``."""
    ages = [int(decade[1:]) for decade, count in patients.items() for _ in range(count)]
    return Population.of([(str(n), {"age_years": age}) for n, age in enumerate(ages)])


def test_decades_are_joined_only_where_they_follow_each_other_and_are_few() -> None:
    assert of_ages(_0=1, _50=50).ages == ((50, 60, 50),)
    assert of_ages(_0=1, _50=50).judge({"age_years": 5.0})["age_years"] == "outside"
    assert of_ages(_20=3, _70=2).ages == ()
    assert of_ages(_20=3, _30=2, _40=7).ages == ((20, 40, 5), (40, 50, 5))
    assert of_ages(_20=3, _30=9, _40=3).ages == ((30, 40, 5),)


def test_a_patient_of_two_scans_counts_once_in_a_bin() -> None:
    two = [("p1", {"age_years": 49.0}), ("p1", {"age_years": 50.0}), ("p2", {"age_years": 49.0})]
    assert Population.of([*two, ("p3", {"age_years": 44.0}), ("p4", {"age_years": 55.0})]).ages == ()
    more = [("p3", {"age_years": 44.0}), ("p4", {"age_years": 55.0}), ("p5", {"age_years": 55.0})]
    assert Population.of([*two, *more]).ages == ((40, 60, 5),)


def test_a_few_patients_of_a_rare_value_do_not_follow_from_the_others() -> None:
    told = [Population.of([(str(n), {"sex": "F" if n < women else "M"}) for n in range(30)]) for women in (26, 29, 30)]
    assert told[0] == told[1]  # four men, or one
    assert told[2].values == {"sex": {"F": 30}}
    assert told[1].as_dict() == {"age_years": [], "values": {"sex": {"F": 25}}, "fewer": {}, "unknown": {}}
    many = Population.of([(str(n), {"maker": f"M{n}"} if n < 11 else {}) for n in range(30)])
    assert (many.fewer, many.unknown) == ({"maker": 10}, {"maker": 15})


@given(st.lists(st.integers(0, 99), max_size=60))
def test_bins_have_five_patients_at_least_and_count_each_once(ages: list[int]) -> None:
    found = Population.of([(str(n), {"age_years": age}) for n, age in enumerate(ages)])
    assert all(count >= 5 and count % 5 == 0 for _, _, count in found.ages)
    assert all(high <= low for (_, high, _), (low, _, _) in zip(found.ages, found.ages[1:], strict=False))
    for low, high, count in found.ages:
        assert count <= sum(low <= age < high for age in ages) < count + 5
        assert all(any(decade <= age < decade + 10 for age in ages) for decade in range(low, high, 10))


def test_what_is_outside_is_to_be_looked_at_and_a_site_may_say_otherwise() -> None:
    model = fit(rows(40), [LABEL], population=ADULTS)
    features = rows(1, seed=9)[0].features
    child = model.assess(features, {LABEL: 1000.0}, {"age_years": 6.0, "sex": "F"})
    assert child.population["age_years"] == "outside"
    assert child.population["sex"] == "covered"
    decision = decide(child, {}, Rules())
    assert decision.kinds == ("population",)
    assert decision.decision == "look"
    assert decision.reasons[0].startswith("outside of the calibration patients by age (covered: 30 to 39 years")
    assert decide(child, {}, Rules(look_population=False)).decision == "ok"
    nobody = model.assess(features, {LABEL: 1000.0})
    assert set(nobody.population.values()) == {"unknown"}
    assert decide(nobody, {}, Rules()).decision == "ok"


def test_it_goes_through_json_and_older_documents_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.quality.regression.TREES", 3)
    document = json.loads(json.dumps(fit(rows(40), [LABEL], population=ADULTS).as_dict()))
    assert QualityModel.from_dict(document).population == ADULTS
    del document["population"]
    assert QualityModel.from_dict(document).population == Population()
    far = Assessment(patients=40, population={"sex": "outside"}, outside=("sex (covered: F: 19 patients)",))
    assert Assessment.from_dict(far.as_dict()) == far
    old = {name: value for name, value in far.as_dict().items() if name not in ("population", "outside")}
    assert Assessment.from_dict(old).population == {}
    with pytest.raises(DataError, match="population"):
        Assessment.from_dict({**far.as_dict(), "population": {"sex": "perhaps"}})
