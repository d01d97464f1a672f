"""Whether a network's probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from pipeline.components.metrics.scores import ScoreMetric
from pipeline.measure import Calibration, calibrate, mean_defined


class CalibrationError(ScoreMetric):
    """Expected calibration error of each label's probabilities, all voxels of all cases together; mean over labels.

    In a config::

        ece: {_target_: pipeline.components.CalibrationError, labels: "@labels", activation: "@activation"}

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, None for probabilities; see `ScoreMetric`.
        bins: equal bins of probability.
        output_transform: from the engine's output to (scores, truths).
        device: of the sums.

    Raises:
        UsageError: no such activation; later, values that are no probabilities, or another number of channels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        activation: str | None = None,
        bins: int = 15,
        output_transform: Callable | None = None,
        device: Any = "cpu",
    ) -> None:
        self.bins = bins
        super().__init__(labels, activation, output_transform, device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        shape = len(self.names), self.bins
        self._probability = self._zeros(*shape)
        self._voxels = self._zeros(*shape, dtype=torch.int64)
        self._events = self._zeros(*shape, dtype=torch.int64)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for case in self._cases(output):
            for index, (truth, probability) in enumerate(case):
                found = calibrate(truth, probability, self.bins)
                self._probability[index] += torch.from_numpy(found.probability).to(self._probability)
                self._voxels[index] += torch.from_numpy(found.voxels).to(self._voxels)
                self._events[index] += torch.from_numpy(found.events).to(self._events)

    @sync_all_reduce("_probability", "_voxels", "_events")
    def compute(self) -> float | None:
        """Mean over labels; None without cases."""
        parts = (part.cpu().numpy() for part in (self._voxels, self._probability, self._events))
        errors = [Calibration(*row).error for row in zip(*parts, strict=True)]
        self._by_label(errors)
        return mean_defined(errors)
