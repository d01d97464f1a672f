"""Variants side by side: means in their places, intervals where they are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pictures import near, pixels
from scipy import ndimage

from segpipe.reporting.charts import MEAN_COLOUR, MEDIAN_COLOUR, comparison

RNG = np.random.default_rng(0)
SCORES = {f"unet + {loss}": list(RNG.uniform(0.7, 0.9, 30)) for loss in ("dice", "focal", "lovasz_softmax")}


def test_every_variant_has_mean_and_median(tmp_path: Path) -> None:
    (tmp_path / "comparison.png").write_bytes(comparison(SCORES, {"unet + dice": (0.78, 0.82)}))
    picture = pixels(tmp_path / "comparison.png")
    assert near(picture, MEAN_COLOUR, 10).sum() > 200 and near(picture, MEDIAN_COLOUR, 10).sum() > 100
    assert comparison(SCORES) == comparison(SCORES)
    assert comparison(SCORES) != comparison(SCORES, {"unet + dice": (0.78, 0.82)})


def test_means_lie_as_their_values_do() -> None:
    picture = pixels(comparison({"a": [0.2, 0.2], "b": [0.5, 0.5], "c": [0.8, 0.8]}))[:, :1000]  # without the numbers
    marked = near(picture, MEAN_COLOUR, 10)
    marked[:50] = False  # the legend
    found, number = ndimage.label(marked, np.ones((3, 3)))
    ends = sorted(ndimage.center_of_mass(marked, found, range(1, number + 1)))
    assert number == 3
    columns = [column for _, column in ends]
    assert columns[1] - columns[0] > 100
    assert abs((columns[1] - columns[0]) - (columns[2] - columns[1])) < 2


def test_what_is_not_finite_is_passed_over_and_nothing_is_no_failure() -> None:
    assert comparison({"a": [0.5, float("nan")]}) == comparison({"a": [0.5]})
    assert comparison({"a": []}).startswith(b"\x89PNG")
    assert comparison({}).startswith(b"\x89PNG")
    assert pixels(comparison({f"{index}": [0.1, 0.9] for index in range(20)})).shape[1] == 1080
