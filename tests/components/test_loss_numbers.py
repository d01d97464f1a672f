"""The worked numbers of published tutorials, to at least six digits."""

from __future__ import annotations

import pytest
import torch

from segpipe.components.losses import DiceLoss

SIX = 5e-7


def logit(rows: list[list[float]]) -> torch.Tensor:
    """Logits whose sigmoid is the table, as one image of one channel."""
    return torch.logit(torch.tensor(rows, dtype=torch.float64))[None, None]


def yes(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows)[None, None]


@pytest.mark.parametrize(("smooth", "expected"), [(1.0, 0.35692084), (1e-12, 0.40083855)])
def test_dice_with_laplace_smoothing(smooth: float, expected: float) -> None:
    prediction = [
        [0.38574776, 0.08795848, 0.83927506],
        [0.21592768, 0.44453627, 0.10463644],
        [0.8793516, 0.65118235, 0.5184219],
    ]
    truth = [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    loss = float(DiceLoss(smooth=smooth, activation="sigmoid")(logit(prediction), yes(truth)))
    assert loss == pytest.approx(expected, abs=SIX)
    assert 1 - loss == pytest.approx({1.0: 0.64307916, 1e-12: 0.59916145}[smooth], abs=SIX)


PREDICTION = [[0.2, 0.5], [0.3, 0.1], [0.9, 0.6]]
SQUARED = {"squared": True, "smooth": 1e-5, "smooth_above": 0.0, "batch": True}


def test_squared_dice_of_mindspore_which_divides_by_the_number_of_samples() -> None:
    loss = float(DiceLoss(activation="sigmoid", **SQUARED)(logit(PREDICTION), yes([[0, 1], [1, 0], [0, 1]])))
    dice, samples = 1 - loss, 3
    assert dice == pytest.approx(0.614033, abs=1e-6)
    assert dice / samples == pytest.approx(0.20467791713802546, abs=SIX)
    assert 1 - dice / samples == pytest.approx(0.7953220862819745, abs=SIX)


def test_multi_class_dice_of_mindspore() -> None:
    logits = torch.tensor(PREDICTION, dtype=torch.float64).reshape(3, 2, 1, 1, 1)
    truth = torch.tensor([1, 0, 1]).reshape(3, 1, 1, 1, 1)

    def dice(**more) -> float:
        return 1 - float(DiceLoss(include_background=True, **SQUARED, **more)(logits, truth))

    by_class = [dice(class_weights=weights) for weights in ([1, 0], [0, 1])]
    assert by_class == pytest.approx([0.6064087, 0.7369896], abs=SIX)
    assert 1 - dice() / 3 == pytest.approx(0.7761003, abs=SIX)
