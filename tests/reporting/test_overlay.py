"""The small picture of a case: right way round, in true proportion, outlines where the labels are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from segpipe.reporting.case_overlay import SIDE, OverlaySlice, colour_of, legend, overlay


def picture(shown: OverlaySlice) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(overlay(shown))).convert("RGB")).astype(int)


def is_coloured(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels, axis=-1) > 60


@pytest.mark.parametrize(("normal", "shape"), [(2, (20, 30, 1)), (1, (20, 1, 30)), (0, (1, 20, 30))])
def test_a_label_at_the_patients_right_or_front_is_drawn_at_the_upper_left(
    normal: int, shape: tuple[int, int, int]
) -> None:
    labels = np.zeros(shape, np.uint8)
    across, up = (axis for axis in range(3) if axis != normal)
    corner = [slice(None)] * 3
    corner[across], corner[up] = slice(14, 18), slice(22, 28)  # towards right or front, and front or head
    labels[tuple(corner)] = 1
    pixels = picture(OverlaySlice(np.full(shape, 90, np.uint8), labels, (1.0, 1.0, 1.0), normal))
    assert pixels.shape[:2] == (SIDE, SIDE * 20 // 30)
    rows, columns = np.nonzero(is_coloured(pixels))
    assert rows.max() < SIDE * 0.3 and columns.max() < pixels.shape[1] * 0.35
    assert rows.min() == pytest.approx(SIDE * 2 / 30, abs=4) and columns.min() == pytest.approx(20, abs=4)


def test_pixels_that_are_not_square_keep_their_proportion() -> None:
    image = np.zeros((20, 20, 1), np.uint8)
    assert picture(OverlaySlice(image, image, (1.0, 2.0, 5.0), 2)).shape == (SIDE, SIDE // 2, 3)
    assert not is_coloured(picture(OverlaySlice(image, image, (1.0, 2.0, 5.0), 2))).any()


def test_regions_that_overlap_are_outlined_each() -> None:
    bits = np.zeros((30, 30, 1), np.uint8)
    bits[3:27, 3:27] = 0b100
    bits[10:20, 10:20] |= 0b001
    pixels = picture(OverlaySlice(np.zeros_like(bits), bits, (1.0, 1.0, 1.0), 2, regions=3))
    for value, place in ((3, 3), (1, 10)):  # the left edges, half way up
        edge = pixels[SIDE // 2, SIDE * place // 30 - 4 : SIDE * place // 30 + 4]
        assert np.abs(edge - colour_of(value)).sum(-1).min() < 40
    assert not np.any(np.abs(pixels - colour_of(2)).sum(-1) < 40)


def test_a_legend_shows_every_colour() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(legend({1: "a", 2: "b" * 60, 9: "c"}))))
    for value in (1, 2, 9):
        assert (abs(pixels.astype(int) - colour_of(value)).sum(-1) < 30).any()
