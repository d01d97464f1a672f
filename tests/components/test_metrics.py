"""CaseDice against hand-computed cases and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torchmetrics.functional.segmentation import dice_score

from pipeline.components import CaseDice

NAMES = ["background", "a", "b"]


def volume(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


def measured(*pairs: tuple[torch.Tensor, torch.Tensor]) -> CaseDice:
    metric = CaseDice(NAMES)
    metric.reset()
    for prediction, truth in pairs:
        metric.update(([prediction], [truth]))
    return metric


def test_policy_for_empty_labels() -> None:
    perfect = volume(1, 1, 2, 0)
    assert measured((perfect, perfect)).compute() == 1
    # predicted but absent: 0 and counted; absent in both: not counted
    assert measured((volume(1, 2, 0, 0), volume(1, 0, 0, 0))).compute() == pytest.approx(0.5)
    assert measured((volume(1, 0, 0, 0), volume(1, 0, 0, 0))).compute() == 1
    # a case with nothing in it says nothing
    assert measured((perfect, perfect), (volume(0, 0, 0, 0), volume(0, 0, 0, 0))).compute() == 1
    assert measured((volume(0, 0, 0, 0), volume(0, 0, 0, 0))).compute() == 0
    # mean over cases of the mean over labels
    assert measured((perfect, perfect), (volume(1, 1, 0, 0), volume(0, 1, 0, 0))).compute() == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_against_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, truth = (torch.randint(0, 3, (4, 1, 6, 5, 4), generator=generator) for _ in range(2))
    metric = CaseDice(NAMES)
    metric.reset()
    metric.update((list(prediction), list(truth)))
    expected = dice_score(
        prediction[:, 0],
        truth[:, 0],
        num_classes=3,
        include_background=False,
        average="none",
        input_format="index",
    ).mean(1)
    assert metric.compute() == pytest.approx(float(expected.mean()), abs=1e-6)


def test_labels_are_put_beside_the_mean() -> None:
    engine = Engine(lambda _, pair: [{"pred": pair[0], "label": pair[1]}])
    CaseDice(NAMES).attach(engine, "val_mean_dice")
    engine.run([(volume(1, 2, 0, 0), volume(1, 0, 0, 0))])
    assert engine.state.metrics == {"val_mean_dice": 0.5, "dice_a": 1.0, "dice_b": 0.0}
