"""From scores to labels: activation, and which class wins."""

from __future__ import annotations

from typing import Literal

import torch

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
