"""Lovász against the published algorithm, written here in float64 loops, and against IoU on hard predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.components.lovasz import LovaszHinge, LovaszSoftmax, lovasz_weights


def extension(errors: np.ndarray, truth: np.ndarray) -> float:
    """Sum of errors times the growth of the Jaccard loss of the set of the largest, one voxel at a time."""
    total, before, intersection, union = 0.0, 0.0, truth.sum(), truth.sum()
    for voxel in np.argsort(-errors, kind="stable"):
        intersection, union = (intersection - 1, union) if truth[voxel] else (intersection, union + 1)
        jaccard = 1 - intersection / union
        total, before = total + errors[voxel] * (jaccard - before), jaccard
    return float(total)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1), st.integers(1, 9), st.booleans())
def test_weights_equal_the_published_algorithm_with_ties_and_zeros(seed, size, share, levels, single) -> None:
    random = np.random.default_rng(seed)
    errors = random.integers(0, levels, size) / levels  # many equal ones
    truth = random.random(size) < share
    found = torch.tensor(errors, dtype=torch.float32 if single else torch.float64)
    weights = lovasz_weights(found, torch.tensor(truth))
    assert float(weights @ found) == pytest.approx(extension(errors, truth), abs=1e-5 if single else 1e-12)
    assert (weights >= 0).all()


def example(seed: int, batch: int = 2, classes: int = 4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 4, 3, 5, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, classes - 1, (batch, 1, 4, 3, 5), generator=generator)  # the last class is absent
    return logits, truth


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["present", "all", [1, 3]]), st.booleans(), st.booleans())
def test_softmax_by_classes_image_and_ignored_voxels(seed, classes, batch, ignore) -> None:
    logits, truth = example(seed)
    p, t = logits.softmax(1).numpy().reshape(2, 4, -1), truth.numpy().reshape(2, -1)
    groups = [(p.swapaxes(0, 1).reshape(4, -1), t.ravel())] if batch else list(zip(p, t, strict=True))
    images = []
    for scores, labels in groups:
        counts = labels != 0 if ignore else labels >= 0
        scores, labels = scores[:, counts], labels[counts]
        chosen = range(4) if isinstance(classes, str) else classes
        values = [
            extension(np.abs((labels == c) - scores[c]), labels == c)
            for c in chosen
            if classes != "present" or (labels == c).any()
        ]
        images.append(np.mean(values))
    loss = LovaszSoftmax(classes=classes, batch=batch, ignore_index=0 if ignore else None)
    assert float(loss(logits, truth)) == pytest.approx(np.mean(images), abs=1e-9)
    assert float(loss(logits.float(), truth)) == pytest.approx(np.mean(images), abs=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_hinge_per_image_and_pooled_and_of_two_classes(batch: bool) -> None:
    logits, truth = example(3)
    logits, truth = logits[:, :1], (truth > 0).long()
    x, t = logits.numpy().reshape(2, -1), truth.numpy().reshape(2, -1) > 0
    groups = [(x.ravel(), t.ravel())] if batch else list(zip(x, t, strict=True))
    expected = np.mean([extension(np.maximum(1 - a * (2.0 * b - 1), 0), b) for a, b in groups])
    assert float(LovaszHinge(activation="sigmoid", batch=batch)(logits, truth)) == pytest.approx(expected, abs=1e-9)
    pair = torch.cat([0.3 * torch.ones_like(logits), logits + 0.3], 1)
    two = LovaszHinge(activation="softmax", batch=batch)
    assert float(two(pair, truth)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_on_hard_predictions_it_is_one_minus_iou(seed: int) -> None:
    _, truth = example(seed, batch=1)
    guess = torch.randint(0, 4, truth.shape, generator=torch.Generator().manual_seed(seed + 100))
    logits = 500 * torch.nn.functional.one_hot(guess[:, 0], 4).movedim(-1, 1).float()
    iou = [
        float(((guess == c) & (truth == c)).sum()) / float(((guess == c) | (truth == c)).sum())
        for c in range(4)
        if (truth == c).any()
    ]
    assert float(LovaszSoftmax()(logits, truth)) == pytest.approx(1 - np.mean(iou), abs=1e-6)


def test_float32_keeps_its_digits_on_a_large_volume() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 64, 64, 64, generator=generator)
    truth = torch.randint(0, 2, (1, 1, 64, 64, 64), generator=generator)
    exact = float(LovaszSoftmax()(logits.double(), truth))
    assert float(LovaszSoftmax()(logits, truth)) == pytest.approx(exact, abs=1e-6)
