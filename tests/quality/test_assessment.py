"""What is said of a case goes through JSON unchanged, and what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.errors import DataError
from segpipe.quality import Assessment

share = st.floats(0, 1)
amount = st.floats(0, 1e6)
labels = st.text(min_size=1, max_size=8)


@st.composite
def assessments(draw: st.DrawFn) -> Assessment:
    bounds = draw(st.booleans())
    ends = st.tuples(amount, amount).map(lambda pair: (min(pair), max(pair)))
    return Assessment(
        patients=draw(st.integers(0, 1000)),
        p_value=draw(st.none() | share),
        distance=draw(st.none() | amount),
        groups=draw(st.dictionaries(st.sampled_from(("image", "labels", "scores")), amount)),
        findings=tuple(draw(st.lists(st.text(max_size=20), max_size=3))),
        dice=draw(st.dictionaries(labels, share, max_size=3)),
        dice_low=draw(st.dictionaries(labels, share, max_size=3)) if bounds else {},
        volume_ml=draw(st.dictionaries(labels, ends, max_size=3)) if bounds else {},
        no_interval=None if bounds else draw(st.none() | st.text(max_size=20)),
        absent=tuple(draw(st.lists(labels, max_size=2))),
    )


@given(assessments())
def test_it_goes_through_json_unchanged(assessment: Assessment) -> None:
    assert Assessment.from_dict(json.loads(json.dumps(assessment.as_dict(), allow_nan=False))) == assessment


@given(assessments())
def test_nothing_of_bounds_is_left_where_none_may_be_shown(assessment: Assessment) -> None:
    shown = assessment.without_bounds()
    assert shown.dice_low == {} and shown.volume_ml == {} and shown.no_interval is not None
    assert shown.dice == assessment.dice and shown.distance == assessment.distance


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"patients": 1.5}, "patients"),
        ({"patients": True}, "patients"),
        ({"patients": -1}, "patients"),
        ({"p_value": 1.2}, "p_value"),
        ({"p_value": "0.5"}, "p_value"),
        ({"distance": float("nan")}, "distance"),
        ({"distance": float("inf")}, "distance"),
        ({"distance": -0.1}, "distance"),
        ({"groups": [1.0]}, "groups"),
        ({"groups": {"image": None}}, "groups of image"),
        ({"findings": "far"}, "findings"),
        ({"findings": [3]}, "findings"),
        ({"dice": {"liver": 1.01}}, "dice of liver"),
        ({"dice_low": {"liver": False}}, "dice_low of liver"),
        ({"volume_ml": {"liver": [1.0]}}, "volume_ml"),
        ({"volume_ml": {"liver": [3.0, 1.0]}}, "volume_ml of liver"),
        ({"volume_ml": {"liver": [-1.0, 1.0]}}, "volume_ml of liver"),
        ({"volume_ml": {"liver": ["0", "1"]}}, "volume_ml of liver"),
        ({"level": 90}, "level"),
        ({"no_interval": 3}, "no_interval"),
        ({"no_interval": "outside", "dice_low": {"liver": 0.5}}, "no_interval"),
        ({"no_interval": "outside", "volume_ml": {"liver": [1.0, 2.0]}}, "no_interval"),
        ({"absent": None}, "absent"),
        ({"verdict": "ok"}, "verdict"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError) as raised:
        Assessment.from_dict({"patients": 96} | change)
    assert word in str(raised.value)


@pytest.mark.parametrize("document", [None, [], "ok", {}])
def test_what_is_no_assessment_is_refused(document: Any) -> None:
    with pytest.raises(DataError):
        Assessment.from_dict(document)
