"""Figures: valid PNG, the right slice, truth in green and prediction in red, proportion by spacing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from pipeline import phantom
from pipeline.report import figures

LABELS = {1: "liver", 2: "kidney", 3: "lesion"}
SPACING = (1.2, 1.2, 1.6)


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))[..., :3]


def count(png: bytes, colour: str) -> int:
    """Pixels near a colour."""
    return int((np.abs(pixels(png) - to_rgb(colour)).max(axis=-1) < 0.12).sum())


@pytest.fixture(scope="module")
def case() -> phantom.Phantom:
    return phantom.make(1, (24, 24, 24), SPACING)


def test_truth_is_green_and_prediction_is_red(case: phantom.Phantom) -> None:
    shifted = np.roll(case.label, 2, axis=0)
    both = figures.overlay_figure(case.image, case.label, shifted, SPACING, LABELS, "case")
    truth = figures.overlay_figure(case.image, case.label, None, SPACING, LABELS)
    alone = figures.overlay_figure(case.image, None, shifted, SPACING, LABELS)
    bare = figures.overlay_figure(case.image, None, None, SPACING, LABELS)
    green, red = figures.TRUTH_COLOUR, figures.PREDICTION_COLOUR
    assert count(both, green) > 200 and count(both, red) > 200
    assert count(truth, green) > 200 and count(truth, red) == 0
    assert count(alone, green) == 0 and count(alone, red) > 200
    assert count(bare, green) == count(bare, red) == 0


def test_equal_input_gives_equal_bytes(case: phantom.Phantom) -> None:
    one, other = (figures.overlay_figure(case.image, case.label, None, SPACING, LABELS) for _ in range(2))
    assert one == other


def test_the_slice_is_where_the_labels_are() -> None:
    labelmap = np.zeros((10, 12, 14), np.uint8)
    labelmap[2:5, 3:8, 11] = 1
    labelmap[3, 4, 11] = 2
    assert figures.best_slices(labelmap, {1: "a", 2: "b"}) == [3, 4, 11]
    assert figures.best_slices(np.zeros((10, 12, 14)), {1: "a"}) == [5, 6, 7]


def test_the_patients_right_is_drawn_on_the_left() -> None:
    image = np.zeros((16, 16, 16))
    image[12:] = 1000.0  # RAS: high x is the patient's right
    picture = pixels(figures.overlay_figure(image, None, None, (1, 1, 1), LABELS))
    height, width, _ = picture.shape
    axial = picture[height // 3 : height // 2, : width // 3].mean(axis=(0, 2))
    bright = np.flatnonzero(axial > 0.7)
    assert len(bright) and bright.mean() < width / 6


def test_slices_keep_their_proportion() -> None:
    image = np.full((20, 20, 10), 1000.0)
    image[::, ::, 0] = 0
    flat = pixels(figures.overlay_figure(image, None, None, (1, 1, 1), LABELS)).shape
    tall = pixels(figures.overlay_figure(image, None, None, (1, 1, 4), LABELS)).shape
    assert flat[1] / flat[0] > 1.3 * tall[1] / tall[0]


@pytest.mark.parametrize(
    "rows", [[], [{"epoch": "1", "train_loss": "0.5", "val_loss": "", "val_mean_dice": ""}]]
)
def test_learning_curve_of_little(rows: list[dict[str, str]]) -> None:
    assert figures.learning_curve(rows).startswith(b"\x89PNG")


def test_learning_curve_reads_text_and_passes_over_gaps() -> None:
    rows = [
        {"epoch": str(e), "train_loss": "0.5", "val_mean_dice": "0.4" if e % 2 else "nan"} for e in range(6)
    ]
    assert figures._points(rows, "val_mean_dice") == [(1.0, 0.4), (3.0, 0.4), (5.0, 0.4)]
    assert figures.learning_curve(rows).startswith(b"\x89PNG")


def test_dice_bars_draw_mean_and_median_and_pass_over_none() -> None:
    png = figures.dice_bars({"liver": {"a": 0.9, "b": 0.4, "c": None}, "kidney": {"a": None}})
    assert count(png, "#d62728") > 100 and count(png, "#1b8a3a") > 50
    assert figures.dice_bars({}).startswith(b"\x89PNG")


def test_dice_bars_of_many_labels_stay_within_a_page_width() -> None:
    few, many = (
        pixels(figures.dice_bars({f"label {index}": {"a": 0.5} for index in range(labels)})).shape
        for labels in (4, 9)
    )
    assert many[1] == few[1] and many[0] == 3 * few[0]
