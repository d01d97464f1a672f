"""How the volumes of a patient change from scan to scan, and how much of that the model's own error may be.

Who a case is of stands in a table that only its owner has. Between two scans a volume changed by the difference of
both; the interval goes from the lower end of the later volume less the upper end of the earlier one to the opposite.
It holds where both intervals do, at least in so many patients as both misses together leave (Bonferroni). It is wider
than one of repeated scans would be, of which a quality model knows none.
"""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from segpipe.cohort.results import CohortCase
from segpipe.errors import DataError, UsageError

NEEDED, OPTIONAL = ("case", "patient", "date"), ("folder", "phase")
HINT = "a table such as: case,patient,date,phase"


@dataclass(frozen=True)
class Visit:
    """When a patient was scanned.

    Attributes:
        patient: a pseudonym.
        day: of the scan.
        phase: of the contrast, or whatever else has to be the same; empty where nobody said.
    """

    patient: str
    day: date
    phase: str = ""


@dataclass(frozen=True)
class Change:
    """How a volume changed from one scan of a patient to the next.

    Attributes:
        patient: a pseudonym.
        label: whose volume.
        earlier, later: the cases, as folder and id.
        days: between them.
        ml: by how much it grew.
        share: the same as a share of the earlier volume; None where that is 0.
        low_ml, high_ml: the interval of that growth; None where there is none.
        why_none: why there is no interval; empty where there is one.
    """

    patient: str
    label: str
    earlier: str
    later: str
    days: int
    ml: float
    share: float | None
    low_ml: float | None = None
    high_ml: float | None = None
    why_none: str = ""


def read_visits(path: Path) -> dict[tuple[str, str], Visit]:
    """Return the visits of a table by folder and case; the folder is empty where the table has none.

    Args:
        path: a CSV file with the columns ``case``, ``patient``, ``date`` (2026-03-01), and where wanted ``folder`` and
            ``phase``.

    Raises:
        UsageError: no such file, or another table.
        DataError: a date that is none, or a case that is listed twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError("the table of patients cannot be read", path=path, found=type(error).__name__) from error
    columns = list(rows[0]) if rows else []
    if missing := [name for name in NEEDED if name not in columns]:
        expected = f"{', '.join(NEEDED)}; {' and '.join(OPTIONAL)} where wanted"
        raise UsageError("not a table of patients", path=path, found=f"no {missing[0]}", expected=expected, hint=HINT)
    visits: dict[tuple[str, str], Visit] = {}
    for number, row in enumerate(rows, 2):
        key = ((row.get("folder") or "").strip(), (row["case"] or "").strip())
        try:
            day = date.fromisoformat((row["date"] or "").strip())
        except ValueError:
            raise DataError(
                "a date that is none", path=path, found=f"line {number}", expected="year-month-day, as 2026-03-01"
            ) from None
        if key in visits:
            raise DataError("a case is listed twice", path=path, found=f"line {number}", expected="a line a case")
        visits[key] = Visit((row["patient"] or "").strip(), day, (row.get("phase") or "").strip())
    return visits


def changes_of(cases: Sequence[CohortCase], visits: Mapping[tuple[str, str], Visit]) -> list[Change]:
    """Return the changes from each scan of a patient to the next, by patient and label.

    Args:
        cases: of result folders.
        visits: as `read_visits` returns them.
    """
    by_patient: dict[str, list[tuple[Visit, CohortCase]]] = defaultdict(list)
    for case in cases:
        visit = visits.get((case.run, case.id)) or visits.get(("", case.id))
        if visit is not None and visit.patient:
            by_patient[visit.patient].append((visit, case))
    found = []
    for patient, scans in sorted(by_patient.items()):
        scans.sort(key=lambda scan: (scan[0].day, scan[1].run, scan[1].id))
        for (before, first), (after, second) in itertools.pairwise(scans):
            for label in first.volumes_ml:
                if label in second.volumes_ml:
                    found.append(_change(patient, label, (before, first), (after, second)))
    return found


def _change(patient: str, label: str, earlier: tuple[Visit, CohortCase], later: tuple[Visit, CohortCase]) -> Change:
    (before, first), (after, second) = earlier, later
    old, new = first.volumes_ml[label], second.volumes_ml[label]
    names = [f"{case.run}/{case.id}" for case in (first, second)]
    days, share = (after.day - before.day).days, round((new - old) / old, 4) if old else None
    plain = Change(patient, label, names[0], names[1], days, round(new - old, 6), share)
    if why := _why_none(label, earlier, later):
        return Change(**{**vars(plain), "why_none": why})
    (low, high), (low_now, high_now) = first.volume_ml_interval[label], second.volume_ml_interval[label]
    return Change(**{**vars(plain), "low_ml": round(low_now - high, 6), "high_ml": round(high_now - low, 6)})


def _why_none(label: str, earlier: tuple[Visit, CohortCase], later: tuple[Visit, CohortCase]) -> str:
    (before, first), (after, second) = earlier, later
    if first.model != second.model:
        return "another bundle or runtime"
    if before.phase != after.phase:
        return "another phase"
    for case in (first, second):
        if case.decision == "hold":
            return "a result is held"
        if label not in case.volume_ml_interval:
            return "no interval of a volume"
    return ""
