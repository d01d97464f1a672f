"""From measured cases to a quality model: what each is like, and how good its label map was.

Each row is a case that was segmented by a model that did not see its patient, as it is or with its image spoiled. What
says how well the model does, and the margins of its bounds, come from patients that it was not fitted to: patients are
split into parts, and each part is judged by what the others gave.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segpipe.common.console import of_patients
from segpipe.errors import DataError
from segpipe.quality.model import LabelModel, QualityModel, inputs_of
from segpipe.quality.plausibility import Plausibility, calibrated
from segpipe.quality.population import Population
from segpipe.quality.regression import Boosted

LEAST_PATIENTS = 30  # below which no bound is given
LEAST_PLAUSIBLE = 8  # below which nothing is said
PARTS = 5
AS_IT_IS = "none"  # the kind of a row whose image was not spoiled
GOOD, BAD = 0.85, 0.7  # Dice


@dataclass(frozen=True)
class Row:
    """A case that was segmented by a model that did not see its patient.

    Attributes:
        case: its id.
        patient: whom it is of.
        kind: how its image was spoiled, ``none`` where it was not.
        grade: how much, 1 to 4; 0 where it was not.
        features: as `features_of` returns them.
        dice: by label, against the truth; a label that is not annotated, or in neither, is left out.
        volume_ratio: by label, true against predicted volume, where both are above 0.
    """

    case: str
    patient: str
    kind: str = AS_IT_IS
    grade: int = 0
    features: dict[str, float] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    volume_ratio: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """What a model that was not fitted to a row's patient said of it."""

    row: Row
    distance: float
    is_outside: bool
    dice: dict[str, float]


def fit(
    rows: Sequence[Row],
    labels: Sequence[str],
    level: float = 0.9,
    seed: int = 0,
    population: Population | None = None,
    patients_known: bool = True,
) -> QualityModel:
    """Return the quality model of measured cases.

    Args:
        rows: spoiled ones and those as they are.
        labels: their names.
        level: that bounds and intervals hold at.
        seed: of the parts, and of the trees.
        population: who the patients are, where that is known.
        patients_known: whether it is known whose the cases are; else each stands for a patient.

    Raises:
        DataError: cases of too few patients.
    """
    clean = [row for row in rows if row.kind == AS_IT_IS]
    patients = sorted({row.patient for row in clean})
    if len(patients) < LEAST_PLAUSIBLE:
        raise DataError(
            "too few patients to say what a usual case is like",
            found=of_patients(len(patients), patients_known),
            expected=f"at least {LEAST_PLAUSIBLE}; for bounds of Dice and volume at least {LEAST_PATIENTS}",
            hint="label more cases, or export the bundle without a quality model",
        )
    parts = parts_of(patients, seed)
    whole = _plausibility(clean, parts)
    known = {name: sum(f"{name}:doubt" in row.features for row in clean) for name in labels}
    model = QualityModel(
        whole,
        {name: LabelModel(known[name]) for name in labels},
        len(patients),
        len(clean),
        level,
        population=population or Population(),
        patients_known=patients_known,
    )
    if len(patients) < LEAST_PATIENTS:
        return model
    judged = cross_fit(rows, labels, parts, seed)
    models, trees = {}, _fit_dices(whole, rows, labels, seed)
    for name in labels:
        inside = [each for each in judged if each.row.kind == AS_IT_IS and not each.is_outside]
        margin, volume = dice_margin(inside, name, level), volume_margins(inside, name, level)
        dice = trees[name] if all(map(math.isfinite, (margin, *volume))) else None
        models[name] = LabelModel(known[name]) if dice is None else LabelModel(known[name], dice, margin, volume)
    rules = {"hold_distance": hold_distance(judged)}
    return replace(model, labels=models, tested=tested(judged, labels), rules=rules)


def hold_distance(judged: Sequence[CrossFitted]) -> float:
    """Return the distance from which a case is held: a quarter beyond 98 % of the cases as they are, and 2 at least."""
    clean = [each.distance for each in judged if each.row.kind == AS_IT_IS]
    return round(max(2.0, 1.25 * float(np.quantile(clean, 0.98))), 2)


def parts_of(patients: Sequence[str], seed: int, parts: int = PARTS) -> dict[str, int]:
    """Return a part for each patient, drawn at random and of equal sizes."""
    order = list(patients)
    random.Random(seed).shuffle(order)
    return {patient: index % parts for index, patient in enumerate(order)}


