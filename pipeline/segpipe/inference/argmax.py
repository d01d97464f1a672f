"""Which class of a voxel is the likeliest, found class after class: fast, and without an index of 8 bytes a voxel."""

from __future__ import annotations

import torch

from segpipe.inference.sliding_window import Activation

THRESHOLD = 0.5  # from which on a voxel belongs to a region


class RunningArgmax:
    """The argmax of the classes so far.

    Args:
        activation: ``softmax``, or ``sigmoid`` for regions that overlap.
        dtype: of the labels; a byte holds those that a label map has.

    Attributes:
        labels: of the likeliest class, the first of those alike; under a sigmoid a bit for each that reaches 0.5.
        score: of that class; empty under a sigmoid.
    """

    def __init__(self, activation: Activation, dtype: torch.dtype = torch.uint8) -> None:
        self.activation, self.dtype = activation, dtype
        self.labels = self.score = torch.empty(0)

    def add(self, label: int, values: torch.Tensor) -> None:
        """Compare the next class."""
        if self.activation == "sigmoid":
            region = (values >= THRESHOLD).to(self.dtype) << label
            self.labels = self.labels.bitwise_or_(region) if label else region
        elif label == 0:
            self.score, self.labels = values.clone(), torch.zeros(values.shape, dtype=self.dtype)
        else:
            higher = (values > self.score).to(self.dtype)
            torch.maximum(
                self.labels, higher.mul_(label), out=self.labels
            )  # labels rise; a masked fill takes 4 times as long
            torch.maximum(self.score, values, out=self.score)


def likeliest(scores: torch.Tensor, activation: Activation) -> RunningArgmax:
    """Return labels and scores of scores (K, ...), in a type that holds two labels more than there are."""
    least = 1 << len(scores) if activation == "sigmoid" else len(scores) + 1
    best = RunningArgmax(activation, torch.uint8 if least < 256 else torch.int16)
    for label, values in enumerate(scores):
        best.add(label, values)
    return best
