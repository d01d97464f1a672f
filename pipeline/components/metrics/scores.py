"""What metrics of probabilities share: where a validator has them, and that they are probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics.metric import EpochWise, MetricUsage
from monai.engines.utils import IterationEvents
from numpy.typing import NDArray
from torch import Tensor

from pipeline.components.metrics.base import LabelMetric, known, label_map
from pipeline.errors import UsageError
from pipeline.measure import label_channels

SLACK = 1e-5  # rounding


class ScoreMetric(LabelMetric):
    """A metric of scores (C, X, Y, Z), a channel for every class with background or one a label without it.

    As a rule a validator keeps labels, not probabilities: with ``activation`` the metric takes the network's logits,
    before any post-processing.

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, as a MONAI engine has them after its forward pass; None
            where the output holds probabilities.
        output_transform: from the engine's output to (scores, truths); truths are label maps (1, X, Y, Z).
        device: of the sums.

    Raises:
        UsageError: no such activation; later, values that are no probabilities, or another number of channels.
    """

    def __init__(
        self, labels: Sequence[str], activation: str | None, output_transform: Callable | None, device: Any
    ) -> None:
        if activation is not None:
            known("activation", activation, ("softmax", "sigmoid"))
        self.activation = activation
        super().__init__(labels, output_transform, device)

    def attach(self, engine: Engine, name: str, usage: str | MetricUsage | None = None) -> None:
        """Attach to a validator: behind its forward pass where logits are taken, else behind its post-processing."""
        if usage is None and self.activation is not None:
            usage = MetricUsage(
                Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, IterationEvents.FORWARD_COMPLETED
            )
        super().attach(engine, name, usage or EpochWise())

    def _cases(
        self, output: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> Iterator[list[tuple[NDArray[np.bool_], NDArray[np.float32]]]]:
        """Mask and probabilities of every label, case by case."""
        for scores, truth in zip(*output, strict=True):
            labels, probabilities = label_map(truth, "the truth"), self._probabilities(scores)
            if probabilities.shape[1:] != labels.shape:
                raise UsageError(
                    "scores and truth have different shapes",
                    found=probabilities.shape[1:],
                    expected=labels.shape,
                )
            try:
                channels = label_channels(probabilities, self.names)
            except ValueError as error:
                raise UsageError("the scores do not fit the labels", found=str(error)) from error
            yield [(labels == value, channel) for value, channel in channels.items()]

    def _probabilities(self, scores: Tensor) -> NDArray[np.float32]:
        values = torch.as_tensor(scores).detach().float()
        if self.activation is not None:
            values = values.softmax(0) if self.activation == "softmax" else values.sigmoid()
        low, high = float(values.min()), float(values.max())
        if not (low >= -SLACK and high <= 1 + SLACK):  # NaN is neither
            raise UsageError(
                "the scores are no probabilities", found=f"{low:g} to {high:g}", expected="0 to 1",
                hint="name the activation of the network's logits: softmax or sigmoid",
            )  # fmt: skip
        return np.asarray(values.cpu())
