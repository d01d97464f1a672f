"""Dice bars: sorted, with mean and median at their heights, for few and for many cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import near, pixels
from scipy import ndimage

from segpipe.reporting.charts import BAR_COLOUR, MEAN_COLOUR, MEDIAN_COLOUR, dice_bars


def line_row(picture: np.ndarray, colour: str) -> float:
    """Row of the long horizontal line of a colour; the legend's is short."""
    marked = near(picture, colour).sum(axis=1)
    return float(np.average(np.arange(len(marked)), weights=np.where(marked > marked.max() / 2, marked, 0)))


def heights(picture: np.ndarray) -> tuple[list[float], int]:
    """Bars' tops from left to right as rows, and the row of 0."""
    columns, _ = ndimage.label(near(picture, BAR_COLOUR, 4).any(axis=0))
    boxes = ndimage.find_objects(columns)
    tops = [int(np.flatnonzero(near(picture[:, box[0]], BAR_COLOUR, 4).any(axis=1)).min()) for box in boxes]
    floor = int(np.flatnonzero(near(picture, BAR_COLOUR, 4).any(axis=1)).max()) + 1
    return tops, floor


def test_bars_rise_and_mean_and_median_are_at_their_heights(tmp_path: Path) -> None:
    scores = {"b": 0.8, "a": 0.2, "d": 0.9, "c": 0.4, "e": 0.95}
    (tmp_path / "dice.png").write_bytes(dice_bars({"liver": scores}))
    picture = pixels(tmp_path / "dice.png")
    tops, floor = heights(picture)
    scale = (floor - tops[-1]) / 0.95
    assert [(floor - top) / scale for top in tops] == pytest.approx(sorted(scores.values()), abs=0.01)
    assert (floor - line_row(picture, MEAN_COLOUR)) / scale == pytest.approx(0.65, abs=0.01)
    assert (floor - line_row(picture, MEDIAN_COLOUR)) / scale == pytest.approx(0.8, abs=0.01)


def test_what_is_not_defined_is_neither_drawn_nor_averaged() -> None:
    known = {"a": 0.5, "b": 0.7}
    assert dice_bars({"t": known}) == dice_bars({"t": {**known, "c": None, "d": float("nan")}})
    assert dice_bars({"t": {"a": None}}).startswith(b"\x89PNG")
    assert dice_bars({"t": {}}).startswith(b"\x89PNG")
    assert dice_bars({}).startswith(b"\x89PNG")


def test_the_order_of_the_cases_does_not_matter() -> None:
    scores = {f"case_{index}": index / 20 for index in range(20)}
    assert dice_bars({"t": scores}) == dice_bars({"t": dict(reversed(scores.items()))})


@pytest.mark.parametrize("cases", [1, 5, 60, 300])
def test_any_number_of_cases_fits_a_page(cases: int) -> None:
    values = np.linspace(0, 1, cases)
    picture = pixels(dice_bars({"mean of labels": {f"{index:W>128d}": float(v) for index, v in enumerate(values)}}))
    assert picture.shape[1] == 1080 and picture.shape[0] < 800
    edge = np.concatenate([picture[:3].ravel(), picture[-3:].ravel(), picture[:, :3].ravel(), picture[:, -3:].ravel()])
    assert (edge == 255).all(), "nothing is cut off"


def test_many_labels_make_rows_of_panels() -> None:
    few, many = (
        pixels(dice_bars({f"label {index}": {"a": 0.5} for index in range(labels)})).shape for labels in (3, 7)
    )
    assert many[1] == few[1] and many[0] == pytest.approx(3 * few[0], abs=3)
