"""The results of a comparison: a row for each variant from what its runs left, each paired with the reference.

Dice is a mean over cases with a bootstrap interval over patients. Against the reference stand the paired difference
(`segpipe.studies.pairing`) with its interval and Wilcoxon's signed-rank test (1945) over patients, corrected for the
number of variants after Holm (1979).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from segpipe.common.console import of_patients
from segpipe.common.files import read_json
from segpipe.evaluation import Estimate, bootstrap_mean
from segpipe.studies.comparison_state import State, Study
from segpipe.studies.pairing import Pairs, Side, pair
from segpipe.studies.variants import Cell, Variant

FEWEST_PATIENTS = 6  # with five the smallest two-sided p of the signed-rank test is 0.0625
ALPHA = 0.05
LEAST_SHOWN = 0.001

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference, over the cases that both have.

    Attributes:
        pairs: these cases, and those that were left out.
        difference: mean over cases of variant minus reference, with its 95 % interval over patients.
        patients: how many.
        p: two-sided, of the Wilcoxon signed-rank test over patients; None where there are too few.
        p_holm: the same, corrected for the number of variants that are tested.
    """

    pairs: Pairs
    difference: Estimate
    patients: int
    p: float | None
    p_holm: float | None = None

    def document(self) -> dict[str, Any]:
        """Return plain values."""
        tested = {"patients": self.patients, "p": self.p, "p_holm": self.p_holm}
        return {"difference": asdict(self.difference), **tested, **self.pairs.document()}


