"""Do the bounds of a quality model hold, and does it find poor results: on patients that it was not fitted to.

    python bench/quality_coverage.py RUN [--splits 100] [--level 0.9]

RUN is a cross-validation with `segpipe quality fit` behind it. In each of the splits half of the patients are drawn, a
quality model is fitted to them anew, and the other half are judged by it: the share of patients all of whose cases lie
above the bound of Dice, and within the interval of volume, for each label, of the cases that are `ok`, and for each
third of predicted volume; held cases are shown neither. Then the rank correlation of predicted and true Dice and the
AUROC for a Dice below 0.7, cross-fitted by patient: of all images, of each grade of spoiling, and of each kind that the
fit never saw. In brackets 95 %, bootstrap by patient.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from segpipe.quality import AS_IT_IS, HOLD, OK, Row, Rules, decide, fit
from segpipe.quality.fitting import BAD, CrossFitted, auroc, cross_fit, parts_of

Points = list[tuple[str, float, float]]  # patient, predicted Dice, true Dice


def read_rows(run: Path) -> list[Row]:
    """Return the rows that were measured, each once."""
    rows = {}
    for line in (run / "quality/rows.jsonl").read_text().splitlines():
        if line.endswith("}}"):
            parts = json.loads(line)
            rows[json.dumps(parts["tie"])] = Row(**parts["row"])
    return list(rows.values())


def coverage(rows: Sequence[Row], labels: Sequence[str], splits: int, level: float) -> None:
    """Print how often bounds and intervals hold."""
    patients = sorted({row.patient for row in rows})
    held: dict[tuple[str, str], list[float]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    decisions: Counter[str] = Counter()
    for number in range(splits):
        drawn = random.Random(number).sample(patients, len(patients) // 2)
        model = fit([row for row in rows if row.patient in set(drawn)], labels, level, number)
        new = [row for row in rows if row.patient not in set(drawn) and row.kind == AS_IT_IS]
        volumes = [{name: row.features.get(f"{name}:volume", 0.0) for name in labels} for row in new]
        thirds = {name: np.quantile([each[name] for each in volumes], [1 / 3, 2 / 3]) for name in labels}
        of_split: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
        for row, volume in zip(new, volumes, strict=True):
            given = model.assess(row.features, volume)
            decided = decide(given, {}, Rules()).decision
            decisions[f"{decided}"] += 1
            if decided == HOLD:  # which is shown none
                continue
            for label in set(labels) & set(given.dice_low) & set(row.dice) & set(row.volume_ratio):
                low, high = given.volume_ml[label]
                widths[f"{label}: predicted Dice less its bound"].append(given.dice[label] - given.dice_low[label])
                widths[f"{label}: interval of volume against volume"].append((high - low) / volume[label])
                third = ["small", "middle", "large"][int(np.searchsorted(thirds[label], volume[label]))]
                for what, holds in (
                    ("Dice", row.dice[label] >= given.dice_low[label]),
                    ("volume", low <= volume[label] * row.volume_ratio[label] <= high),
                ):
                    for group in ("all", "of ok cases", third) if decided == OK else ("all", third):
                        key = (f"{label}: {what}", group)
                        of_split[key][row.patient] = holds and of_split[key].get(row.patient, True)
        for key, each in of_split.items():
            held[key].append(float(np.mean(list(each.values()))))
    print(f"share of patients all of whose cases are covered, over {splits} splits (mean [5 %, 95 %] of the splits)")
    for (name, group), shares in sorted(held.items()):
        low, high = np.quantile(shares, [0.05, 0.95])
        print(f"  {name:<22} {group:<14} {np.mean(shares):.3f} [{low:.3f}, {high:.3f}]")
    for name, values in sorted(widths.items()):
        print(f"  mean width, {name}: {np.mean(values):.3f}")
    print("  cases by decision: " + ", ".join(f"{name} {n / decisions.total():.1%}" for name, n in decisions.items()))


def points(judged: Sequence[CrossFitted]) -> Points:
    """Return predicted and true Dice of every label."""
    return [
        (each.row.patient, dice, each.row.dice[name])
        for each in judged
        for name, dice in each.dice.items()
        if name in each.row.dice
    ]


def interval(found: Points, measure: Callable[[np.ndarray, np.ndarray], float | None], draws: int = 500) -> str:
    """Return a measure of predicted and true Dice with its bootstrap interval by patient."""
    by_patient: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for patient, predicted, true in found:
        by_patient[patient].append((predicted, true))
    names, generator, values = list(by_patient), np.random.default_rng(0), []
    for draw in range(draws + 1):
        chosen = names if draw == 0 else generator.choice(names, len(names))
        array = np.array([pair for name in chosen for pair in by_patient[name]])
        values.append(measure(array[:, 0], array[:, 1]))
    defined = [value for value in values[1:] if value is not None and math.isfinite(value)]
    if values[0] is None or not defined:
        return "-"
    low, high = np.quantile(defined, [0.025, 0.975])
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def ranks(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(predicted, true).statistic)


def finds_poor(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Return the AUROC of the predicted Dice for a true one below 0.7."""
    return auroc(-predicted, true < BAD)


def show(name: str, found: Points) -> None:
    """Print both measures of some points."""
    poor = sum(true < BAD for _, _, true in found)
    print(f"  {name:<24} {len(found):>6} {poor:>6}   {interval(found, ranks):<24} {interval(found, finds_poor)}")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--level", type=float, default=0.9)
    options = parser.parse_args()
    if options.run is None:
        print("skipped: needs a cross-validation with `segpipe quality fit` behind it")
        return
    rows = read_rows(options.run)
    labels = sorted({name for row in rows for name in row.dice})
    patients = sorted({row.patient for row in rows})
    parts = parts_of(patients, 0)
    judged = cross_fit(rows, labels, parts)
    clean = [each for each in judged if each.row.kind == AS_IT_IS]
    print(
        f"{len(rows)} images of {len(patients)} patients; {'labels':>16} {'< 0.7':>6}   rank correlation         AUROC"
    )
    show("all", points(judged))
    show("as they are", points(clean))
    for grade in (1, 2, 3, 4):
        show(f"grade {grade}", points([each for each in judged if each.row.grade == grade]))
    for kind in sorted({row.kind for row in rows} - {AS_IT_IS}):
        unseen = cross_fit(rows, labels, parts, without=kind)
        show(f"{kind}, never fitted", points([each for each in unseen if each.row.kind in (kind, AS_IT_IS)]))
    good = [each for each in clean if each.row.dice and min(each.row.dice.values()) > 0.85]
    outside = sum(each.is_outside for each in good)
    print(f"good cases (Dice above 0.85) that are not like what was calibrated: {outside} of {len(good)}")
    coverage(rows, labels, options.splits, options.level)


if __name__ == "__main__":
    main()
