"""Losses against NumPy float64 formulas, MONAI where it is right, and their algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss as MonaiDiceCE
from monai.losses import TverskyLoss as MonaiTversky

from segpipe.components.losses import DeepSupervision, DiceCELoss, FocalTverskyLoss, TverskyLoss
from segpipe.errors import DataError, UsageError

LOSSES = [DiceCELoss, TverskyLoss, FocalTverskyLoss]


def example(seed: int, classes: int = 3, batch: int = 2, shape: tuple[int, ...] = (4, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *shape, generator=generator)
    truth = torch.randint(0, classes, (batch, 1, *shape), generator=generator)
    return logits, truth


def numpy_tversky(logits, truth, alpha, beta, background, batch, smooth=1e-5) -> np.ndarray:
    """Index by sample and class, written independently in float64 loops."""
    logits, truth = logits.double().numpy(), truth.numpy()
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponent / exponent.sum(1, keepdims=True)
    groups = [range(len(logits))] if batch else [[index] for index in range(len(logits))]
    rows = []
    for group in groups:
        row = []
        for value in range(0 if background else 1, logits.shape[1]):
            tp = fp = fn = 0.0
            for index in group:
                p, t = probabilities[index, value], truth[index, 0] == value
                tp += p[t].sum()
                fp += p[~t].sum()
                fn += (1 - p)[t].sum()
            row.append((tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
        rows.append(row)
    return np.array(rows)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 5), st.booleans(), st.booleans(), st.sampled_from([(0.5, 0.5), (0.3, 0.7)])
)
def test_tversky_family_equals_an_independent_formula(seed, classes, background, batch, weights) -> None:
    logits, truth = example(seed, classes)
    index = numpy_tversky(logits, truth, *weights, background, batch)
    options = {"alpha": weights[0], "beta": weights[1], "include_background": background, "batch": batch}
    assert float(TverskyLoss(**options)(logits, truth)) == pytest.approx((1 - index).mean(), abs=1e-6)
    ours = float(FocalTverskyLoss(gamma=0.75, **options)(logits, truth))
    assert ours == pytest.approx(((1 - index) ** 0.75).mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_monai_where_it_is_right(seed: int) -> None:
    logits, truth = example(seed)
    monai = MonaiTversky(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7)
    assert float(TverskyLoss(include_background=True)(logits, truth)) == pytest.approx(
        float(monai(logits, truth)), abs=1e-6
    )
    monai = MonaiDiceCE(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    # MONAI smooths numerator and denominator of 2TP/(..) by 1e-5, ours TP/(..): apart by about 1e-6 here
    assert float(DiceCELoss(batch=True)(logits, truth)) == pytest.approx(float(monai(logits, truth)), abs=1e-5)


def test_algebra_of_the_family() -> None:
    logits, truth = example(7)
    dice = 1 - numpy_tversky(logits, truth, 0.5, 0.5, False, False).mean()
    assert float(TverskyLoss(0.5, 0.5)(logits, truth)) == pytest.approx(dice, abs=1e-6)
    assert float(FocalTverskyLoss(0.5, 0.5, gamma=1.0)(logits, truth)) == pytest.approx(dice, abs=1e-6)
    entropy = torch.nn.functional.cross_entropy(logits, truth[:, 0])
    assert float(DiceCELoss(alpha=1.0)(logits, truth)) == pytest.approx(2 * float(entropy), abs=1e-6)
    one = logits[:1], truth[:1]
    assert float(TverskyLoss(batch=True)(*one)) == pytest.approx(float(TverskyLoss(batch=False)(*one)), abs=1e-7)


def test_dice_ce_with_sigmoid_is_binary_cross_entropy_per_channel() -> None:
    logits, _ = example(1)
    truth = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert float(DiceCELoss(alpha=1.0, activation="sigmoid")(logits, truth)) == pytest.approx(
        2 * float(entropy), abs=1e-6
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("case", ["random", "perfect", "inverted", "empty", "full", "one voxel"])
def test_value_in_range_and_gradient_finite(kind, case: str) -> None:
    logits, truth = example(3)
    if case == "perfect":
        logits = 200 * torch.nn.functional.one_hot(truth[:, 0], 3).movedim(-1, 1).float()
    if case == "inverted":
        logits = -200 * torch.nn.functional.one_hot(truth[:, 0], 3).movedim(-1, 1).float()
    if case in ("empty", "full", "one voxel"):
        truth = torch.full_like(truth, 1 if case == "full" else 0)
    if case == "one voxel":
        truth[0, 0, 0, 0, 0] = 2
    logits = logits.clone().requires_grad_(True)
    value = kind()(logits, truth)
    value.backward()
    assert torch.isfinite(value)
    assert value >= 0
    assert torch.isfinite(logits.grad).all()
    if case == "perfect":
        assert value < 1e-3


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_large_volume_keeps_its_gradient(kind, dtype) -> None:
    logits, truth = example(0, batch=1, shape=(64, 64, 64))
    half = logits.to(dtype).requires_grad_(True)
    value = kind()(half, truth)
    value.backward()
    assert float(value) == pytest.approx(float(kind()(logits, truth)), abs=2e-2)
    assert torch.isfinite(half.grad).all()
    assert (half.grad != 0).float().mean() > 0.01


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_against_finite_differences(kind) -> None:
    logits, truth = example(5, batch=1, shape=(2, 2, 2))
    loss = kind()
    logits = logits.clone().requires_grad_(True)
    loss(logits, truth).backward()
    step = torch.zeros_like(logits)
    step[0, 1, 1, 0, 1] = 1e-2
    with torch.no_grad():
        slope = (loss(logits + step, truth) - loss(logits - step, truth)) / 2e-2
    assert float(logits.grad[0, 1, 1, 0, 1]) == pytest.approx(float(slope), rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_truth_of_another_shape_is_refused_in_any_step(kind) -> None:
    """One that is smaller would be taken for background where it is not."""
    logits, truth = example(3)
    loss = kind()
    loss(logits, truth)
    for wrong in (truth[..., :2], truth[:1], truth.expand(-1, 3, -1, -1, -1)):
        with pytest.raises(UsageError, match="does not fit"):
            loss(logits, wrong)


@pytest.mark.parametrize("kind", LOSSES)
def test_voxel_order_does_not_matter(kind) -> None:
    logits, truth = example(9)
    loss = kind()
    assert float(loss(logits.flip(2, 4), truth.flip(2, 4))) == pytest.approx(float(loss(logits, truth)), abs=1e-6)


def test_wrong_pairings_are_refused_before_the_first_step() -> None:
    logits, truth = example(0)
    with pytest.raises(UsageError, match="activation"):
        TverskyLoss(activation="relu")
    with pytest.raises(UsageError, match="does not fit"):
        TverskyLoss()(logits, truth[..., :2])
    with pytest.raises(UsageError, match="softmax over one channel"):
        TverskyLoss()(logits[:, :1], truth.clamp_max(0))
    with pytest.raises(UsageError, match="does not fit"):
        DiceCELoss(activation="sigmoid")(logits, truth)
    with pytest.raises(DataError, match="no class"):
        DiceCELoss()(logits, truth + 1)
    with pytest.raises(DataError, match="no class"):
        DiceCELoss()(logits, truth.float() * 0.8)
    for wrong in ({"alpha": -1}, {"alpha": 0, "beta": 0}):
        with pytest.raises(UsageError):
            TverskyLoss(**wrong)
    with pytest.raises(UsageError):
        FocalTverskyLoss(gamma=0)
    with pytest.raises(UsageError):
        DiceCELoss(alpha=1.5)


def test_deep_supervision_weighs_the_finest_head_most() -> None:
    logits, truth = example(0)
    other, _ = example(1)
    loss = TverskyLoss()
    first, second = float(loss(logits, truth)), float(loss(other, truth))
    assert float(DeepSupervision(loss)([logits, other], truth)) == pytest.approx((2 * first + second) / 3, abs=1e-6)
    assert float(DeepSupervision(loss)(logits, truth)) == pytest.approx(first, abs=1e-7)
    coarse = torch.randn(2, 3, 2, 2, 2)
    assert torch.isfinite(DeepSupervision(loss)([logits, coarse], truth))


FROZEN = {  # value and sum of the gradient's magnitudes; trained weights depend on every bit
    (DiceCELoss, "softmax"): ("0x1.0c89300000000p+1", "0x1.b1664fe398000p+0"),
    (DiceCELoss, "sigmoid"): ("0x1.73a4720000000p+0", "0x1.674ba31f70000p-1"),
    (TverskyLoss, "softmax"): ("0x1.5a5b5e0000000p-1", "0x1.5a905d77e5af0p-2"),
    (TverskyLoss, "sigmoid"): ("0x1.2f9fc60000000p-1", "0x1.9aa897cba0000p-3"),
    (FocalTverskyLoss, "softmax"): ("0x1.7ddfba0000000p-1", "0x1.1eaef1f17dc00p-2"),
    (FocalTverskyLoss, "sigmoid"): ("0x1.59f8680000000p-1", "0x1.5f01e64c10000p-3"),
}


@pytest.mark.parametrize(("kind", "activation"), FROZEN)
def test_numbers_of_the_losses_that_weights_were_trained_with_stay(kind, activation: str) -> None:
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(2, 3, 7, 6, 5, generator=generator).requires_grad_(True)
    truth = torch.randint(0, 3, (2, 1, 7, 6, 5), generator=generator)
    if activation == "sigmoid":
        truth = (torch.rand(2, 3, 7, 6, 5, generator=generator) > 0.7).float()
    value = kind(activation=activation)(logits, truth)
    value.backward()
    found = float(value.detach()), float(logits.grad.abs().double().sum())
    # another processor may add in another order, which moves the last bits of float32
    assert found == pytest.approx(tuple(map(float.fromhex, FROZEN[kind, activation])), rel=5e-7)


def test_a_label_that_has_no_channel_is_an_error_at_each_step() -> None:
    logits, loss = torch.randn(1, 3, 4, 4, 4), DiceCELoss()
    for refused in (DataError, RuntimeError):  # at first what is known of the values is said
        for label in (3, -1):
            with pytest.raises(refused):
                loss(logits, torch.full((1, 1, 4, 4, 4), float(label)))
        loss(logits, torch.ones(1, 1, 4, 4, 4))
