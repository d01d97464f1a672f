"""Learning curves of one run and of many, of whole and of broken histories."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import near, pixels

from segpipe.reporting.charts import SERIES_COLOURS, learning_curves, read_points

ROWS = [
    {
        "epoch": str(epoch),
        "train_loss": str(1 / epoch),
        "val_loss": "" if epoch % 2 else str(1.2 / epoch),
        "val_mean_dice": "" if epoch % 2 else str(1 - 1 / epoch),
    }
    for epoch in range(1, 21)
]


def test_text_is_read_and_gaps_are_passed_over() -> None:
    rows = [{"epoch": str(epoch), "val_mean_dice": "0.4" if epoch % 2 else "nan"} for epoch in range(6)]
    assert read_points(rows, "val_mean_dice") == [(1.0, 0.4), (3.0, 0.4), (5.0, 0.4)]
    assert read_points([{"epoch": "x", "val_mean_dice": "1"}, {}], "val_mean_dice") == []


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"epoch": "1", "train_loss": "0.5", "val_loss": "", "val_mean_dice": ""}],
        [{"epoch": 1, "train_loss": float("nan"), "val_mean_dice": float("inf")}],
        [{"epoch": 1, "train_loss": -0.5, "val_mean_dice": 0.0}],
    ],
)
def test_little_is_drawn_as_well(rows: list[dict[str, object]]) -> None:
    assert learning_curves({"run": rows}).startswith(b"\x89PNG")


def test_no_run_at_all() -> None:
    assert learning_curves({}).startswith(b"\x89PNG")


def test_each_run_has_its_colour(tmp_path: Path) -> None:
    runs = {
        f"network_{index}": [{**row, "train_loss": index + 1 / row_index} for row_index, row in enumerate(ROWS, 1)]
        for index in range(7)
    }
    (tmp_path / "curves.png").write_bytes(learning_curves(runs))
    picture = pixels(tmp_path / "curves.png")
    assert picture.shape[1] == 1080
    assert all(near(picture, colour, 10).sum() > 100 for colour in SERIES_COLOURS)
    assert learning_curves(runs) == learning_curves(runs)


def test_validation_loss_has_a_panel_only_where_there_is_one() -> None:
    without = [{key: value for key, value in row.items() if key != "val_loss"} for row in ROWS]
    frames = [pixels(learning_curves({"a": rows})) for rows in (ROWS, without)]
    spines = [near(frame[100], "#5f6b78", 40).sum() for frame in frames]
    assert spines[0] > spines[1]


def test_many_runs_with_losses_of_different_size() -> None:
    runs = {
        f"{'long name of a variant ' * 3}{index}": [{"epoch": e, "train_loss": 10.0**-index / e} for e in range(1, 9)]
        for index in range(30)
    }
    assert pixels(learning_curves(runs)).shape[0] < 1600
