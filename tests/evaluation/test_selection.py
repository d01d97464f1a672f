"""A figure corrected for having been chosen by it, against simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.evaluation.selection import Selection, corrected_for_selection
from segpipe.evaluation.statistics import bootstrap_mean

PATIENTS, CASES_EACH = 30, 2


def simulated(seed: int, means: list[float], noise: float = 0.04) -> tuple[Selection, float]:
    """The best of candidates of known means on cases of varying difficulty, and the mean that it truly has."""
    random = np.random.default_rng(seed)
    names = [f"case{number}" for number in range(PATIENTS * CASES_EACH)]
    groups = {name: f"patient{number // CASES_EACH}" for number, name in enumerate(names)}
    difficulty = np.repeat(random.normal(0, 0.05, PATIENTS), CASES_EACH)
    candidates = {}
    for number, mean in enumerate(means):
        own = np.repeat(random.normal(0, noise, PATIENTS), CASES_EACH)  # cases of a patient are alike
        scores = mean + difficulty - difficulty.mean() + own + random.normal(0, noise, len(names))
        candidates[f"candidate{number}"] = dict(zip(names, scores.tolist(), strict=True))
    best = max(candidates, key=lambda name: np.mean(list(candidates[name].values())))
    return corrected_for_selection(candidates, groups, best, 400, seed), means[int(best.removeprefix("candidate"))]


def test_of_equal_candidates_the_best_looks_too_good_and_the_corrected_figure_does_not() -> None:
    found = [simulated(seed, [0.8] * 20) for seed in range(60)]
    raw = np.mean([selection.raw.mean - truth for selection, truth in found])
    corrected = np.array([selection.mean - truth for selection, truth in found])
    assert raw > 0.01
    assert abs(corrected.mean()) < raw / 6
    assert all(selection.again < 0.9 for selection, _ in found)
    inside = np.mean([selection.low <= truth <= selection.high for selection, truth in found])
    assert inside > 0.9


def test_a_candidate_that_is_truly_better_loses_nothing() -> None:
    found = [simulated(seed, [0.86, *[0.8] * 9]) for seed in range(20)]
    assert {truth for _, truth in found} == {0.86}
    assert abs(np.mean([selection.mean - selection.raw.mean for selection, _ in found])) < 0.001
    assert all(selection.again > 0.9 for selection, _ in found)


def test_it_is_the_plain_loop_over_draws_in_other_words() -> None:
    groups = {"a": "p", "b": "p", "c": "q", "d": "r", "e": "s"}
    one = {"a": 0.9, "b": 0.7, "c": 0.8, "d": 0.6, "e": 0.9}
    two = {"a": 0.5, "b": 0.8, "c": 0.9, "d": 0.9, "e": 0.2}
    partial = {"a": 0.95, "c": None, "d": 0.5}
    candidates = {"one": one, "two": two, "partial": partial}
    found = corrected_for_selection(candidates, groups, "one", 300, 5)
    patients = sorted(set(groups.values()))
    figures, again = [], 0
    for draw in np.random.default_rng(5).integers(0, len(patients), (300, len(patients))):
        cases = [case for patient in draw for case in groups if groups[case] == patients[patient]]
        rest = [case for case in groups if groups[case] not in {patients[patient] for patient in draw}]
        if not rest:
            continue

        def gain(name: str, where: list[str]) -> float | None:
            scores = candidates[name]
            both = [scores[case] - one[case] for case in where if scores.get(case) is not None]
            return sum(both) / len(both) if both else None

        gains = {name: gain(name, cases) for name in candidates}
        best = max((name for name in gains if gains[name] is not None), key=lambda name: gains[name])
        again += best == "one"
        figures.append(sum(one[case] for case in rest) / len(rest) + (gain(best, rest) or 0))
    assert found.mean == pytest.approx(np.mean(figures))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])))
    assert found.again == pytest.approx(again / len(figures))


def test_where_nothing_was_chosen_the_figure_stays() -> None:
    scores = {"a": 0.9, "b": 0.7, "c": None}
    groups = {"a": "p", "b": "q", "c": "r"}
    found = corrected_for_selection({"only": scores}, groups, "only")
    assert found.raw == bootstrap_mean([0.9, 0.7], ["p", "q"])
    assert (found.mean, found.low, found.high) == (found.raw.mean, found.raw.low, found.raw.high)
    assert (found.candidates, found.again) == (1, 1.0)


def test_one_patient_is_too_few_to_correct() -> None:
    found = corrected_for_selection({"one": {"a": 0.9}, "two": {"a": 0.5}}, {"a": "p"}, "one")
    assert (found.mean, found.low, found.high, found.candidates) == (0.9, None, None, 2)
