"""Whether one variant is better than another on these patients, or whether it could be chance.

What all runs say together: the table, from the state and the files that the runs left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from segpipe.common.files import read_json
from segpipe.data import Manifest
from segpipe.evaluation import Estimate, bootstrap_mean
from segpipe.studies.compare.progress import State
from segpipe.studies.compare.runner import Place
from segpipe.studies.compare.variants import Cell, Settings, Variant

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


def compare(reference: Scores, others: Mapping[str, Scores], groups: Mapping[str, str]) -> dict[str, Comparison]:
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
    return {name: Comparison(each.difference, each.patients, each.p, corrected[name]) for name, each in alone.items()}


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


@dataclass(frozen=True)
class Measured:
    """A finished run's scores.

    Attributes:
        cell: which run.
        dice: case id to mean Dice over labels.
        by_label: label name to case id to Dice.
        failed: ids of the cases without a usable prediction.
    """

    cell: Cell
    dice: Mapping[str, float | None]
    by_label: Mapping[str, Mapping[str, float | None]]
    failed: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: which.
        runs: its finished runs.
        dice: case id to mean over the runs.
        estimate: mean over the cases.
        labels: label name to mean Dice over cases.
        comparison: against the reference; None for the reference itself, or where either has no run.
        facts: parameters, steps, seconds_per_step, minutes, peak_memory_mb, epochs, runs planned.
    """

    variant: Variant
    runs: list[Measured]
    dice: Mapping[str, float]
    estimate: Estimate
    labels: Mapping[str, float]
    comparison: Comparison | None
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.variant.name


def gather(state: State, settings: Settings, manifest: Manifest, place: Place) -> list[Row]:
    """A row for each variant, the reference first."""
    groups = {case.id: case.group for case in manifest.cases()}
    runs = {
        variant.name: [
            _read(cell, place) for cell in settings.cells() if cell.variant == variant and state.finished(cell.key)
        ]
        for variant in settings.variants()
    }
    dice = {name: mean_by_case([run.dice for run in found]) for name, found in runs.items()}
    reference, *others = dice
    tested = {name: dice[name] for name in others if dice[name] and dice[reference]}
    compared = compare(dice[reference], tested, groups)
    return [
        Row(
            variant,
            runs[variant.name],
            dice[variant.name],
            estimate(dice[variant.name], groups),
            _labels(runs[variant.name]),
            compared.get(variant.name),
            _facts(variant, state, settings),
        )
        for variant in settings.variants()
    ]


def best_row(rows: list[Row]) -> Row | None:
    """The variant of highest mean Dice; None where no run was finished."""
    scored = [row for row in rows if row.estimate.mean is not None]
    return max(scored, key=lambda row: row.estimate.mean or 0.0, default=None)


def plain_results(rows: list[Row], state: State, manifest: Manifest, place: Place) -> dict[str, Any]:
    """The results as plain values for compare.json."""
    cases = {case for row in rows for case in row.dice}
    runs = [run for row in rows for run in row.runs]
    best = best_row(rows)
    return {
        "reference": rows[0].name,
        "best": None if best is None else best.name,
        "cases": len(cases),
        "patients": len({case.group for case in manifest.cases() if case.id in cases}),
        "rows": [_plain(row) for row in rows],
        "failures": [
            {"run": key, "reason": facts["reason"]} for key, facts in state.cells.items() if facts["status"] == "failed"
        ],
        "environment": _environment(runs[0].cell, place) if runs else None,
    }


def _environment(cell: Cell, place: Place) -> Any:
    return read_json(place.cell(cell) / "run" / "run.json", "run record")["environment"]


def _plain(row: Row) -> dict[str, Any]:
    found = row.comparison
    return {
        "variant": row.name,
        "dice": asdict(row.estimate),
        "labels": dict(row.labels),
        "difference": None if found is None else asdict(found.difference),
        "patients": None if found is None else found.patients,
        "p": None if found is None else found.p,
        "p_holm": None if found is None else found.p_holm,
        **row.facts,
        "failed_cases": sorted(set().union(*(run.failed for run in row.runs))),
    }


def _read(cell: Cell, place: Place) -> Measured:
    cases = read_json(place.cell(cell) / "metrics" / "metrics.json", "evaluation")["cases"]
    by_label: dict[str, dict[str, float | None]] = {}
    for case in cases:
        for label in case["labels"]:
            by_label.setdefault(label["name"], {})[case["id"]] = label["dice"]
    failed = frozenset(case["id"] for case in cases if case["failure"] is not None)
    return Measured(cell, {case["id"]: case["mean_dice"] for case in cases}, by_label, failed)


def _labels(runs: list[Measured]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.by_label)
    means = {name: mean_by_case([run.by_label.get(name, {}) for run in runs]) for name in names}
    return {name: fmean(cases.values()) for name, cases in means.items() if cases}


def _facts(variant: Variant, state: State, settings: Settings) -> dict[str, Any]:
    about = state.variants[variant.name]
    cells = [cell for cell in settings.cells() if cell.variant == variant]
    done = [(cell, state.cells[cell.key]) for cell in cells if state.finished(cell.key)]
    per_epoch = about["steps_per_epoch"]
    timed = [facts["epoch_seconds"] / per_epoch[str(cell.fold)] for cell, facts in done if facts.get("epoch_seconds")]
    memory = [facts["peak_memory_mb"] for _, facts in done if facts.get("peak_memory_mb")]
    return {
        "network": about["network"],
        "loss": about["loss"],
        "runs": {"planned": len(cells), "finished": len(done)},
        "steps": sorted({facts["epochs"] * per_epoch[str(cell.fold)] for cell, facts in done}),
        "epochs": sorted({facts["epochs"] for _, facts in done}),
        "seconds_per_step": round(fmean(timed), 4) if timed else None,
        "minutes": round(fmean(facts["seconds"] for _, facts in done) / 60, 2) if done else None,
        "parameters": about["parameters"],
        "patch_size": about["patch_size"],
        "peak_memory_mb": max(memory, default=None),
    }
