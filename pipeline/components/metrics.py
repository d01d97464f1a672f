"""Metrics as Ignite metrics, reduced over processes; the empty-case policy of `pipeline.measure`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.handlers import from_engine
from torch import Tensor


class CaseDice(Metric):
    """Mean over cases of the mean Dice over labels, with one value per label beside it.

    A label absent in the truth but predicted counts as 0; absent in both it does not count; a case in which
    nothing counts is left out. Takes label maps of shape (1, X, Y, Z).

    Args:
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
    """

    def __init__(
        self, labels: Sequence[str], output_transform: Callable | None = None, device: Any = "cpu"
    ) -> None:
        self.names = list(labels)[1:]
        super().__init__(output_transform or from_engine(["pred", "label"]), device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self._sum = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=self._device)
        self._count = torch.zeros_like(self._sum)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for prediction, truth in zip(*output, strict=True):
            values = []
            for value in range(1, len(self.names) + 1):
                ours, theirs = torch.as_tensor(prediction) == value, torch.as_tensor(truth) == value
                size = int(ours.sum()) + int(theirs.sum())
                if size == 0:
                    continue
                dice = 2 * int((ours & theirs).sum()) / size
                values.append(dice)
                self._sum[value - 1] += dice
                self._count[value - 1] += 1
            if values:
                self._sum[-1] += sum(values) / len(values)
                self._count[-1] += 1

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """Mean over cases; 0 where no case counted, so that an empty validation never looks good."""
        return float(self._sum[-1] / self._count[-1]) if self._count[-1] else 0.0

    def completed(self, engine: Engine, name: str) -> None:
        """Put the mean under ``name`` and each label under ``dice_<label>`` into the engine's metrics."""
        super().completed(engine, name)
        for label, total, count in zip(self.names, self._sum, self._count, strict=False):
            if count:
                engine.state.metrics[f"dice_{label}"] = float(total / count)
