"""What is kept of the scores beside a label map: probabilities of classes, and how undecided a voxel is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.inference.winners import Activation

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Beside:
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
