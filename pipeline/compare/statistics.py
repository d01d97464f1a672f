"""Whether one variant is better than another on these patients, or whether it could be chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.evaluate import Estimate, bootstrap_mean

FEWEST_PATIENTS = 6  # with five the smallest two-sided p of the signed-rank test is 0.0625
ALPHA = 0.05
LEAST_SHOWN = 0.001

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference, over the cases that both have.

    Attributes:
        difference: mean over cases of variant minus reference, with its 95 % interval over patients.
        patients: how many.
        p: two-sided, of the Wilcoxon signed-rank test over patients; None where there are too few.
        p_holm: the same, corrected for the number of variants that are tested.
    """

    difference: Estimate
    patients: int
    p: float | None
    p_holm: float | None = None


def mean_by_case(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Each case's mean over the runs (folds and seeds) that scored it; a case that none scored is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for case, value in run.items():
            if value is not None:
                values[case].append(value)
    return {case: fmean(found) for case, found in values.items()}


def estimate(scores: Scores, groups: Mapping[str, str]) -> Estimate:
    """Mean over cases, with its 95 % bootstrap interval over patients."""
    return bootstrap_mean(list(scores.values()), [groups[case] for case in scores])


def compare(
    reference: Scores, others: Mapping[str, Scores], groups: Mapping[str, str]
) -> dict[str, Comparison]:
    """Every variant against the reference.

    The interval is the bootstrap of the paired differences: patients are drawn, each with all its cases. The test is
    Wilcoxon's (1945) on the patients' mean differences, corrected for the number of tests after Holm (1979).

    Args:
        reference: case id to score.
        others: variant name to its scores.
        groups: case id to patient.

    Returns:
        Variant name to comparison.
    """
    alone = {name: _compare_one(reference, scores, groups) for name, scores in others.items()}
    corrected = dict(zip(alone, holm([each.p for each in alone.values()]), strict=True))
    return {
        name: Comparison(each.difference, each.patients, each.p, corrected[name])
        for name, each in alone.items()
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979); None, where nothing was tested, is not counted and stays."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[place] = largest
    return corrected


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test; None for fewer than six patients, 1 where none differs."""
    from scipy.stats import wilcoxon

    if len(differences) < FEWEST_PATIENTS:
        return None
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences, alternative="two-sided").pvalue)


def in_words(name: str, reference: str, found: Comparison, n_tests: int) -> str:
    """What the figures mean, for a reader who does not test hypotheses every day."""
    mean, low, high = found.difference.mean, found.difference.low, found.difference.high
    if mean is None:
        return f"{name} has no case in common with {reference}."
    text = f"{name}: mean Dice {abs(mean):.4f} {'above' if mean >= 0 else 'below'} {reference}"
    if low is not None and high is not None:
        text += f", 95 % interval {low:+.4f} to {high:+.4f}"
    if found.p_holm is None:
        few = f"{found.patients} patient{'' if found.patients == 1 else 's'}"
        return f"{text}. No p value: {few}, and fewer than {FEWEST_PATIENTS} cannot show a difference at the 5 % level."
    shown = as_p(found.p_holm) if found.p_holm < LEAST_SHOWN else f"= {as_p(found.p_holm)}"
    text += f", p {shown} after correction for {n_tests} test{'' if n_tests == 1 else 's'}. "
    if found.p_holm < ALPHA:
        return text + "Chance alone would seldom make such a difference between patients."
    return text + "It may be chance: no difference is shown, which does not mean that there is none."


def as_p(p: float) -> str:
    """A p value as it is shown."""
    return f"<{LEAST_SHOWN}" if p < LEAST_SHOWN else f"{p:.3f}"


def _compare_one(reference: Scores, scores: Scores, groups: Mapping[str, str]) -> Comparison:
    differences = {case: scores[case] - reference[case] for case in reference if case in scores}
    by_patient: dict[str, list[float]] = defaultdict(list)
    for case, difference in differences.items():
        by_patient[groups[case]].append(difference)
    p = signed_rank_p([fmean(found) for found in by_patient.values()])
    return Comparison(estimate(differences, groups), len(by_patient), p)