def mean_by_case(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return each case's mean over the runs (folds and seeds) that scored it; a case that none scored is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for case, value in run.items():
            if value is not None:
                values[case].append(value)
    return {case: fmean(scores) for case, scores in values.items()}


def estimate(scores: Scores, groups: Mapping[str, str]) -> Estimate:
    """Return the mean over cases, with its 95 % bootstrap interval over patients."""
    return bootstrap_mean(list(scores.values()), [groups[case] for case in scores])


def compare(reference: Side, variants: Mapping[str, Side], groups: Mapping[str, str]) -> dict[str, Comparison]:
    """Compare every variant with the reference, paired by case.

    The interval is the bootstrap of the paired differences: patients are drawn, each with all its cases. The test is
    Wilcoxon's on the patients' mean differences.

    Args:
        reference: its scores.
        variants: variant name to its scores.
        groups: case id to patient.
    """
    paired = {name: _compare_one(pair(reference, side), groups) for name, side in variants.items()}
    corrected = holm([comparison.p for comparison in paired.values()])
    return {
        name: replace(comparison, p_holm=p) for (name, comparison), p in zip(paired.items(), corrected, strict=True)
    }


def _compare_one(pairs: Pairs, groups: Mapping[str, str]) -> Comparison:
    differences = {case: pairs.other[case] - score for case, score in pairs.reference.items()}
    by_patient: dict[str, list[float]] = defaultdict(list)
    for case, difference in differences.items():
        by_patient[groups[case]].append(difference)
    p = signed_rank_p([fmean(values) for values in by_patient.values()])
    return Comparison(pairs, estimate(differences, groups), len(by_patient), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values after Holm's step-down correction; None, where nothing was tested, is not counted and stays."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = largest
    return corrected


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided Wilcoxon signed-rank p; None for fewer than six patients, 1 where none differs."""
    from scipy.stats import wilcoxon

    if len(differences) < FEWEST_PATIENTS:
        return None
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences, alternative="two-sided").pvalue)


def in_words(name: str, reference: str, comparison: Comparison, n_tests: int, patients_known: bool = True) -> str:
    """Say what the figures mean, for a reader who does not test hypotheses every day, and which cases they lack."""
    outcome = _outcome(name, reference, comparison, n_tests, patients_known)
    return f"{outcome} {comparison.pairs.words(name, reference)}".rstrip()


def _outcome(name: str, reference: str, comparison: Comparison, n_tests: int, known: bool) -> str:
    mean, low, high = comparison.difference.mean, comparison.difference.low, comparison.difference.high
    p = comparison.p_holm
    if mean is None:
        return f"{name} has no case in common with {reference}."
    text = f"{name}: mean Dice {abs(mean):.4f} {'above' if mean >= 0 else 'below'} {reference}"
    if low is not None and high is not None:
        text += f", 95 % interval {low:+.4f} to {high:+.4f}"
    if p is None:
        few = of_patients(comparison.patients, known)
        return f"{text}. No p value: {few}, and fewer than {FEWEST_PATIENTS} cannot show a difference at the 5 % level."
    shown = as_p(p) if p < LEAST_SHOWN else f"= {as_p(p)}"
    text += f", p {shown} after correction for {n_tests} test{'' if n_tests == 1 else 's'}. "
    if p < ALPHA:
        return f"{text}Chance alone would seldom make such a difference between {'patients' if known else 'cases'}."
    return text + "It may be chance: no difference is shown, which does not mean that there is none."


def as_p(p: float) -> str:
    """Return a p value as it is shown."""
    return f"<{LEAST_SHOWN}" if p < LEAST_SHOWN else f"{p:.3f}"


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
        """Return the variant's name."""
        return self.variant.name

    @property
    def failed(self) -> list[str]:
        """Return the cases without a usable prediction of a run; each counts as Dice 0."""
        return sorted(set().union(*(run.failed for run in self.runs)))

    @property
    def without_dice(self) -> list[str]:
        """Return the cases in no mean: no label is there, and no run found one."""
        return sorted({case for run in self.runs for case in run.dice if case not in self.dice})


def gather(study: Study, state: State) -> list[Row]:
    """Return a row for each variant, the reference first."""
    groups = {case.id: case.group for case in study.dataset.cases()}
    variants = {variant.name: variant for variant in study.settings.variants()}
    cells = {name: [cell for cell in study.settings.cells() if cell.variant == variants[name]] for name in variants}
    runs = {name: [_read(cell, study) for cell in cells[name] if state.finished(cell)] for name in variants}
    dice = {name: mean_by_case([run.dice for run in runs[name]]) for name in variants}
    sides = {
        name: Side([run.dice for run in runs[name]], frozenset().union(*(run.failed for run in runs[name])))
        for name in variants
    }
    reference, *names = variants
    tested = {name: sides[name] for name in names if runs[name] and runs[reference]}
    compared = compare(sides[reference], tested, groups)
    return [
        Row(
            variant,
            runs[name],
            dice[name],
            estimate(dice[name], groups),
            _mean_by_label(runs[name]),
            compared.get(name),
            _facts(variant, cells[name], state),
        )
        for name, variant in variants.items()
    ]


def _read(cell: Cell, study: Study) -> Measured:
    cases = read_json(study.folder(cell) / "metrics" / "metrics.json", "evaluation")["cases"]
    by_label: dict[str, dict[str, float | None]] = {}
    for case in cases:
        for label in case["labels"]:
            by_label.setdefault(label["name"], {})[case["id"]] = label["dice"]
    failed = frozenset(case["id"] for case in cases if case["failure"] is not None)
    return Measured(cell, {case["id"]: case["mean_dice"] for case in cases}, by_label, failed)


def _mean_by_label(runs: list[Measured]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.by_label)
    means = {name: mean_by_case([run.by_label.get(name, {}) for run in runs]) for name in names}
    return {name: fmean(cases.values()) for name, cases in means.items() if cases}


def _facts(variant: Variant, cells: list[Cell], state: State) -> dict[str, Any]:
    recorded = state.variants[variant.name]
    done = [(str(cell.fold), state.cells[cell.key]) for cell in cells if state.finished(cell)]
    steps = recorded["steps_per_epoch"]
    timed = [facts["epoch_seconds"] / steps[fold] for fold, facts in done if facts.get("epoch_seconds")]
    memory = [facts["peak_memory_mb"] for _, facts in done if facts.get("peak_memory_mb")]
    return {
        "network": recorded["network"],
        "loss": recorded["loss"],
        "runs": {"planned": len(cells), "finished": len(done)},
        "steps": sorted({facts["epochs"] * steps[fold] for fold, facts in done}),
        "epochs": sorted({facts["epochs"] for _, facts in done}),
        "seconds_per_step": round(fmean(timed), 4) if timed else None,
        "minutes": round(fmean(facts["seconds"] for _, facts in done) / 60, 2) if done else None,
        "parameters": recorded["parameters"],
        "patch_size": recorded["patch_size"],
        "peak_memory_mb": max(memory, default=None),
    }


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the variant of highest mean Dice; None where no run was finished."""
    scored = [row for row in rows if row.estimate.mean is not None]
    return max(scored, key=lambda row: row.estimate.mean or 0.0, default=None)


def plain_results(rows: Sequence[Row], study: Study, state: State) -> dict[str, Any]:
    """Return the results as plain values for compare.json."""
    cases = {case for row in rows for case in row.dice}
    cells = [run.cell for row in rows for run in row.runs]
    best = best_row(rows)
    failed = {key: facts["reason"] for key, facts in state.cells.items() if facts["status"] == "failed"}
    environment = None
    if cells:
        environment = read_json(study.folder(cells[0]) / "run" / "run.json", "run record")["environment"]
    return {
        "reference": rows[0].name,
        "best": None if best is None else best.name,
        "cases": len(cases),
        "patients": len({case.group for case in study.dataset.cases() if case.id in cases}),
        "patients_known": study.dataset.knows_patients,
        "rows": [_plain(row) for row in rows],
        "failures": [{"run": key, "reason": reason} for key, reason in failed.items()],
        "environment": environment,
    }


def _plain(row: Row) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("difference", "patients", "p", "p_holm", "cases", "left_out", "left_out_cases", "failed_alone")
    )
    return {
        "variant": row.name,
        "dice": asdict(row.estimate),
        "labels": dict(row.labels),
        **(nothing if row.comparison is None else row.comparison.document()),
        **row.facts,
        "failed_cases": row.failed,
        "without_dice": row.without_dice,
    }
