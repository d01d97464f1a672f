"""Flags of cases unlike those of the training."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.bundle.exporting.run_record import seen_in_training
from segpipe.bundle.out_of_distribution import far_from_training

SPACINGS = [(1.0, 1.0, 2.0), (0.8, 1.0, 3.0)]
INTENSITIES = [[[0.0, 10.0, 100.0, 200.0, 300.0]], [[5.0, 20.0, 140.0, 260.0, 900.0]]]
METADATA = {"training_data": {"seen": seen_in_training(SPACINGS, INTENSITIES)}}


def test_ranges_are_those_of_the_training_cases() -> None:
    seen = METADATA["training_data"]["seen"]
    assert seen["spacing_ras_mm"] == [[0.8, 1.0], [1.0, 1.0], [2.0, 3.0]]
    assert seen["intensity"] == [[[0, 5], [10, 20], [100, 140], [200, 260], [300, 900]]]


@pytest.mark.parametrize(
    ("spacing", "intensity", "expected"),
    [
        (SPACINGS[0], INTENSITIES[1], ("no", "no")),
        ((1.5, 1.0, 4.5), INTENSITIES[0], ("no", "no")),  # at the very limit
        ((1.0, 1.51, 2.0), INTENSITIES[0], ("yes", "no")),
        ((0.5, 1.0, 2.0), INTENSITIES[0], ("yes", "no")),
        (SPACINGS[0], [[0, 10, 165, 200, 300]], ("no", "yes")),  # the median, beyond 140 + 20
        (SPACINGS[0], [[-9999, 10, 100, 200, 99999]], ("no", "no")),  # outliers alone
        (None, None, ("unknown", "unknown")),
        (SPACINGS[0], [*INTENSITIES[0], *INTENSITIES[0]], ("no", "unknown")),  # other channels than trained on
    ],
)
def test_what_lies_beyond_the_range_is_far(spacing: Any, intensity: Any, expected: tuple[str, str]) -> None:
    assert tuple(far_from_training(METADATA, spacing, intensity).values()) == expected


@pytest.mark.parametrize("metadata", [{}, {"training_data": None}, {"training_data": {"seen": None}}])
def test_a_bundle_that_does_not_say_leaves_it_unknown(metadata: dict[str, Any]) -> None:
    found = far_from_training(metadata, SPACINGS[0], INTENSITIES[0])
    assert found == {"far_spacing": "unknown", "far_intensity": "unknown"}


VALUES = st.lists(st.floats(-3000, 3000), min_size=5, max_size=5).map(sorted)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), st.data())
def test_no_training_case_is_far_from_its_own_training(
    cases: list[tuple[list[float], list[float]]], data: st.DataObject
) -> None:
    edges = st.tuples(*[st.floats(0.1, 10)] * 3)
    spacings = [data.draw(edges) for _ in cases]
    metadata = {"training_data": {"seen": seen_in_training(spacings, cases)}}
    for spacing, case in zip(spacings, cases, strict=True):
        rounded = [[float(f"{value:.6g}") for value in channel] for channel in case]
        assert set(far_from_training(metadata, spacing, rounded).values()) == {"no"}
