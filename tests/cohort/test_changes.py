"""How the volumes of a patient change: by hand, where there is no interval and why, and by the command."""

from __future__ import annotations

import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.cohort.changes import Change, Visit, matched, read_visits
from segpipe.cohort.changes import changes_of as changes_of_scans
from segpipe.cohort.results import CohortCase
from segpipe.errors import DataError, UsageError


def case(id: str, ml: float, model: str = "organs 1", run: str = "october", **more: Any) -> CohortCase:
    interval = {"liver": (0.9 * ml, 1.2 * ml)}
    parts = {"volumes_ml": {"liver": ml}, "volume_ml_interval": interval, "decision": "ok", **more}
    return CohortCase(id=id, run=run, folder=Path(), time=None, model=model, **parts)


def changes_of(cases: list[CohortCase], visits: dict[tuple[str, str], Visit]) -> list[Change]:
    return changes_of_scans(matched(cases, visits).scans)


def visits(*days: str, phases: tuple[str, ...] = ("", "", "")) -> dict[tuple[str, str], Visit]:
    names = "abc"
    return {("", names[n]): Visit("P1", date.fromisoformat(day), phases[n]) for n, day in enumerate(days)}


def test_a_change_is_from_scan_to_scan_and_its_interval_joins_both() -> None:
    cases = [case("b", 120.0), case("a", 100.0), case("c", 60.0), case("of nobody", 5.0)]
    first, second = changes_of(cases, visits("2026-01-01", "2026-03-02", "2026-05-01"))
    assert (first.earlier, first.later, first.days) == ("october/a", "october/b", 60)
    assert (first.ml, first.share) == (20.0, 0.2)
    assert (first.low_ml, first.high_ml) == (pytest.approx(108 - 120), pytest.approx(144 - 90))
    assert second.ml == -60
    assert (second.low_ml, second.high_ml) == (pytest.approx(54 - 144), pytest.approx(72 - 108))  # it shrank


@pytest.mark.parametrize(
    ("more", "phases", "why"),
    [
        ({"model": "organs 2"}, ("", "", ""), "another model: bundles, mirroring, runtime or precision"),
        ({}, ("portal", "native", ""), "another phase"),
        ({"decision": "hold"}, ("", "", ""), "a result is or was held"),
        ({"decision": "released"}, ("", "", ""), "a result is or was held"),
        ({"volume_ml_interval": {}}, ("", "", ""), "no interval of a volume"),
    ],
)
def test_where_scans_are_not_alike_there_is_no_interval(
    more: dict[str, Any], phases: tuple[str, ...], why: str
) -> None:
    (found,) = changes_of(
        [case("a", 100.0), case("b", 90.0, **more)], visits("2026-01-01", "2026-02-01", phases=phases)
    )
    assert (found.why_none, found.low_ml, found.high_ml) == (why, None, None)
    assert found.ml == -10


def test_with_several_phases_a_visit_each_is_held_against_the_last_of_its_own() -> None:
    days = [date(2026, 1, 1), date(2026, 6, 1)]
    table = {
        (run, id): Visit("P1", day, phase)
        for run, day in zip(("june", "january"), days, strict=True)
        for id, phase in (("n", "native"), ("p", "portal"))
    }
    found = changes_of([case(id, 100.0, run=run) for run, id in table], table)
    assert [(one.earlier, one.later, one.why_none) for one in found] == [
        ("june/n", "january/n", ""),
        ("june/p", "january/p", ""),
    ]


def test_one_scan_of_two_models_is_no_change() -> None:
    cases = [case(id, ml, f"organs {ml}", run=f"of {ml}") for id in "ab" for ml in (10.0, 20.0)]
    table = {(one.run, one.id): Visit("P1", date(2026, 1, 1) if one.id == "a" else date(2026, 2, 1)) for one in cases}
    found = changes_of(cases, table)
    assert [(one.earlier, one.later) for one in found] == [("of 10.0/a", "of 10.0/b"), ("of 20.0/a", "of 20.0/b")]


