"""Intervals and tests against SciPy, against numbers worked out by hand, and against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segpipe.studies.comparison_results import compare, estimate, holm, in_words, mean_by_case, signed_rank_p
from segpipe.studies.pairing import NOT_MEASURED, NOTHING_THERE, Side, pair


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.03]) == [0.03]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_and_the_bonferroni_p(values: list[float]) -> None:
    found = holm(values)
    for raw, corrected in zip(values, found, strict=True):
        assert raw <= corrected <= min(1.0, raw * len(values)) + 1e-12
    ranked = [corrected for _, corrected in sorted(zip(values, found, strict=True))]
    assert ranked == sorted(ranked)


def test_signed_rank_by_hand() -> None:
    # six patients, all better: one of 2^6 sign patterns on each side, 2/64
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    # ranks 1..7 with rank 1 negative: W = 1, two patterns (none, {1}) at most as extreme on each side, 4/128
    assert signed_rank_p([-0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) == pytest.approx(4 / 128)
    assert signed_rank_p([0.1] * 5) is None
    assert signed_rank_p([0.0] * 8) == 1.0


def test_one_value_a_patient_is_tested_as_scipy_tests_it() -> None:
    rng = np.random.default_rng(3)
    cases = [f"case_{number}" for number in range(30)]
    one, other = (dict(zip(cases, rng.random(30).tolist(), strict=True)) for _ in range(2))
    alone = {case: case for case in cases}
    found = compare(Side([one]), {"other": Side([other])}, alone)["other"]
    expected = stats.wilcoxon([other[case] - one[case] for case in cases])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_holm == found.p and found.patients == 30
    # two cases of one patient count as one: the p is that of the patients' means
    pairs = {case: f"patient {index // 2}" for index, case in enumerate(cases)}
    differences = np.array([other[case] - one[case] for case in cases]).reshape(-1, 2).mean(1)
    found = compare(Side([one]), {"other": Side([other])}, pairs)["other"]
    assert found.patients == 15 and found.p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_the_interval_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    cases = [str(number) for number in range(40)]
    hard = rng.normal(0.7, 0.15, 40)  # cases differ much, variants little
    one = dict(zip(cases, hard, strict=True))
    other = dict(zip(cases, hard + rng.normal(0.02, 0.01, 40), strict=True))
    alone = {case: case for case in cases}
    found = compare(Side([one]), {"other": Side([other])}, alone)["other"].difference
    differences = np.array([other[case] - one[case] for case in cases])
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=5000, rng=rng)
    assert found.mean == pytest.approx(differences.mean())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.001)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.001)
    unpaired = estimate(other, alone)
    assert found.high - found.low < 0.2 * (unpaired.high - unpaired.low)


def test_without_a_difference_few_tests_find_one() -> None:
    rng = np.random.default_rng(1)
    cases = [str(number) for number in range(12)]
    alone = {case: case for case in cases}
    false_alarms = 0
    for _ in range(200):
        truth = rng.normal(0.8, 0.1, 12)
        reference, *more = (Side([dict(zip(cases, truth + rng.normal(0, 0.02, 12), strict=True))]) for _ in range(5))
        others = {str(name): side for name, side in enumerate(more)}
        false_alarms += any(each.p_holm < 0.05 for each in compare(reference, others, alone).values())
    assert false_alarms / 200 < 0.1  # 0.05 is promised; uncorrected it is about 0.15


def test_folds_and_seeds_are_averaged_by_case_before_anything_else() -> None:
    assert mean_by_case([{"a": 0.5, "b": None}, {"a": 1.0, "c": 0.25}]) == {"a": 0.75, "c": 0.25}
    found = compare(Side([{"a": 0.5, "b": 0.9}]), {"other": Side([{"a": 0.75}])}, {"a": "1", "b": "2"})["other"]
    assert (found.difference.mean, found.difference.n, found.patients) == (0.25, 1, 1)


def test_words_say_what_is_known_and_what_is_not() -> None:
    cases = [str(number) for number in range(6)]
    alone = {case: case for case in cases}
    one = dict.fromkeys(cases, 0.5)

    def words(other: dict[str, float], known: bool = True, **more: dict[str, float]) -> str:
        sides = {name: Side([scores]) for name, scores in {"other": other, **more}.items()}
        found = compare(Side([one]), sides, alone)
        return in_words("other", "first", found["other"], len(found), known)

    better = {case: 0.6 + 0.01 * number for number, case in enumerate(cases)}
    assert "0.1250 above first, 95 % interval +0.1" in words(better)
    assert "p = 0.031 after correction for 1 test." in words(better) and "seldom" in words(better)
    mixed = {case: 0.5 + (-1) ** number * 0.01 * (number + 1) for number, case in enumerate(cases)}
    assert "does not mean that there is none" in words(mixed)
    assert "p = 0.062 after correction for 2 tests." in words(better, more=better)
    few = words({"0": 0.4})
    assert "0.1000 below first" in few and "No p value: 1 patient, and fewer than 6" in few
    assert "No p value: 1 case, patients unknown, and fewer than 6" in words({"0": 0.4}, known=False)
    assert "between patients" in words(better) and "between cases" in words(better, known=False)
    assert words({}).startswith("other has no case in common with first. 6 cases left out (0, 1, 2, 3, 4, 5): ")


def test_who_rightly_finds_nothing_is_above_who_finds_something() -> None:
    right = Side([{"empty": None, "both": None, "full": 0.5}])
    wrong = Side([{"empty": 0.0, "both": None, "full": 0.5}])
    groups = dict.fromkeys(["empty", "both", "full"], "a")
    for reference, other, mean in ((right, wrong, -0.5), (wrong, right, 0.5)):
        found = compare(reference, {"other": other}, groups)["other"]
        assert found.difference.mean == mean and found.pairs.left_out == {"both": NOTHING_THERE}
    # also where one of two seeds found something
    assert pair(Side([{"a": None}, {"a": 0.0}]), Side([{"a": None}, {"a": None}])).reference == {"a": 0.5}


def test_cases_that_are_left_out_or_failed_on_one_side_are_named() -> None:
    reference = Side([{"a": 0.5, "b": 0.0, "c": 0.0, "d": 0.9}], frozenset({"b", "c"}))
    other = Side([{"a": 0.5, "b": 0.0, "c": 0.8}], frozenset({"b"}))
    pairs = pair(reference, other)
    assert pairs.left_out == {"d": NOT_MEASURED} and list(pairs.other) == ["a", "b", "c"]
    assert (pairs.failed_in_reference, pairs.failed_in_other) == (("c",), ())
    words = pairs.words("new", "old")
    assert words.startswith("1 case left out (d): measured on one side alone. ")
    assert words.endswith("No fair comparison: 1 case of old alone failed (c) and counts as Dice 0.")
    assert pair(other, reference).failed_in_other == ("c",)
    assert pair(other, other).words("new", "old") == ""
