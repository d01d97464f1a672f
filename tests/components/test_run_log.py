"""The picture of a validation case in TensorBoard."""

from __future__ import annotations

import numpy as np

from segpipe.components.run_log import overlay

GREEN, RED = (0, 220, 0), (240, 30, 30)


def test_outlines_are_thin_on_a_small_slice_and_the_slice_has_the_most_truth() -> None:
    image = np.random.default_rng(0).normal(size=(32, 20, 6)).astype(np.float32)
    truth, prediction = np.zeros((2, 32, 20, 6), np.uint8)
    truth[4:10, 4:10, 3] = 1
    truth[5:7, 5:7, 1] = 1
    prediction[20:24, 12:16, 3] = 2
    picture = overlay(image, truth, prediction)
    assert picture.shape == (160, 256, 3) and picture.dtype == np.uint8
    for colour, size in ((GREEN, 6 * 8), (RED, 4 * 8)):
        assert (picture == colour).all(-1).sum() == 4 * (size - 1), "one pixel wide around the square"


def test_a_constant_image_without_truth_is_drawn() -> None:
    nothing = np.zeros((300, 10, 2), np.float32)
    assert overlay(nothing, nothing, nothing).shape == (10, 300, 3)
