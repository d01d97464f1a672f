"""Clean-up rules for labels or regions: what each candidate does to a case, and which one helps a label beyond doubt.

`try_rules` measures one case in a worker process; `choose_rules` judges all of them, on validation cases alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.common.console import SCHEMA_VERSION
from segpipe.data import Case, Manifest
from segpipe.errors import RefusedError
from segpipe.evaluation.measure import dice, volume_ml
from segpipe.evaluation.statistics import Estimate, bootstrap_mean
from segpipe.inference import LabelRule, cleanup_transforms

MIN_VOLUMES_ML = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
"""From specks to a small organ; most labels gain from none of them."""

CANDIDATES = tuple(
    LabelRule(keep_largest, volume) for volume in (None, *MIN_VOLUMES_ML) for keep_largest in (False, True)
)[1:]
"""Simple rules first: of two that do equally well, the earlier is chosen."""


@dataclass(frozen=True)
class Trial:
    """Dice of one label of a case as predicted, and after each of `CANDIDATES`; 1 where both masks are empty."""

    label: int
    before: float
    after: tuple[float, ...]


def try_rules(
    truth: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    labels: Mapping[int, str],
    affine: NDArray[np.float64],
    counted: NDArray[np.bool_] | None = None,
    looked_for: Collection[int] | None = None,
) -> list[Trial | None]:
    """Return the Dice of every label, or region, with every candidate rule; None for what nobody looked for.

    A label that is empty in both counts 1 here, so that removing what is not in truth is a gain. A rule is applied to
    the whole prediction, and measured where the truth counts.

    Args:
        truth: label map (X, Y, Z), or masks of regions (regions, X, Y, Z).
        prediction: the same of the prediction.
        labels: value to name, without background; of regions their number from 1.
        affine: (4, 4) voxel index to mm.
        counted: (X, Y, Z) where the truth says something; None: everywhere.
        looked_for: values of ``labels`` that were looked for; None: all.
    """
    voxel_ml = volume_ml([True], affine)
    trials: list[Trial | None] = []

    for value in labels:
        if looked_for is not None and value not in looked_for:
            trials.append(None)
            continue
        true, predicted = (each == value if each.ndim == 3 else each[value - 1] == 1 for each in (truth, prediction))
        box = _box_of(true | predicted)  # beyond it nothing is kept, removed or counted
        true, predicted, counts = true[box], predicted[box], None if counted is None else counted[box]
        before = _dice(true, predicted, counts)
        sizes_ml = _component_sizes(predicted) * voxel_ml
        after = tuple(
            _dice(true, apply_rule(rule, predicted, affine), counts) if _changes(rule, sizes_ml, voxel_ml) else before
            for rule in CANDIDATES
        )
        trials.append(Trial(value, before, after))
    return trials


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box around what is in a mask; an empty one where nothing is."""
    found = ndimage.find_objects(mask.view(np.uint8), max_label=1)[0]
    return found or (slice(0, 0),) * mask.ndim


def _component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return np.bincount(components.ravel())[1:]


def _changes(rule: LabelRule, sizes_ml: NDArray[np.floating[Any]], voxel_ml: float) -> bool:
    """Tell whether a rule could remove anything; most labels are one component, and need no transform."""
    least = None if rule.min_volume_ml is None else rule.min_volume_ml + 2 * voxel_ml  # more than rounding
    return (rule.keep_largest and len(sizes_ml) > 1) or (least is not None and bool((sizes_ml < least).any()))


def apply_rule(rule: LabelRule, mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask, not empty, after the very transforms that a bundle would apply."""
    import torch
    from monai.data import MetaTensor

    box = _box_of(mask)  # and background around it, without which all is kept
    image = torch.from_numpy(np.pad(mask[box], 1)[None].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image renames an argument that MONAI passes
        item = _transforms(rule)({"pred": MetaTensor(image, affine=torch.from_numpy(affine))})
    cleaned = np.zeros_like(mask)
    cleaned[box] = item["pred"][0, 1:-1, 1:-1, 1:-1].numpy() > 0
    return cleaned


@lru_cache(maxsize=len(CANDIDATES))
def _transforms(rule: LabelRule) -> Callable[[dict[str, Any]], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.bundle import ConfigParser

        steps = cleanup_transforms({1: rule}, n_labels=2)
        parser = ConfigParser({"cleanup": {"_target_": "Compose", "transforms": steps}})
        transforms: Callable[[dict[str, Any]], dict[str, Any]] = parser.get_parsed_content("cleanup")
    return transforms


def _dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], counted: NDArray[np.bool_] | None) -> float:
    score = dice(truth, prediction if counted is None else prediction & counted)
    return 1.0 if score is None else score


@dataclass(frozen=True)
class Choice:
    """The rule for a label, or None where none helps; and what every candidate gains in mean Dice."""

    label: int
    name: str
    rule: LabelRule | None
    before: float
    gains: tuple[Estimate, ...]


def refuse_test_cases(manifest: Manifest, cases: Sequence[Case]) -> None:
    """Refuse to choose anything on test cases.

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
    trials: Sequence[Sequence[Trial | None]],
    groups: Sequence[str],
    labels: Mapping[int, str],
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> list[Choice]:
    """Return, for each label, the rule with the largest gain in mean Dice, where it is a gain beyond doubt.

    The gain of a case is its Dice after less its Dice before; a rule may be chosen only where the lower end of
    the gain's 95 % bootstrap interval over patients is above 0.

    Args:
        trials: of each measured case, one a label in the order of ``labels``; failed cases say nothing about a rule,
            and neither do cases in which nobody looked for the label (None).
        groups: patient of each of these cases.
        labels: value to name, without background.
        n_bootstrap: number of draws.
        seed: of the draws.
    """
    choices = []
    for position, (value, name) in enumerate(labels.items()):
        pairs = zip(trials, groups, strict=True)
        known = [(trial, group) for of_labels, group in pairs if (trial := of_labels[position]) is not None]
        of_cases, patients = [trial for trial, _ in known], [group for _, group in known]
        gains = tuple(
            bootstrap_mean([trial.after[index] - trial.before for trial in of_cases], patients, n_bootstrap, seed)
            for index in range(len(CANDIDATES))
        )
        best = max(range(len(CANDIDATES)), key=lambda index: _certain_gain(gains[index]))
        rule = CANDIDATES[best] if _certain_gain(gains[best]) > 0 else None
        before = sum(trial.before for trial in of_cases) / len(of_cases) if of_cases else 0.0
        choices.append(Choice(value, name, rule, before, gains))
    return choices


def rules_document(choices: Sequence[Choice], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``postprocessing.json``: rules of the labels that gain, and the evidence for all."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rules": {str(choice.label): asdict(choice.rule) for choice in choices if choice.rule},
        "evidence": {
            **{name: value for name, value in settings.items() if name != "test_readings"},  # never on test cases
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
    """Return the mean gain, or 0 where chance could have made it; rounded, so that equals are equal."""
    return round(gain.mean, 9) if gain.mean is not None and gain.low is not None and gain.low > 0 else 0.0
