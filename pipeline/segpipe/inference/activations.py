"""From scores to labels: activation, and which class wins.

What is kept of the scores beside a label map: probabilities of classes, and how undecided a voxel is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Activation = Literal["softmax", "sigmoid"]
THRESHOLD = 0.5
CHUNK = 1 << 20  # scores that are activated at a time


def activate(scores: torch.Tensor, activation: Activation) -> None:
    """Scores (K, X, Y, Z) to probabilities, in place, a few planes at a time."""
    for plane in scores.split(max(1, CHUNK * scores.shape[1] // max(1, scores.numel())), 1):
        plane.copy_(torch.softmax(plane, 0) if activation == "softmax" else torch.sigmoid(plane))


def winners_of(scores: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Labels of scores (K, ...): the first of the highest, or a bit for each that reaches the threshold."""
    if activation == "sigmoid":
        return _bits(scores, torch.uint8 if len(scores) < 8 else torch.int16)
    best = scores[0].clone()
    winners = torch.zeros(best.shape, dtype=torch.uint8 if len(scores) <= 254 else torch.int16)
    for label in range(1, len(scores)):
        winners.masked_fill_(scores[label] > best, label)
        torch.maximum(best, scores[label], out=best)
    return winners


def _bits(scores: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    regions = (scores[0] >= THRESHOLD).to(kind)
    for channel in range(1, len(scores)):
        regions |= (scores[channel] >= THRESHOLD).to(kind) << channel
    return regions


def marks(scores: torch.Tensor, activation: Activation) -> tuple[int, int]:
    """Values for "not seen by the network" and for "undecided", beside the labels."""
    return (0, 1 << len(scores)) if activation == "sigmoid" else (len(scores), len(scores) + 1)


class Best:
    """The winner so far, class by class, as `winners_of` finds it among all."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.labels = self.score = torch.empty(0)

    def meet(self, label: int, values: torch.Tensor) -> None:
        """Compare the next class."""
        if self.activation == "sigmoid":
            region = (values >= THRESHOLD).to(torch.uint8) << label
            self.labels = self.labels | region if label else region
        elif label == 0:
            self.score, self.labels = values.clone(), torch.zeros(values.shape, dtype=torch.uint8)
        else:
            self.labels.masked_fill_(values > self.score, label)
            torch.maximum(self.score, values, out=self.score)


Array = NDArray[np.float32]


@dataclass(frozen=True)
class ExtraOutputs:
    """Files that are written beside a label map.

    Attributes:
        probabilities: of all channels of the scores, (X, Y, Z, K).
        single: by channel, a file of its probabilities alone, (X, Y, Z); instead of ``probabilities``.
        entropy: of the probabilities of all channels, (X, Y, Z).
    """

    probabilities: str | None = None
    single: Mapping[int, str] = field(default_factory=dict)
    entropy: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (self.probabilities, *self.single.values(), self.entropy) if name)


@dataclass(frozen=True, eq=False)
class Kept:
    """Arrays on a source's grid that are filled block by block.

    Attributes:
        activation: how scores became probabilities.
        probabilities: by channel, (X, Y, Z) float32.
        entropy: (X, Y, Z) float32, 0 to begin with; None where it is not asked for.
    """

    activation: Activation
    probabilities: Mapping[int, Array]
    entropy: Array | None = None

    def viewed(self, view: Callable[[Array], Array]) -> Kept:
        """The same arrays with their axes otherwise."""
        views = {channel: view(array) for channel, array in self.probabilities.items()}
        return Kept(self.activation, views, None if self.entropy is None else view(self.entropy))

    def needs(self, channel: int) -> bool:
        """Whether the probabilities of a channel are asked for, or enter what is."""
        return self.entropy is not None or channel in self.probabilities

    def needs_all(self, channels: int) -> bool:
        """Whether all of so many channels are needed."""
        return all(self.needs(channel) for channel in range(channels))

    def put(self, channel: int, box: tuple[slice, ...], values: torch.Tensor, own: Any = ...) -> None:
        """Keep the restored probabilities of one channel; each voxel comes once.

        Args:
            channel: of the scores.
            box: the voxels that they are of.
            values: as many as the box, or ``own`` in it, has.
            own: mask of those voxels of the box that are meant.
        """
        if channel in self.probabilities:
            self.probabilities[channel][box][own] = values.numpy()
        if self.entropy is not None:
            self.entropy[box][own] += entropy_part(values, self.activation).numpy()


def entropy_part(probability: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What one channel adds to the entropy in nats: -p ln p, and -(1 - p) ln(1 - p) for a channel of its own.

    Summed over channels, Shannon's entropy (1948, Bell System Technical Journal 27, section 6) of the classes of a
    softmax, or of the independent decisions of a sigmoid.
    """
    probability = probability.clamp(max=1.0)  # interpolation may leave it by rounding
    part = torch.special.entr(probability)
    return part if activation == "softmax" else part + torch.special.entr(1 - probability)
