"""Dice of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from pipeline.components.metrics.base import add_case, case_means
from pipeline.components.metrics.scores import ScoreMetric
from pipeline.measure import SoftCounts, count_soft, mean_defined


class SoftDice(ScoreMetric):
    """Dice of each label's probabilities, with the plain or the squared denominator; mean over labels.

    Pooled over all voxels of all cases, or per sample: then the mean over cases of the mean over labels. In a config::

        soft_dice: {_target_: pipeline.components.SoftDice, labels: "@labels", activation: "@activation", squared: true}

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, None for probabilities; see `ScoreMetric`.
        squared: square the terms of the denominator.
        smooth: added below, in voxels.
        smooth_above: added above; as ``smooth`` where it is not given.
        per_sample: whether each case has a Dice of its own.
        output_transform: from the engine's output to (scores, truths).
        device: of the sums.

    Raises:
        UsageError: no such activation; later, values that are no probabilities, or another number of channels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        activation: str | None = None,
        squared: bool = False,
        smooth: float = 0.0,
        smooth_above: float | None = None,
        per_sample: bool = False,
        output_transform: Callable | None = None,
        device: Any = "cpu",
    ) -> None:
        self.squared = squared
        self.smoothing = smooth, smooth_above
        self.per_sample = per_sample
        super().__init__(labels, activation, output_transform, device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self._sums = self._zeros(len(self.names), 2)
        self._totals = self._zeros(len(self.names) + 1, 2)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for case in self._cases(output):
            counts = [count_soft(truth, probability, self.squared) for truth, probability in case]
            self._sums += self._sums.new_tensor([[each.product, each.terms] for each in counts])
            add_case(self._totals, [each.dice(*self.smoothing) for each in counts])

    @sync_all_reduce("_sums", "_totals")
    def compute(self) -> float | None:
        """The Dice; 0 where no case counted."""
        if self.per_sample:
            *by_label, mean = case_means(self._totals)
        else:
            by_label = [SoftCounts(*row).dice(*self.smoothing) for row in self._sums.tolist()]
            mean = mean_defined(by_label) if self._totals[-1, 1] else None
        self._by_label(by_label)
        return mean or 0.0
