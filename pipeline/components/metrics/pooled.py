"""Overlap of all voxels of all cases together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from pipeline.components.metrics.base import LabelMetric, known, label_maps
from pipeline.measure import Counts, label_pairs, mean_defined

KNOWN = ("dice", "iou", "precision", "recall", "specificity")


class PooledMetric(LabelMetric):
    """An overlap measure of the voxels of all cases together, and its mean over labels.

    Large cases weigh more than small ones here, and no case is ever undefined. Takes label maps of shape (1, X, Y, Z).

    Args:
        measure: dice, iou, precision, recall or specificity.
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.

    Raises:
        UsageError: no such measure; later, values that are no label maps.
    """

    def __init__(
        self,
        measure: str,
        labels: Sequence[str],
        output_transform: Callable | None = None,
        device: Any = "cpu",
    ) -> None:
        self.measure = known("measure", measure, KNOWN)
        super().__init__(labels, output_transform, device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self._counts = self._zeros(len(self.names), 4, dtype=torch.int64)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for prediction, truth in zip(*output, strict=True):
            pairs = label_pairs(*label_maps(truth, prediction), self.names, (1.0, 1.0, 1.0))
            for row, (_, pair) in zip(self._counts, pairs, strict=True):
                counts = pair.counts
                row += row.new_tensor([counts.both, counts.truth, counts.prediction, counts.voxels])

    @sync_all_reduce("_counts")
    def compute(self) -> float | None:
        """Mean over labels; 0 where the measure is defined for none."""
        values = [getattr(Counts(*row), self.measure) for row in self._counts.tolist()]
        self._by_label(values)
        return mean_defined(values) or 0.0
