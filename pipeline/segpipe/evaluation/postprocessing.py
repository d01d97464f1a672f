"""Which clean-up rule helps which label, judged on validation cases alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segpipe.common.console import SCHEMA_VERSION
from segpipe.data import Case, Manifest
from segpipe.errors import RefusedError
from segpipe.evaluation.case_evaluation import CANDIDATES, CaseResult
from segpipe.evaluation.statistics import Estimate, bootstrap_mean
from segpipe.inference import LabelRule


@dataclass(frozen=True)
class Choice:
    """The rule for a label, or None where none helps; and what every candidate gains in mean Dice."""

    label: int
    name: str
    rule: LabelRule | None
    before: float
    gains: tuple[Estimate, ...]


def refuse_test_cases(manifest: Manifest, cases: Sequence[Case]) -> None:
    """Nothing is chosen on test cases.

    Raises:
        RefusedError: one of the cases is a test case.
    """
    test = {case.id for case in manifest.test}
    if any(case.id in test for case in cases):
        raise RefusedError(
            "a post-processing rule is never chosen on test cases",
            hint="use the predictions of a validation fold: --split validation --fold K",
        )


def choose_rules(
    results: Sequence[CaseResult], labels: Mapping[int, str], n_bootstrap: int = 2000, seed: int = 0
) -> list[Choice]:
    """The rule with the largest gain in mean Dice for each label, where it is a gain beyond doubt.

    The gain of a case is its Dice after less its Dice before; a rule may be chosen only where the lower end of
    the gain's 95 % bootstrap interval over patients is above 0. Failed cases say nothing about a rule.
    """
    measured = [result for result in results if result.trials]
    groups = [result.group for result in measured]
    choices = []
    for position, (value, name) in enumerate(labels.items()):
        trials = [result.trials[position] for result in measured]
        gains = tuple(
            bootstrap_mean([trial.after[index] - trial.before for trial in trials], groups, n_bootstrap, seed)
            for index in range(len(CANDIDATES))
        )
        best = max(range(len(CANDIDATES)), key=lambda index: _certain_gain(gains[index]))
        rule = CANDIDATES[best] if _certain_gain(gains[best]) > 0 else None
        before = sum(trial.before for trial in trials) / len(trials) if trials else 0.0
        choices.append(Choice(value, name, rule, before, gains))
    return choices


def rules_document(choices: Sequence[Choice], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``postprocessing.json``: rules of the labels that gain, and the evidence for all."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rules": {str(choice.label): asdict(choice.rule) for choice in choices if choice.rule},
        "evidence": {
            **settings,
            "criterion": "mean Dice over cases rises and the lower end of the 95 % paired bootstrap interval "
            "over patients is above 0; a label empty in truth and prediction counts 1 here",
            "labels": {
                str(choice.label): {
                    "name": choice.name,
                    "mean_dice_before": choice.before,
                    "candidates": [
                        {**asdict(rule), "mean_gain": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n}
                        for rule, gain in zip(CANDIDATES, choice.gains, strict=True)
                    ],
                }
                for choice in choices
            },
        },
    }


def _certain_gain(gain: Estimate) -> float:
    """Mean gain, or 0 where chance could have made it; rounded, so that equals are equal."""
    return round(gain.mean, 9) if gain.mean is not None and gain.low is not None and gain.low > 0 else 0.0
