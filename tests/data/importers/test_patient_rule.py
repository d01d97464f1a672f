from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.data.importers.to_manifest import patient_rule
from segpipe.errors import DataError, UsageError


@given(st.integers(1, 10_000))
def test_pairs_join_2k_minus_1_and_2k_and_nobody_else(k):
    of = patient_rule("pairs")
    assert of(f"hippocampus_{2 * k - 1:03d}") == of(f"hippocampus_{2 * k:03d}") == f"P{k:03d}"


@pytest.mark.parametrize("case_id", ["nothing", "a1_b2", "case_000"])
def test_pairs_need_one_number(case_id):
    with pytest.raises(DataError) as caught:
        patient_rule("pairs")(case_id)
    assert caught.value.case_id == case_id


def test_regex_and_none():
    of = patient_rule(r"regex:^(sub-\d+)_")
    assert of("sub-07_ses-1") == "sub-07"
    with pytest.raises(DataError):
        of("other")
    assert patient_rule("none")("anything") is None


@pytest.mark.parametrize("rule", ["pair", "regex:(", "regex:abc", "regex:(a)(b)", ""])
def test_rules_that_are_none(rule):
    with pytest.raises(UsageError):
        patient_rule(rule)
