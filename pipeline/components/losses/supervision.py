"""Any loss over several heads of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class DeepSupervision(nn.Module):
    """Any loss over one output or over several heads, finest first.

    Head i weighs 2 ** -i, weights sum to 1 (Lee et al. 2015; Isensee et al. 2021 use the same halving). A plain
    tensor passes straight through; one with an axis more than the truth, (B, heads, C, X, Y, Z), is a stack of
    heads. Coarser heads are compared with the truth sampled to their grid (nearest).

    Args:
        loss: takes logits and truth.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], truth: Tensor) -> Tensor:
        """The weighted loss, a scalar."""
        if isinstance(outputs, Tensor):
            if outputs.ndim != truth.ndim + 1:
                return self.loss(outputs, truth)
            outputs = outputs.unbind(1)
        weights = [2.0**-index for index in range(len(outputs))]
        losses = [self.loss(head, _sampled(truth, head)) for head in outputs]
        return sum((w * loss for w, loss in zip(weights, losses, strict=True)), losses[0] * 0) / sum(weights)


def _sampled(truth: Tensor, head: Tensor) -> Tensor:
    if truth.shape[2:] == head.shape[2:]:
        return truth
    return functional.interpolate(torch.as_tensor(truth).float(), size=head.shape[2:], mode="nearest-exact")
