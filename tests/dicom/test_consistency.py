"""What slices are compared in: the page has the rules, and times of day are put in the order in which they followed."""

from __future__ import annotations

from pathlib import Path

import pytest
from traps import TRAPS

from segpipe.dicom.clock import DAY_S, clock_order, seconds_of
from segpipe.dicom.consistency import RULES
from segpipe.dicom.headers import COMPARED

PAGE = Path(__file__).parents[2] / "docs/reference/dicom.md"
WORDS = {
    "text": "text, without spaces around it",
    "1 %": "number, within 1 %",
    "rounding": "number, within rounding",
    "present": "whether there is one",
    "interleaved": "takes turns from slice to slice",
}


def rows() -> list[list[str]]:
    table = PAGE.read_text().split("| attribute | compared |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_page_has_the_rules() -> None:
    expected = []
    for rule in RULES:
        where = f" ({', '.join(rule.modalities)})" if rule.modalities else ""
        expected.append([rule.name, WORDS[rule.compare] + where, rule.effect])
    assert [row[:3] for row in rows()] == expected


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[2]}")
def test_each_rule_has_a_trap_with_its_effect(row: list[str]) -> None:
    name, _, effect, traps = row
    found = [TRAPS[trap] for trap in traps.split("; ")]
    outcomes = {"refuse": ("mixed_attributes", 1), "split": (None, 2), "note": (None, 1)}
    assert (found[0].reason, found[0].volumes) == outcomes[effect]
    assert name.split(",")[0] in " ".join(word for trap in found for word in trap.words)


def test_whatever_is_read_is_compared() -> None:
    borne_out = {"MRAcquisitionType"}  # which decides on another rule
    assert set(COMPARED.split()) - borne_out <= {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("        101112", 36672.0),
        ("        101112.5", 36672.5),
        ("        10:11:12", 36672.0),
        ("        1011", 36660.0),
        ("        10", 36000.0),
        ("00010101000000", DAY_S),
        ("00010102000001.25&+0100", 2 * DAY_S + 1.25 - 3600),  # of UTC
        ("00010102000001.25", 2 * DAY_S + 1.25),
        ("2020....101112", 36672.0),
        ("20200101", None),
        ("", None),
        ("        no time", None),
    ],
)
def test_a_date_and_a_time(when: str, expected: float | None) -> None:
    assert seconds_of(when) == expected


def test_times_past_midnight() -> None:
    day = 1000 * DAY_S
    assert clock_order([3600.0, 3601.0]) == [3600.0, 3601.0]
    assert clock_order([86390.0, 5.0]) == [86390.0, DAY_S + 5]
    assert clock_order([day + 86390, day + 5]) == [day + 86390, day + DAY_S + 5]  # a date that stays
    assert clock_order([day + 86390, day + DAY_S + 5]) == [day + 86390, day + DAY_S + 5]  # one that does not
    assert clock_order([day + 86390, 5.0]) == [86390.0, DAY_S + 5]  # some without
    assert clock_order([8 * 3600.0, 21 * 3600.0]) in ([8 * 3600.0, 21 * 3600.0], [32 * 3600.0, 21 * 3600.0])