def test_a_row_that_may_be_of_two_folders_is_refused_until_it_names_one(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,date\ncase_1,P1,2026-01-01\n")
    cases = [case("case_1", 100.0, run="oct"), case("case_1", 60.0, run="nov")]
    with pytest.raises(DataError, match="cannot be told which folder's case") as error:
        matched(cases, read_visits(table), table)
    assert (error.value.path, error.value.found) == (str(table), "case_1, which is in nov and in oct")
    table.write_text("folder,case,patient,date\noct,case_1,P1,2026-01-01\n")
    found = matched(cases, read_visits(table), table)
    assert ([one.run for _, one in found.scans], found.unknown) == (["oct"], ["nov/case_1"])


def test_a_table_is_read_or_said_to_be_none(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("folder,case,patient,date\noctober,a,P1,2026-01-01\nnovember,a,P1,2026-02-01\n")
    found = read_visits(table)
    assert found["november", "a"] == Visit("P1", date(2026, 2, 1))
    cases = [case("a", 1.0, run="november"), case("a", 2.0)]
    assert [change.ml for change in changes_of(cases, found)] == [-1.0]
    for text, error in (
        ("case,patient\na,P1\n", "not a table of patients"),
        ("case,patient,date\na,P1,last week\n", "a date that is none"),
        ("case,patient,date\na,P1,2026-01-01\na,P1,2026-01-02\n", "a case is listed twice"),
    ):
        table.write_text(text)
        with pytest.raises((UsageError, DataError), match=error):
            read_visits(table)
    with pytest.raises(UsageError, match="cannot be read"):
        read_visits(tmp_path / "none.csv")


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, table = tmp_path / "october", tmp_path / "patients.csv"
    results.mkdir()
    bundle = {"name": "organs", "version": "1.0.0", "sha256": "b" * 64}
    for id, ml in (("a", 100.0), ("b", 150.0)):
        (results / id).mkdir()
        quality = {"p_value": 0.5, "distance": 0.7, "volume_ml": {"liver": [0.95 * ml, 1.05 * ml]}}
        document = {"id": id, "bundle": bundle, "volumes_ml": {"liver": ml}, "decision": "ok", "quality": quality}
        (results / id / "result.json").write_text(json.dumps(document))
        with (results / "predictions.jsonl").open("a") as stream:
            stream.write(json.dumps({"time": 1.0, "event": "done", "id": id, "seconds": 1.0}) + "\n")
    table.write_text("case,patient,date\na,P-17,2026-01-01\nb,P-17,2026-07-01\n")
    words = ["report", str(results), "-o", str(tmp_path / "out"), "--patients", str(table), "--json"]
    assert run(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["changes"], said["not_in_results"], said["not_in_table"]) == (1, [], [])
    with (tmp_path / "out/changes.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["patient"], row["earlier"], row["days"], row["ml"]) == ("P-17", "october/a", "181", "50.0")
    assert (float(row["low_ml"]), float(row["high_ml"])) == (pytest.approx(37.5), pytest.approx(62.5))
    page = (tmp_path / "out/cohort.html").read_text()
    assert "Changes from scan to scan" in page
    assert "+37.5 to +62.5" in page
    table.write_text("case,patient,date\na,P-17,2026-01-01\nb1,P-17,2026-07-01\n")
    assert run(words[:-1]) == 0
    said = capsys.readouterr()
    assert "0 changes of a volume" in said.out
    assert "1 row of patients.csv names no case: b1" in said.err
    assert "1 case without a patient in the table: october/b" in said.err
    table.write_text("who\n")
    assert run(words) == 2
    table.write_text("case,patient,date\na,P-17,2026-01-01\nb,P-17,2026-07-01\n")
    for wrong in ({"volume_ml": {"liver": ["none", "none"]}}, {"distance": "far"}, {"dice": {"liver": "good"}}):
        (results / "a/result.json").write_text(json.dumps({**document, "id": "a", "quality": wrong}))
        assert run([*words[:3], str(tmp_path / "again"), *words[4:]]) == 3
        assert "a result cannot be read" in capsys.readouterr().out


def test_a_table_that_names_nobody_yet_is_a_table_and_one_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,date\n")
    assert read_visits(table) == {}
    table.write_bytes("case,patient,date\nä,P1,2026-01-01\n".encode("latin-1"))
    with pytest.raises(UsageError) as raised:
        read_visits(table)
    assert raised.value.expected == "a CSV file in UTF-8" and "0xe4" in str(raised.value.found)
    with pytest.raises(UsageError) as raised:
        read_visits(tmp_path / "none.csv")
    assert raised.value.found == "No such file or directory"
