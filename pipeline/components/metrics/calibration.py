"""Whether a network's probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics.metric import EpochWise, MetricUsage, reinit__is_reduced, sync_all_reduce
from monai.engines.utils import IterationEvents
from numpy.typing import NDArray
from torch import Tensor

from pipeline.components.metrics.base import LabelMetric, known, label_map
from pipeline.errors import UsageError
from pipeline.measure import Calibration, calibrate_labels, mean_defined


class CalibrationError(LabelMetric):
    """Expected calibration error of each label's probabilities, all voxels of all cases together; mean over labels.

    As a rule the validator keeps labels, not probabilities: with ``activation`` the metric takes the network's logits,
    before any post-processing. In a config::

        ece: {_target_: pipeline.components.CalibrationError, labels: "@labels", activation: "@activation"}

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, as a MONAI engine has them after its forward pass; None
            where the output holds probabilities (C, X, Y, Z).
        bins: equal bins of probability.
        output_transform: from the engine's output to (scores, truths); truths are label maps (1, X, Y, Z).
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
        self.activation = (
            None if activation is None else known("activation", activation, ("softmax", "sigmoid"))
        )
        self.bins = bins
        super().__init__(labels, output_transform, device)

    def attach(self, engine: Engine, name: str, usage: str | MetricUsage | None = None) -> None:
        """Attach to a validator: behind its forward pass where logits are taken, else behind its post-processing."""
        if usage is None and self.activation is not None:
            usage = MetricUsage(
                Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, IterationEvents.FORWARD_COMPLETED
            )
        super().attach(engine, name, usage or EpochWise())

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
        for scores, truth in zip(*output, strict=True):
            try:
                found = calibrate_labels(
                    label_map(truth, "the truth"), self._probabilities(scores), self.names, self.bins
                )
            except ValueError as error:
                raise UsageError(
                    "the calibration error cannot be measured", found=str(error),
                    hint="name the activation of the network's logits: softmax or sigmoid",
                ) from error  # fmt: skip
            for index, each in enumerate(found.values()):
                for total, part in (
                    (self._probability, each.probability),
                    (self._voxels, each.voxels),
                    (self._events, each.events),
                ):
                    total[index] += torch.from_numpy(part).to(total)

    @sync_all_reduce("_probability", "_voxels", "_events")
    def compute(self) -> float | None:
        """Mean over labels; None without cases."""
        parts = (part.cpu().numpy() for part in (self._voxels, self._probability, self._events))
        errors = [Calibration(*row).error for row in zip(*parts, strict=True)]
        self.by_label = dict(zip(self.names.values(), errors, strict=True))
        return mean_defined(errors)

    def _probabilities(self, scores: Tensor) -> NDArray[np.float32]:
        values = torch.as_tensor(scores).detach().float()
        if self.activation is not None:
            values = values.softmax(0) if self.activation == "softmax" else values.sigmoid()
        return np.asarray(values.cpu())