def cross_fit(
    rows: Sequence[Row], labels: Sequence[str], parts: Mapping[str, int], seed: int = 0, without: str | None = None
) -> list[CrossFitted]:
    """Judge each row by a model of the patients of the other parts.

    Args:
        rows: of all patients.
        labels: their names.
        parts: of each patient.
        seed: of the trees.
        without: a kind of spoiled images that no model is fitted to.
    """
    judged = []
    for part in sorted(set(parts.values())):
        others = [row for row in rows if parts[row.patient] != part and row.kind != without]
        clean = [row for row in others if row.kind == AS_IT_IS]
        known = _plausibility(clean, {patient: of for patient, of in parts.items() if of != part})
        models = _fit_dices(known, others, labels, seed)
        left = [row for row in rows if parts[row.patient] == part]
        cases = [row.features for row in left]
        groups = known.by_groups(cases)
        dices = {
            name: np.clip(model.of_rows(inputs_of(known, cases, groups, name)), 0.0, 1.0)
            for name, model in models.items()
            if model is not None and left
        }
        for index, row in enumerate(left):
            distance = max(groups[index].values(), default=0.0)
            dice = {name: float(each[index]) for name, each in dices.items() if row.features.get(f"{name}:volume")}
            judged.append(CrossFitted(row, distance, known.is_outside(distance), dice))
    return judged


def _plausibility(clean: Sequence[Row], parts: Mapping[str, int]) -> Plausibility:
    return calibrated(
        [row.features for row in clean], [row.patient for row in clean], [parts[row.patient] for row in clean]
    )


def _fit_dices(known: Plausibility, rows: Sequence[Row], labels: Sequence[str], seed: int) -> dict[str, Boosted | None]:
    """Return the trees of each label; None where too few rows are known."""
    groups = known.by_groups([row.features for row in rows])
    models: dict[str, Boosted | None] = dict.fromkeys(labels)
    for label in labels:
        fitting = [n for n, row in enumerate(rows) if label in row.dice and row.features.get(f"{label}:volume")]
        if len(fitting) >= LEAST_PATIENTS:
            cases = [rows[n].features for n in fitting]
            inputs = inputs_of(known, cases, [groups[n] for n in fitting], label)
            models[label] = Boosted.fit(inputs, np.array([rows[n].dice[label] for n in fitting]), seed)
    return models


def dice_margin(inside: Sequence[CrossFitted], label: str, level: float) -> float:
    """Return by how much a predicted Dice is lowered to a bound that holds for all cases of a patient at this level.

    Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116), the unit a
    patient; a bound is never above what is predicted.
    """
    scores: dict[str, float] = {}
    for each in inside:
        if label in each.dice and label in each.row.dice:
            score = each.dice[label] - each.row.dice[label]
            scores[each.row.patient] = max(scores.get(each.row.patient, -math.inf), score)
    return max(conformal_quantile(list(scores.values()), level), 0.0)


def volume_margins(inside: Sequence[CrossFitted], label: str, level: float) -> tuple[float, float]:
    """Return the logarithms of true against predicted volume between which all cases of a patient lie at this level."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for each in inside:
        if label in each.row.volume_ratio:
            ratio, patient = math.log(each.row.volume_ratio[label]), each.row.patient
            low[patient] = max(low.get(patient, -math.inf), -ratio)
            high[patient] = max(high.get(patient, -math.inf), ratio)
    side = (1 + level) / 2
    return -conformal_quantile(list(low.values()), side), conformal_quantile(list(high.values()), side)


def conformal_quantile(scores: Sequence[float], level: float) -> float:
    """Return the score that a new one stays at or below with this probability; infinite where there are too few."""
    rank = math.ceil((len(scores) + 1) * level)
    return math.inf if rank > len(scores) else round(sorted(scores)[rank - 1], 6)


def tested(judged: Sequence[CrossFitted], labels: Sequence[str]) -> dict[str, Any]:
    """Return how a quality model does on patients that it was not fitted to."""
    from scipy.stats import spearmanr

    clean = [each for each in judged if each.row.kind == AS_IT_IS]
    pairs = [
        (dice, each.row.dice[name]) for each in judged for name, dice in each.dice.items() if name in each.row.dice
    ]
    good = [each for each in clean if each.row.dice and min(each.row.dice.values()) > GOOD]
    predicted, true = (np.array(values) for values in zip(*pairs, strict=True)) if pairs else (np.zeros(0), np.zeros(0))
    return {
        "images": len(judged),
        "spoiled": len(judged) - len(clean),
        "rank_correlation": round(float(spearmanr(predicted, true).statistic), 4) if len(pairs) > 2 else None,
        "auroc_dice_below_0.7": auroc(-predicted, true < BAD),
        "good_outside": round(sum(each.is_outside for each in good) / max(1, len(good)), 4),
        "good_cases": len(good),
    }


def auroc(scores: np.ndarray[Any, Any], positive: np.ndarray[Any, Any]) -> float | None:
    """Return the area under the ROC curve: how often a positive has the higher score (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[positive].sum()
    return round(float((ranks - positives * (positives + 1) / 2) / (positives * negatives)), 4)
