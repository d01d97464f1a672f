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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
            reader = csv.DictReader(stream)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        found = error.strerror if isinstance(error, OSError) else str(error)
        expected = "a CSV file in UTF-8"
        raise UsageError("the table of patients cannot be read", path=path, found=found, expected=expected) from error
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


@dataclass(frozen=True)
class Matched:
    """Which cases a table tells of.

    Attributes:
        scans: visit and case, of those that it names with a patient.
        unused: rows that no case belongs to, as folder and id.
        unknown: cases that it does not name, or not with a patient, as folder and id.
    """

    scans: list[tuple[Visit, CohortCase]]
    unused: list[str]
    unknown: list[str]


def matched(cases: Sequence[CohortCase], visits: Mapping[tuple[str, str], Visit], path: Path | None = None) -> Matched:
    """Return which cases a table tells of, each by its folder and id, or by its id where the row names no folder.

    Args:
        cases: of result folders.
        visits: as `read_visits` returns them.
        path: of the table, for the error.

    Raises:
        DataError: a row without a folder would be of the cases of several.
    """
    runs: dict[tuple[str, str], set[str]] = defaultdict(set)  # by key of a row
    scans, unknown = [], []
    for case in cases:
        key = (case.run, case.id) if (case.run, case.id) in visits else ("", case.id)
        visit = visits.get(key)
        if visit is not None:
            runs[key].add(case.run)
        if visit is None or not visit.patient:
            unknown.append(f"{case.run}/{case.id}")
        else:
            scans.append((visit, case))
    if several := next((key for key, found in runs.items() if len(found) > 1), None):
        raise DataError(
            "it cannot be told which folder's case a row is of",
            path=path,
            found=f"{several[1]}, which is in {' and in '.join(sorted(runs[several]))}",
            expected="a row for each of them, which names its folder",
            hint="give the table a column folder, with the name of the result folder",
        )
    return Matched(scans, ["/".join(filter(None, key)) for key in visits if key not in runs], unknown)


def changes_of(scans: Sequence[tuple[Visit, CohortCase]]) -> list[Change]:
    """Return the changes from each scan of a patient to the next of the same phase and model, by patient and label.

    Where a day has no scan like an earlier one, it is held against the last of the days before, without an interval.

    Args:
        scans: as `matched` returns them.
    """
    by_patient: dict[str, list[tuple[Visit, CohortCase]]] = defaultdict(list)
    for visit, case in scans:
        by_patient[visit.patient].append((visit, case))
    return [
        _change(patient, label, earlier, later)
        for patient, own in sorted(by_patient.items())
        for earlier, later in _pairs(sorted(own, key=lambda scan: (scan[0].day, scan[1].run, scan[1].id)))
        for label in earlier[1].volumes_ml
        if label in later[1].volumes_ml
    ]


def _pairs(scans: Sequence[tuple[Visit, CohortCase]]) -> Iterator[tuple[tuple[Visit, CohortCase], ...]]:
    last: dict[tuple[str, str], tuple[Visit, CohortCase]] = {}  # by phase and model
    before: tuple[Visit, CohortCase] | None = None
    for _, group in itertools.groupby(scans, key=lambda scan: scan[0].day):
        today, pairs = list(group), []
        for scan in today:
            alike = (scan[0].phase, scan[1].model)
            if alike in last:
                pairs.append((last[alike], scan))
            last[alike] = scan
        if not pairs and before is not None:
            pairs = [(before, scan) for scan in today]
        yield from pairs
        before = today[-1]


def _change(patient: str, label: str, earlier: tuple[Visit, CohortCase], later: tuple[Visit, CohortCase]) -> Change:
    (before, first), (after, second) = earlier, later
    old, new = first.volumes_ml[label], second.volumes_ml[label]
    names = [f"{case.run}/{case.id}" for case in (first, second)]
    days, share = (after.day - before.day).days, round((new - old) / old, 4) if old else None
    plain = Change(patient, label, names[0], names[1], days, round(new - old, 6), share)
    if why := _why_none(label, earlier, later):
        return replace(plain, why_none=why)
    (low, high), (low_now, high_now) = first.volume_ml_interval[label], second.volume_ml_interval[label]
    return replace(plain, low_ml=round(low_now - high, 6), high_ml=round(high_now - low, 6))


def _why_none(label: str, earlier: tuple[Visit, CohortCase], later: tuple[Visit, CohortCase]) -> str:
    (before, first), (after, second) = earlier, later
    if first.model != second.model:
        return "another model: bundles, mirroring, runtime or precision"
    if before.phase != after.phase:
        return "another phase"
    for case in (first, second):
        if case.decision in ("hold", "released"):
            return "a result is or was held"
        if label not in case.volume_ml_interval:
            return "no interval of a volume"
    return ""
