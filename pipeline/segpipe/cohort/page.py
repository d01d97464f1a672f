"""The page of a cohort: what is decided, how volumes are spread, whether images drift, and who is unlike the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.cohort.changes import Change
from segpipe.cohort.results import CohortCase
from segpipe.common.console import counted
from segpipe.reporting import Picture, Section, Table, control_chart, control_limit, running_mean, spread, write_page

NOT_A_DEVICE = "Research and engineering use. Not a medical device, not for diagnosis or treatment."
ONE_MODEL = "Only cases of one model are compared with each other: the same bundles, mirroring, runtime and precision."
WINDOW = 20
MOST_LABELS, MOST_CASES = 40, 500
WORST = {"hold": 0, "look": 1, "released": 2, None: 3, "ok": 4}


def write_cohort_page(
    path: Path,
    cases: Sequence[CohortCase],
    outliers: Mapping[tuple[str, str], Sequence[str]],
    changes: Sequence[Change] = (),
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the page.
        cases: oldest first.
        outliers: by run and id, the labels of unusual volume.
        changes: of patients that were scanned more than once.

    Raises:
        UsageError: it cannot be written.
    """
    runs, models = dict.fromkeys(case.run for case in cases), dict.fromkeys(case.model for case in cases)
    title = f"{counted(len(cases), 'case')} of {counted(len(runs), 'result folder')}"
    sections = [_decisions(cases, outliers), *(_drift(cases, model) for model in models)]
    sections += [_volumes(cases, model, outliers) for model in models]
    sections += [_changes(changes), _cases(cases, outliers)]
    write_page(path, title, [section for section in sections if section], "Outliers first.")


def _decisions(cases: Sequence[CohortCase], outliers: Mapping[tuple[str, str], Sequence[str]]) -> Section:
    count = Counter(case.decision for case in cases)
    figures = [
        (str(count["hold"]), "held"),
        *([(str(count["released"]), "released by a person")] if count["released"] else []),
        (str(count["look"]), "to be looked at"),
        (str(count["ok"]), "ok"),
        (str(count[None]), "not judged: no quality model"),
        (str(len(outliers)), "of unusual volume"),
    ]
    words = [NOT_A_DEVICE, ONE_MODEL]
    return Section("Decisions", words, figures=figures)


def _drift(cases: Sequence[CohortCase], model: str) -> Section | None:
    """Draw p-values over time, of the cases of a model that have a time."""
    values = [
        case.p_value for case in cases if case.model == model and case.time is not None and case.p_value is not None
    ]
    if not values:
        return None
    means = running_mean(values, WINDOW)
    limit = 0.5 - control_limit(WINDOW)
    if not len(means):
        said = f"{counted(len(values), 'case')}: the mean of {WINDOW} is needed to tell a drift."
    elif (means < limit).any():
        said = (
            f"The mean of {WINDOW} cases in a row falls to {means.min():.2f}, below the limit of {limit:.2f}: they are "
            "no longer like those that the model was calibrated on. Look for a new scanner, protocol or population."
        )
    else:
        said = f"The mean of {WINDOW} cases in a row stays above the limit of {limit:.2f}: no drift is seen."
    words = "A p-value is the share of calibration patients that are at least as far from the usual; evenly spread "
    words += "while images are alike."
    picture = Picture(control_chart(values, WINDOW), f"p-values of {len(values)} cases over time, with control limits")
    return Section(f"Drift: {model}", [said, words], pictures=[picture])


def _volumes(
    cases: Sequence[CohortCase], model: str, outliers: Mapping[tuple[str, str], Sequence[str]]
) -> Section | None:
    alike = [case for case in cases if case.model == model]
    labels = list(dict.fromkeys(label for case in alike for label in case.volumes_ml))[:MOST_LABELS]
    if not labels:
        return None
    values = {label: [case.volumes_ml[label] for case in alike if label in case.volumes_ml] for label in labels}
    odd = {
        label: [
            place
            for place, case in enumerate(case for case in alike if label in case.volumes_ml)
            if label in outliers.get((case.run, case.id), ())
        ]
        for label in labels
    }
    picture = Picture(spread(values, odd, "mL"), "volumes of each label, a point a case, outliers in red")
    words = "A point is a case, a line the median; red where a volume is more than 3.5 robust standard deviations off."
    return Section(f"Volumes: {model}", [words], pictures=[picture])


def _changes(changes: Sequence[Change]) -> Section | None:
    """List the changes from scan to scan, those first whose interval lies farthest from 0."""
    if not changes:
        return None

    def certainty(change: Change) -> float:
        if change.low_ml is None or change.high_ml is None:
            return -math.inf
        return max(change.low_ml, -change.high_ml) / max(abs(change.ml), 1e-9)

    rows = []
    for change in sorted(changes, key=lambda each: -certainty(each))[:MOST_CASES]:
        share = None if change.share is None else f"{change.share:+.1%}"
        said = change.why_none or f"{change.low_ml:+.3g} to {change.high_ml:+.3g}"
        rows.append([change.patient, change.label, change.earlier, change.later, change.days, change.ml, share, said])
    columns = ["patient", "label", "from", "to", "days", "change (mL)", "change", "interval (mL)"]
    words = [
        "The interval joins those of both volumes, each made to hold by itself: a change whose interval holds 0 may be "
        "the model's own error. It is wider than one of repeated scans, of which nothing is known. None is given where "
        "the model or the phase differs, or a result is or was held."
    ]
    cut = [f"The first {MOST_CASES} of {len(changes)}; all stand in changes.csv."] if len(changes) > MOST_CASES else []
    return Section("Changes from scan to scan", [*words, *cut], tables=[Table(columns, rows)])


def _cases(cases: Sequence[CohortCase], outliers: Mapping[tuple[str, str], Sequence[str]]) -> Section:
    """List all cases, those first that are held, to be looked at, outliers, far."""
    labels = list(dict.fromkeys(label for case in cases for label in case.volumes_ml))[:6]

    def order(case: CohortCase) -> tuple[Any, ...]:
        unusual = (case.run, case.id) in outliers
        return (WORST.get(case.decision, WORST[None]), not unusual, -(case.distance or 0.0), case.run, case.id)

    rows = []
    for case in sorted(cases, key=order)[:MOST_CASES]:
        unusual = [f"unusual volume of {label}" for label in outliers.get((case.run, case.id), ())]
        words = "; ".join([*case.reasons, *unusual])
        dice = min(case.dice.values(), default=None)
        volumes = [case.volumes_ml.get(label) for label in labels]
        rows.append([case.id, case.run, case.decision, words or None, case.p_value, dice, *volumes])
    columns = ["case", "folder", "decision", "why", "p", "least predicted Dice", *(f"{label} (mL)" for label in labels)]
    cut = [f"The first {MOST_CASES} of {len(cases)}; all stand in cases.csv."] if len(cases) > MOST_CASES else []
    return Section("Cases, outliers first", cut, tables=[Table(columns, rows)])
