"""The example of a model card: three planes, input above, outlines below, each label in its colour."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from segpipe.reporting.case_overlay import colour_of, example_figure


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def volume(shape: tuple[int, int, int] = (30, 40, 20)) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    labels[4:12, 5:15, 2:8] = 1
    labels[20:23, 30:33, 14:17] = 2
    return image, labels


def has(picture: np.ndarray, value: int) -> bool:
    return bool((abs(picture - colour_of(value)).sum(-1) < 40).any())


def test_outlines_stand_in_the_lower_row_alone_and_bytes_repeat() -> None:
    image, labels = volume()
    content = example_figure(image, labels, (1.0, 1.0, 2.0), {1: "large", 2: "small"})
    assert content == example_figure(image, labels, (1.0, 1.0, 2.0), {1: "large", 2: "small"})
    picture = pixels(content)
    middle = (len(picture) - 30) // 2
    coloured = np.ptp(picture, axis=-1) > 60
    assert not coloured[: middle - 12].any() and coloured[middle:].any()
    assert has(picture, 1) and has(picture, 2)


def test_a_small_label_has_its_share_in_the_choice_of_planes() -> None:
    image, labels = volume()
    labels[20:23, 30:33, 14:17] = 0
    labels[6:9, 7:9, 5] = 2  # all of it in one axial plane
    picture = pixels(example_figure(image, labels, (1.0, 1.0, 1.0), {1: "large", 2: "small"}))
    above_the_names = picture[: len(picture) - 60, : len(picture[0]) // 3]
    assert has(above_the_names, 2)


def test_without_labels_or_contrast_it_is_drawn_all_the_same() -> None:
    image = np.zeros((8, 8, 8), np.float32)
    assert len(pixels(example_figure(image, np.zeros((8, 8, 8), np.uint8), (1.0, 1.0, 1.0), {1: "a"}))) > 300
