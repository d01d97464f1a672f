"""Features of generated images and shapes against numbers that are known, or counted in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK
import torch

from segpipe.inference import Observation
from segpipe.quality.features import KINDS, features_of, kind_of

SPACING = (1.0, 1.5, 2.0)
LABELS = {0: "background", 1: "liver", 2: "spleen"}


def observed(labels: np.ndarray, image: np.ndarray | None = None, sure: float = 0.9) -> Observation:
    """What an engine would show of a label map whose network is everywhere as sure."""
    seen = Observation()
    values = np.random.default_rng(0).normal(size=labels.shape) if image is None else image
    seen.image = torch.as_tensor(values[None], dtype=torch.float32)
    seen.labels, seen.spacing_mm = labels.astype(np.uint8), SPACING
    counts = np.array([[np.count_nonzero(labels == value) for value in LABELS]], float)
    seen.hard = seen.shared = seen.soft = counts
    seen.sure = sure * counts
    return seen


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radius_mm: float) -> np.ndarray:
    grids = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    squares = ((grid - at) * mm for grid, at, mm in zip(grids, centre, SPACING, strict=True))
    return sum(square**2 for square in squares) <= radius_mm**2


def test_a_ball_is_measured_as_simpleitk_does() -> None:
    labels = np.where(ellipsoid((40, 30, 24), (18, 14, 12), 15.0), 1, 0)
    found = features_of(observed(labels), LABELS)
    image = SimpleITK.GetImageFromArray(labels.T.astype(np.uint8))
    image.SetSpacing(SPACING)
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    assert found["liver:volume"] == pytest.approx(shape.GetPhysicalSize(1) / 1000)
    box = shape.GetBoundingBox(1)
    for axis, name in enumerate("xyz"):
        assert found[f"liver:extent_{name}"] == pytest.approx(box[3 + axis] * SPACING[axis])
        centre = shape.GetCentroid(1)[axis] / SPACING[axis]
        assert found[f"liver:place_{name}"] == pytest.approx((centre + 0.5) / labels.shape[axis])
    assert found["liver:components"] == 1
    assert 0.55 < found["liver:sphericity"] < 0.75  # a ball of voxels has 1.5 times the surface of a ball
    assert found["spleen:volume"] == 0
    assert not [name for name in found if name.startswith("spleen:") and name != "spleen:volume"]


def test_labels_lie_to_each_other_in_mm_and_pieces_are_counted() -> None:
    labels = np.zeros((30, 20, 20), int)
    labels[2:6, 3:7, 4:8] = 1
    labels[20:22, 15:17, 4:8] = 1
    labels[10:14, 3:7, 10:14] = 2
    found = features_of(observed(labels), LABELS)
    liver = [np.mean(np.argwhere(labels == 1)[:, axis]) for axis in range(3)]
    spleen = [11.5, 4.5, 11.5]
    assert found["liver:components"] == 2
    for axis, name in enumerate("xyz"):
        assert found[f"spleen:offset_{name}"] == pytest.approx((spleen[axis] - liver[axis]) * SPACING[axis], abs=1e-4)


def test_values_inside_and_around() -> None:
    labels = np.zeros((24, 20, 18), int)
    labels[8:14, 6:12, 5:11] = 1
    image = np.where(labels == 1, 3.0, -1.0) + np.random.default_rng(1).normal(0, 0.01, labels.shape)
    found = features_of(observed(labels, image), LABELS)
    assert found["liver:inside"] == pytest.approx(3, abs=0.01)
    assert found["liver:contrast"] == pytest.approx(4, abs=0.02)
    assert found["liver:inside_spread"] == pytest.approx(0.01, rel=0.2)


def test_doubt_is_what_is_missing_to_an_expected_dice_of_one() -> None:
    labels = np.zeros((20, 20, 20), int)
    labels[4:9, 4:9, 4:9] = 1
    found = features_of(observed(labels, sure=0.8), LABELS)
    assert found["liver:doubt"] == pytest.approx(0.2)


@pytest.mark.parametrize("sd", [0.1, 0.5])
def test_noise_is_found_on_a_smooth_image_and_its_scale_does_not_matter(sd: float) -> None:
    shape = (40, 36, 32)
    waves = np.meshgrid(*(np.sin(np.linspace(0, 3, size)) for size in shape), indexing="ij")
    smooth = sum(waves)
    noisy = smooth + np.random.default_rng(2).normal(0, sd, shape)
    labels = np.zeros(shape, int)
    found = features_of(observed(labels, noisy), LABELS)
    assert found["image:noise"] == pytest.approx(sd / noisy.std(), rel=0.1)
    again = features_of(observed(labels, 1000 * noisy), LABELS)
    assert again["image:noise"] == pytest.approx(found["image:noise"], rel=1e-3)
    assert again["image:smooth_x"] == pytest.approx(found["image:smooth_x"], abs=1e-3)


def test_the_look_from_afar_tells_up_from_down() -> None:
    image = np.broadcast_to(np.linspace(-1, 1, 30), (20, 20, 30)).copy()
    up, down = (
        features_of(observed(np.zeros(image.shape, int), each), LABELS) for each in (image, image[:, :, ::-1].copy())
    )
    assert up["image:cell_110"] == pytest.approx(-down["image:cell_110"], abs=0.1)
    assert up["image:cell_110"] < -0.5


def test_channels_have_features_of_their_own() -> None:
    seen = observed(np.zeros((12, 12, 12), int))
    seen.image = torch.cat([seen.image, 5 + seen.image])
    found = features_of(seen, LABELS)
    assert found["image 1:p50"] == pytest.approx(found["image 0:p50"] + 5, abs=1e-4)
    assert kind_of("image 1:p50") is KINDS["p50"]


@pytest.mark.parametrize("image", [np.zeros((9, 9, 9)), np.full((1, 9, 2), 3.0)])
def test_odd_images_have_finite_features(image: np.ndarray) -> None:
    labels = np.zeros(image.shape, int)
    labels[0, 0, 0] = 1
    found = features_of(observed(labels, image), LABELS)
    assert all(math.isfinite(value) for value in found.values())
    assert all(kind_of(name) for name in found)
