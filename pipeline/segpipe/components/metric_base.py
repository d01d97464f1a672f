"""What the metrics share: a mean with a number for each label beside it, strict label maps, and true probabilities."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import EpochWise, MetricUsage
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine
from numpy.typing import NDArray
from torch import Tensor

from segpipe.components.processes import of_all_cases
from segpipe.errors import UsageError
from segpipe.evaluation import label_channels, mean_defined

SLACK = 1e-5  # rounding


class LabelMetric(Metric):
    """A number, with one for each label beside it.

    ``compute`` returns the number and leaves those of the labels in ``by_label``. In the engine's metrics, what is
    not defined is left out.

    What `compute` sums is kept by case and added in the order of the cases, also where several processes have them: so
    it does not depend on their number, to the last bit.

    Args:
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.
    """

    def __init__(self, labels: Sequence[str], output_transform: Callable | None, device: Any) -> None:
        self.names = dict(enumerate(labels))
        self.names.pop(0, None)
        if not self.names:
            raise UsageError("a metric needs labels", found=list(labels), expected="background and a label")
        self.by_label: dict[str, float | None] = {}
        self._cases_seen: list[tuple[Tensor, ...]] = []
        super().__init__(output_transform or from_engine(["pred", "label"]), device=device)

    def reset(self) -> None:
        """Forget all cases."""
        self._cases_seen = []

    @abstractmethod
    def compute(self) -> float | None:
        """Return the number; None where it is not defined."""

    def completed(self, engine: Engine, name: str) -> None:
        """Put the number under ``name`` and those of the labels beside it into the engine's metrics."""
        values = {name: self.compute()}
        values |= {self._key(name, label): value for label, value in self.by_label.items()}
        for key, value in values.items():
            engine.state.metrics.pop(key, None)  # of an earlier run
            if value is not None:
                engine.state.metrics[key] = value

    def _key(self, name: str, label: str) -> str:
        return f"{name}_{label}"

    def _by_label(self, values: Iterable[float | None]) -> None:
        self.by_label = dict(zip(self.names.values(), values, strict=True))

    def _add(self, *parts: Tensor) -> None:
        """Keep what a case adds to each sum."""
        self._cases_seen.append(tuple(part.cpu() for part in parts))

    def _sums_of_all(self, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return the sums over the cases of all processes; zeros of these shapes where there is no case."""
        cases = of_all_cases(self._cases_seen)
        if not cases:
            return tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return tuple(
            functools.reduce(torch.add, parts, torch.zeros_like(parts[0])) for parts in zip(*cases, strict=True)
        )


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
            require_known("activation", activation, ("softmax", "sigmoid"))
        self.activation = activation
        super().__init__(labels, output_transform, device)

    def attach(self, engine: Engine, name: str, usage: str | MetricUsage | None = None) -> None:
        """Attach to a validator: behind its forward pass where logits are taken, else behind its post-processing."""
        if usage is None and self.activation is not None:
            usage = MetricUsage(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, IterationEvents.FORWARD_COMPLETED)
        super().attach(engine, name, usage or EpochWise())

    def _cases(
        self, output: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> Iterator[list[tuple[NDArray[np.bool_], NDArray[np.float32]]]]:
        """Yield mask and probabilities of every label, case by case."""
        for scores, truth in zip(*output, strict=True):
            labels, probabilities = label_map(truth, "the truth"), self._probabilities(scores)
            if probabilities.shape[1:] != labels.shape:
                raise UsageError(
                    "scores and truth have different shapes", found=probabilities.shape[1:], expected=labels.shape
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
                "the scores are no probabilities",
                found=f"{low:g} to {high:g}",
                expected="0 to 1",
                hint="name the activation of the network's logits: softmax or sigmoid",
            )
        return np.asarray(values.cpu())


def sum_and_count(values: Sequence[float | None]) -> Tensor:
    """Return what a case adds to the sums and counts of its labels, and of their mean: (labels + 1, 2).

    Args:
        values: one a label, None where it is not defined.
    """
    rows = [(0.0, 0) if value is None else (value, 1) for value in [*values, mean_defined(values)]]
    return torch.tensor(rows, dtype=torch.float64)


def case_means(totals: Tensor) -> list[float | None]:
    """Return the means over cases of what `sum_and_count` gave: one a label, and at the end that of all labels."""
    return [total / n if n else None for total, n in totals.tolist()]


def require_known(noun: str, word: str, words: Sequence[str]) -> str:
    """Return the word itself.

    Raises:
        UsageError: it is none of the words; with the nearest.
    """
    if word in words:
        return word
    near = get_close_matches(word, words, 1)
    hint = f"did you mean {near[0]!r}?" if near else None
    if word == "ece":
        hint = "segpipe.components.CalibrationError measures it, from probabilities"
    raise UsageError(f"no such {noun}", found=word, expected=", ".join(words), hint=hint)


def label_maps(truth: Tensor, prediction: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return both as label maps of one shape (X, Y, Z).

    Raises:
        UsageError: as `label_map`, or their shapes differ.
    """
    true, predicted = label_map(truth, "the truth"), label_map(prediction, "the prediction")
    if true.shape != predicted.shape:
        raise UsageError("prediction and truth have different shapes", found=predicted.shape, expected=true.shape)
    return true, predicted


def label_map(tensor: Tensor, noun: str) -> NDArray[np.uint8]:
    """Return the label map (X, Y, Z) of a tensor (1, X, Y, Z).

    Raises:
        UsageError: another shape, or values that are not whole numbers from 0 to 255.
    """
    values = np.asarray(torch.as_tensor(tensor).detach().cpu())
    if values.ndim != 4 or len(values) != 1:
        raise UsageError(
            f"{noun} is not a label map",
            found=f"shape {values.shape}",
            expected="(1, X, Y, Z)",
            hint="post-process by AsDiscreted with argmax: true",
        )
    with np.errstate(invalid="ignore"):
        labels: NDArray[np.uint8] = values[0].astype(np.uint8)
    if not np.array_equal(labels, values[0]):
        raise UsageError(f"{noun} is not a label map", found="values that are not whole numbers from 0 to 255")
    return labels


def region_maps(tensor: Tensor, regions: int) -> NDArray[np.uint8]:
    """Return the masks of a prediction of regions, (regions, X, Y, Z) of 0 and 1.

    Raises:
        UsageError: another shape or other values.
    """
    values = np.asarray(torch.as_tensor(tensor).detach().cpu())
    if values.ndim != 4 or len(values) != regions or not np.isin(values, (0, 1)).all():
        raise UsageError(
            "the prediction is not a mask for each region",
            found=f"shape {values.shape}",
            expected=f"({regions}, X, Y, Z) of 0 and 1",
            hint="post-process by AsDiscreted with threshold: 0.0 of logits",
        )
    masks: NDArray[np.uint8] = values.astype(np.uint8)
    return masks
