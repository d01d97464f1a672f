"""Decisions: each rule alone, at its limit and beside it; rules of a site; what is not judged says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.errors import DataError, UsageError
from segpipe.quality import NO_QUALITY_MODEL, REASONS, Assessment, Decision, Rules, decide, read_rules

NEAR: dict[str, Any] = {"patients": 96, "p_value": 0.5, "distance": 0.7, "dice": {"Anterior": 0.9, "Posterior": 0.88}}
FLAGS = {"empty": False, "far_spacing": "no", "orientation_unknown": False}
RANK = {"ok": 0, "look": 1, "hold": 2}


def of(flags: dict[str, Any] | None = None, rules: Rules | None = None, **changes: Any) -> Decision:
    return decide(Assessment(**NEAR | changes), FLAGS | (flags or {}), rules or Rules())


def test_a_case_as_those_of_the_calibration_is_ok() -> None:
    assert of() == Decision("ok", ())


def test_without_a_quality_model_nothing_is_judged() -> None:
    assert decide(None, {"empty": True}, Rules()) == Decision(None, (NO_QUALITY_MODEL,))


def test_a_case_that_the_quality_model_said_nothing_of_is_to_be_looked_at() -> None:
    decided = decide(None, FLAGS, Rules(), has_model=True)
    assert (decided.decision, decided.kinds) == ("look", ("not_assessed",))


@pytest.mark.parametrize(
    ("changes", "flags", "decision", "words"),
    [
        ({"distance": 2.0}, {}, "hold", "distance 2"),
        ({"distance": math.nextafter(2.0, 0)}, {}, "ok", ""),
        ({"dice": {"Anterior": 0.9, "Posterior": 0.4999}}, {}, "hold", "Dice of Posterior 0.499, below 0.5"),
        ({"dice": {"Anterior": 0.9, "Posterior": 0.5}}, {}, "look", "Dice of Posterior 0.5, below 0.7"),
        ({"dice": {"Anterior": 0.9, "Posterior": 0.7}}, {}, "ok", ""),
        ({}, {"empty": True}, "hold", "all labels are empty"),
        ({"p_value": 0.03}, {}, "look", "p = 0.03"),
        ({"p_value": 0.031}, {}, "ok", ""),
        ({"p_value": 0.0323, "patients": 30}, {}, "look", "p = 0.032 (farther than each of them)"),
        ({"p_value": 0.0645, "patients": 30}, {}, "ok", ""),
        ({"absent": ("Anterior",)}, {}, "look", "Anterior is empty, as in no calibration case: absent or missed"),
        ({}, {"far_spacing": "yes"}, "look", "spacing"),
        ({}, {"far_spacing": "unknown"}, "ok", ""),
        ({}, {"orientation_unknown": True}, "look", "which side"),
        ({"distance": None}, {}, "look", "could not be measured"),
        ({"dice": {}}, {}, "ok", ""),  # of a model of few patients, which says how far a case is and no more
    ],
)
def test_each_rule_at_its_limit(changes: Any, flags: Any, decision: str, words: str) -> None:
    decided = of(flags, **changes)
    assert decided.decision == decision
    assert len(decided.reasons) == len(decided.kinds) == (decision != "ok")
    assert words in "".join(decided.reasons)


def test_what_is_farthest_is_said() -> None:
    finding = "volume of Anterior 81 mL; training cases 0.9 to 2.1 mL (5 to 95 %, 96 patients)"
    assert finding in of(distance=5.0, findings=(finding, "another")).reasons[0]


def test_reasons_to_hold_come_first_and_none_is_lost() -> None:
    decided = of({"far_spacing": "yes"}, distance=3.0, p_value=0.01, dice={"Anterior": 0.6, "Posterior": 0.1})
    assert decided.decision == "hold"
    assert [
        word in reason
        for word, reason in zip(
            ("distance 3", "Posterior 0.1", "p = 0.01", "Anterior 0.6", "spacing"), decided.reasons, strict=True
        )
    ] == [True] * 5


@given(
    distance=st.floats(0, 10),
    more=st.floats(0, 10),
    p=st.floats(0, 1),
    less=st.floats(0, 1),
    dice=st.floats(0, 1),
    worse=st.floats(0, 1),
)
def test_a_farther_or_worse_case_is_never_judged_better(
    distance: float, more: float, p: float, less: float, dice: float, worse: float
) -> None:
    near = of(distance=distance, p_value=p, dice={"a": dice})
    far = of(distance=distance + more, p_value=p * less, dice={"a": dice * worse})
    assert RANK[str(far.decision)] >= RANK[str(near.decision)]
    assert (near.decision == "ok") == (near.reasons == ())


def test_a_rule_that_is_null_or_false_is_not_used() -> None:
    document = {part: None for part in ("hold_distance", "hold_dice", "look_p_value", "look_dice")}
    switches = {part: False for part in ("hold_empty", "look_absent", "look_far_spacing", "look_orientation_unknown")}
    odd = {"empty": True, "far_spacing": "yes", "orientation_unknown": True}
    rules = Rules.parse(document | switches)
    assert of(odd, rules, distance=9.0, p_value=0.0, dice={"a": 0.1}, absent=("a",)) == Decision("ok", ())


def test_a_site_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    shipped = Rules.parse({"hold_distance": 3, "look_dice": 0.8})
    file = tmp_path / "rules.yaml"
    file.write_text("hold_distance: 4  # we look at more\nlook_far_spacing: false\n")
    rules = read_rules(file, shipped)
    assert (rules.hold_distance, rules.look_dice, rules.look_far_spacing, rules.hold_dice) == (4.0, 0.8, False, 0.5)
    file.write_text('{"hold_dice": null}')
    assert read_rules(file).hold_dice is None
    file.write_text("# all as shipped\n")
    assert read_rules(file, shipped) == shipped
    assert Rules.parse(rules.as_dict()) == rules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hold_distanse: 2", ("hold_distanse", "hold_distance")),
        ("hold_distance: far", ("hold_distance", "'far'")),
        ("hold_distance: true", ("hold_distance", "True")),
        ("hold_distance: -1", ("hold_distance", "-1")),
        ("hold_distance: .nan", ("hold_distance", "nan")),
        ("hold_distance: .inf", ("hold_distance", "inf")),
        ("look_dice: 70", ("look_dice", "70", "from 0 to 1")),
        ("look_absent: 1", ("look_absent", "true or false")),
        ("hold_empty: null", ("hold_empty", "true or false")),
        ("- hold_dice", ("list",)),
        ("0.5", ("float",)),
        ("2: 3", ("2", "hold_distance")),
    ],
)
def test_a_wrong_rule_is_refused_with_file_and_key(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        read_rules(file)
    assert raised.value.path == str(file)
    assert all(word in str(raised.value) for word in words)


def test_a_file_of_rules_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file of rules"):
        read_rules(tmp_path / "none.yaml")
    (tmp_path / "rules.yaml").write_text("a: [")
    with pytest.raises(DataError, match="cannot be parsed"):
        read_rules(tmp_path / "rules.yaml")


def test_kinds_of_reasons_fit_a_code_of_dicom() -> None:
    assert all(len(kind) <= 16 and len(meaning) <= 64 for kind, meaning in REASONS.items())
    odd = {"far_spacing": "yes", "orientation_unknown": True}
    far = of(odd, distance=3.0, p_value=0.0, dice={"a": 0.1}, absent=("b",), outside=("age",))
    many = far, of({"empty": True}, distance=None)
    assert {kind for decided in many for kind in decided.kinds} | {"not_assessed"} == set(REASONS)
