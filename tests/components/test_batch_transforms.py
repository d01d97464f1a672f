"""Transforms of a batch: image and label map stay together, by MONAI's own transforms where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import AdjustContrast, Affine, Flip, GaussianSmooth

from segpipe.components import (
    BatchAffine,
    BatchAugmentation,
    BatchBlur,
    BatchBrightness,
    BatchContrast,
    BatchGamma,
    BatchLowResolution,
    BatchMirror,
    BatchNoise,
)
from segpipe.components.batch_transforms import Draw, resampled, rotations

SHAPE = (12, 16, 14)
INTENSITY = [
    BatchNoise(1.0, (0.1, 0.2)),
    BatchBlur(1.0, (0.5, 1.0), 1.0),
    BatchBrightness(1.0),
    BatchContrast(1.0),
    BatchLowResolution(1.0, (0.5, 0.6), 1.0),
    BatchGamma(1.0),
    BatchGamma(1.0, invert=True),
]
SPATIAL = [BatchAffine(0.9), BatchMirror()]


def smooth(cases: int = 3, channels: int = 2, seed: int = 0) -> torch.Tensor:
    """Images that vary slowly, so that a place is known by its value."""
    noise = torch.randn(cases, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return torch.stack([GaussianSmooth(2.0)(case).as_tensor() for case in noise]) * 10


def batch_of(cases: int = 3) -> dict[str, Any]:
    image = smooth(cases)
    label = (image[:, :1] > 0.2).float() + (image[:, :1] > 0.6).float()
    return {"image": MetaTensor(image), "label": MetaTensor(label), "case_id": [str(case) for case in range(cases)]}


def draw(seed: int = 0) -> Draw:
    return Draw.of(seed, 1, torch.device("cpu"))


@pytest.mark.parametrize("seed", range(3))
def test_an_affine_is_that_of_monai(seed: int) -> None:
    generator = np.random.default_rng(seed)
    angles = torch.from_numpy(generator.uniform(-0.5, 0.5, (2, 3)))
    matrices = torch.from_numpy(generator.uniform(0.7, 1.4, 2))[:, None, None] * rotations(angles)
    image, label = smooth(2), (smooth(2)[:, :1] > 0.2).float()
    moved, labels = resampled(image, label, matrices.float())
    for case in range(2):
        affine = np.eye(4)
        affine[:3, :3] = matrices[case].numpy()
        for ours, given, mode in ((moved, image, "bilinear"), (labels, label, "nearest")):
            expected, _ = Affine(affine=affine, mode=mode, padding_mode="border", image_only=False)(given[case])
            unlike = (ours[case] - expected.as_tensor()).abs() > 1e-3
            assert unlike.float().mean() < (0.002 if mode == "nearest" else 1e-9)  # ties between two voxels


def test_rotations_turn_as_their_angles_say() -> None:
    quarter = rotations(torch.tensor([[torch.pi / 2, 0, 0], [0, torch.pi / 2, 0], [0, 0, torch.pi / 2]]))
    for matrix, (start, end) in zip(quarter, ((1, 2), (2, 0), (0, 1)), strict=True):
        assert torch.allclose(matrix @ torch.eye(3)[start], torch.eye(3)[end], atol=1e-6)
    any_three = rotations(torch.randn(5, 3, dtype=torch.float64))
    assert torch.allclose(any_three @ any_three.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    assert torch.allclose(torch.linalg.det(any_three), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("transform", SPATIAL, ids=lambda each: type(each).__name__)
def test_image_and_label_map_move_together(transform) -> None:
    image = smooth(4, 1)
    moved, label = transform(image, image.clone(), draw())
    assert not torch.equal(moved, image)
    inside = (slice(None), slice(None), *(slice(3, -3),) * 3)
    apart = (moved - label).abs()[inside]  # nearest and linear differ by less than a voxel's change of value
    steps = max(float(image.diff(dim=axis).abs().max()) for axis in (2, 3, 4))
    assert float(apart.max()) < 2 * steps and float(apart.mean()) < 0.3 * steps


def test_a_mirror_is_that_of_monai() -> None:
    image, label = smooth(2), smooth(2)[:, :1]
    for axis in range(3):
        mirrored, labels = BatchMirror([axis], 1.0)(image, label, draw())
        for case in range(2):
            assert torch.equal(mirrored[case], Flip(axis)(image[case]).as_tensor())
            assert torch.equal(labels[case], Flip(axis)(label[case]).as_tensor())


def test_a_blur_is_that_of_monai_within_the_borders() -> None:
    image = smooth(1, 1) + torch.randn(1, 1, *SHAPE)
    found, _ = BatchBlur(1.0, (0.8, 0.8), 1.0)(image, image, draw())
    expected = GaussianSmooth(0.8)(image[0]).as_tensor()
    inside = (slice(None), *(slice(5, -5),) * 3)
    assert torch.allclose(found[0][inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("bounds", [(0.7, 0.7), (1.5, 1.5)])
def test_gamma_is_that_of_monai(invert: bool, bounds: tuple[float, float]) -> None:
    image = smooth(2, 2)
    found, _ = BatchGamma(1.0, bounds, invert)(image, image, draw())
    for case in range(2):
        for channel in range(2):
            expected = AdjustContrast(bounds[0], invert_image=invert, retain_stats=True)(image[case, channel][None])
            assert torch.allclose(found[case, channel], expected[0].as_tensor(), atol=1e-4)


@pytest.mark.parametrize("transform", INTENSITY, ids=lambda each: type(each).__name__)
def test_values_change_and_label_maps_do_not(transform) -> None:
    image, label = smooth(), smooth()[:, :1]
    given = image.clone()
    changed, labels = transform(image, label, draw())
    assert labels is label and torch.equal(image, given), "what it was given stays"
    assert changed.shape == image.shape and bool(torch.isfinite(changed).all())
    assert all(not torch.equal(changed[case, channel], image[case, channel]) for case in range(3) for channel in (0, 1))


@pytest.mark.parametrize("transform", [*INTENSITY, *SPATIAL], ids=lambda each: type(each).__name__)
def test_a_constant_channel_stays_finite(transform) -> None:
    image = torch.full((2, 1, *SHAPE), 3.0)
    changed, _ = transform(image, image.clone(), draw())
    assert bool(torch.isfinite(changed).all())


def test_contrast_stays_within_the_values_that_were() -> None:
    image = smooth()
    changed, _ = BatchContrast(1.0, (1.2, 1.25))(image, image, draw())
    assert torch.equal(changed.amin((2, 3, 4)), image.amin((2, 3, 4)))
    assert torch.equal(changed.amax((2, 3, 4)), image.amax((2, 3, 4)))
    assert bool((changed.std((2, 3, 4)) > image.std((2, 3, 4))).all())


def test_factors_are_as_often_below_one_as_above() -> None:
    found = draw().around_one((0.7, 1.5), (20000,))
    assert float(found.min()) >= 0.7 and float(found.max()) <= 1.5
    assert abs(float((found < 1).float().mean()) - 0.5) < 0.02


def test_a_step_draws_the_same_again_and_another_step_or_seed_does_not() -> None:
    augment = BatchAugmentation([BatchAffine(0.8), *INTENSITY, BatchMirror()], seed=3)
    first, again = (augment(batch_of(), 5) for _ in range(2))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["label"], again["label"])
    for other in (augment(batch_of(), 6), BatchAugmentation(augment.transforms, seed=4)(batch_of(), 5)):
        assert not torch.equal(first["image"], other["image"])
    assert not isinstance(first["image"], MetaTensor) and first["case_id"] == ["0", "1", "2"]
    assert set(torch.unique(first["label"]).tolist()) <= {0.0, 1.0, 2.0}


def test_the_share_of_cases_is_that_which_was_asked_for() -> None:
    images = torch.zeros(400, 1, 4, 4, 4)
    changed, _ = BatchNoise(0.3, (1.0, 1.0))(images, images, draw())
    assert 0.2 < float(changed.flatten(1).any(1).float().mean()) < 0.4
    turned = torch.rand(400, 1, 4, 4, 4)
    moved, _ = BatchAffine(0.2)(turned, turned, draw())  # rotated or scaled: 1 - 0.8 * 0.8
    assert 0.28 < float((moved != turned).flatten(1).any(1).float().mean()) < 0.44


def test_a_trainer_gets_the_batch_that_was_transformed_and_none_leaves_it_alone() -> None:
    seen: list[Any] = []

    def step(engine: Engine, batch: Any) -> None:
        seen.append(batch)

    for transforms in ([], [BatchBrightness(1.0)]):
        trainer, given = Engine(step), batch_of()
        trainer.state.device = torch.device("cpu")
        BatchAugmentation(transforms).attach(trainer)
        trainer.run([given])
        assert (seen[-1] is given) == (not transforms)
    assert not torch.equal(seen[-1]["image"], given["image"].as_tensor())
