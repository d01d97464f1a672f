"""What a figure is worth after the best of several candidates was chosen by it.

The best of many equals looks better than it is, since chance chose it. The correction is the bootstrap of the whole
choice (bootstrap bias corrected cross-validation: Tsamardinos, Greasidou, Borboudakis 2018,
doi:10.1007/s10994-018-5714-4): patients are drawn with replacement, the best candidate on the drawn ones is chosen, and
measured on the patients that were not drawn. No model is trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluation.statistics import LEVEL, Estimate, bootstrap_mean

METHOD = (
    "bootstrap bias corrected cross-validation (doi:10.1007/s10994-018-5714-4): the choice is made again on patients "
    "drawn with replacement, and measured on those that were not drawn"
)
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class Selection:
    """A figure of the candidate that was chosen, as it looks and as it is to be expected.

    Attributes:
        chosen: name of the candidate.
        raw: its mean over cases, with its interval over patients; on the cases that it was chosen on.
        mean: the same corrected for the choice; that of ``raw`` where there was one candidate.
        low, high: its 95 % interval; None where there are too few patients.
        candidates: how many there were.
        again: share of the draws in which the same candidate was chosen.
    """

    chosen: str
    raw: Estimate
    mean: float | None
    low: float | None
    high: float | None
    candidates: int
    again: float = 1.0


def corrected_for_selection(
    candidates: Mapping[str, Scores], groups: Mapping[str, str], chosen: str, n_bootstrap: int = 2000, seed: int = 0
) -> Selection:
    """Return the mean score of a chosen candidate, corrected for having been chosen by these scores.

    Candidates are compared with the chosen one on the cases that both have, so one that was given up after some of the
    cases takes part with those. A score is better the higher it is.

    Args:
        candidates: name to case id to score; None or absent where there is none.
        groups: case id to patient.
        chosen: one of the names.
        n_bootstrap: draws of patients.
        seed: of the draws.

    Returns:
        The figure; without a correction where fewer than two patients have a score.
    """
    reference = {case: score for case, score in candidates[chosen].items() if score is not None}
    cases = sorted(reference)
    raw = bootstrap_mean([reference[case] for case in cases], [groups[case] for case in cases], n_bootstrap, seed)
    others = [name for name in candidates if name != chosen]
    if not others or raw.low is None:
        return Selection(chosen, raw, raw.mean, raw.low, raw.high, len(candidates))
    patients, index = np.unique([groups[case] for case in cases], return_inverse=True)
    scores = _by_patient([[reference[case] for case in cases]], index)
    gains = [[_difference(candidates[name].get(case), reference[case]) for case in cases] for name in (chosen, *others)]
    figures, picked = _draws(scores, _by_patient(gains, index), len(patients), n_bootstrap, seed)
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    again = float((picked == 0).mean())
    return Selection(chosen, raw, float(figures.mean()), float(low), float(high), len(candidates), again)


def _difference(score: float | None, reference: float) -> float:
    return float("nan") if score is None else score - reference


def _by_patient(
    rows: Sequence[Sequence[float]], index: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums and counts (patients, rows) of the values that are there."""
    values = np.array(rows, dtype=np.float64)
    there = ~np.isnan(values)
    sums = [np.bincount(index, weights=row) for row in np.where(there, values, 0.0)]
    counts = [np.bincount(index, weights=row) for row in there.astype(np.float64)]
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def _draws(
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    gains: tuple[NDArray[np.float64], NDArray[np.float64]],
    patients: int,
    n_bootstrap: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Choose on the drawn patients and measure on the others; a draw that leaves nobody out is passed over.

    Returns:
        The figure and the candidate of each draw.
    """
    drawn = np.random.default_rng(seed).integers(0, patients, (n_bootstrap, patients))
    times = np.stack([np.bincount(row, minlength=patients) for row in drawn]).astype(np.float64)
    times = times[(times == 0).any(axis=1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = (times @ gains[0]) / (times @ gains[1])
        left_out = (times == 0).astype(np.float64)
        outside = (left_out @ gains[0]) / (left_out @ gains[1])
        reference = (left_out @ scores[0]) / (left_out @ scores[1])
    picked = np.where(np.isnan(inside), -np.inf, inside).argmax(axis=1)
    gain = outside[np.arange(len(picked)), picked]
    return reference[:, 0] + np.where(np.isnan(gain), 0.0, gain), picked
