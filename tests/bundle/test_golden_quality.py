"""What is compared of a quality model where a golden case is replayed."""

from __future__ import annotations

from typing import Any

import pytest

from segpipe.bundle.golden import quality_differs

SAID: dict[str, Any] = {"distance": 4.0, "groups": {"image": 4.0, "labels": 1.5}, "dice": {"liver": 0.6}, "absent": []}


@pytest.mark.parametrize(
    ("change", "here", "elsewhere"),
    [
        ({}, True, True),
        ({"distance": 4.00001}, True, True),
        ({"distance": 4.1}, False, True),
        ({"distance": 4.4}, False, False),
        ({"groups": {"image": 4.0, "labels": 1.54}}, False, True),
        ({"groups": {"image": 4.0}}, False, False),
        ({"dice": {"liver": 0.63}}, False, True),
        ({"dice": {"liver": 0.7}}, False, False),
        ({"distance": None}, False, False),
        ({"absent": ["liver"]}, False, False),
    ],
)
def test_the_same_machine_gives_the_same_and_another_one_nearly(
    change: dict[str, Any], here: bool, elsewhere: bool
) -> None:
    assert (quality_differs(SAID, {**SAID, **change}, elsewhere=False) == "") == here
    assert (quality_differs(SAID, {**SAID, **change}, elsewhere=True) == "") == elsewhere
    assert quality_differs(SAID, {}, elsewhere=True)
