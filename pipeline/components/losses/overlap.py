"""Losses of overlap: Dice and generalised Dice. Both lie between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.components.losses.base import SegmentationLoss
from pipeline.errors import UsageError


class DiceLoss(SegmentationLoss):
    """1 - (2 sum(pt) + s) / (sum(p) + sum(t) + s), as the tutorials write it.

    Args:
        smooth: added above and below; it is twice the ``smooth`` of Tversky with weights 0.5.
        smooth_above: added above alone, where it differs; not more than ``smooth``.
        squared: sum(p * p) in the denominator (Milletari et al. 2016, equation 1).
        activation, include_background, batch, class_weights, ignore_index: see `SegmentationLoss`.
    """

    def __init__(
        self,
        smooth: float = 1e-5,
        smooth_above: float | None = None,
        squared: bool = False,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(activation, include_background, batch, class_weights, ignore_index)
        above = smooth if smooth_above is None else smooth_above
        if smooth <= 0 or not 0 <= above <= smooth:
            raise UsageError(
                "smoothing of Dice",
                found=f"{above} above, {smooth} below",
                expected="above 0, and not more above",
            )
        self.smooth, self.smooth_above, self.squared = smooth, above, squared

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over samples and classes; 0 to 1."""
        scores, target = self.probabilities(logits, mask), self.counted(target)
        both = self.sums(scores * target)
        sizes = self.sums(scores * scores if self.squared else scores) + self.sums(target)
        return self.class_mean(1 - (2 * both + self.smooth_above) / (sizes + self.smooth))


class GeneralisedDiceLoss(SegmentationLoss):
    """1 - (2 sum_c w sum(pt) + s) / (sum_c w (sum(p) + sum(t)) + s), Sudre et al. 2017, with w = 1 / volume ** 2.

    Weights are scaled to 1 for the rarest class present, so that ``smooth`` counts in voxels; an absent class
    weighs as the rarest, also where all are absent, so its false positives always count.

    Args:
        weight: of a class: ``square`` (1 / volume ** 2), ``simple`` (1 / volume) or ``uniform``.
        smooth: voxels added above and below.
        activation, include_background, batch, ignore_index: see `SegmentationLoss`.
    """

    def __init__(
        self,
        weight: str = "square",
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = True,
        batch: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(activation, include_background, batch, ignore_index=ignore_index)
        if weight not in ("square", "simple", "uniform") or smooth <= 0:
            raise UsageError(
                "generalised Dice", found=f"weight {weight}, smooth {smooth}",
                expected="square, simple or uniform, and smooth above 0",
            )  # fmt: skip
        self.power = {"square": 2, "simple": 1, "uniform": 0}[weight]
        self.smooth = smooth

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over samples; 0 to 1."""
        scores, target = self.probabilities(logits, mask), self.counted(target)
        volumes = self.sums(target)
        present = volumes > 0
        rarest = volumes.where(present, torch.inf).amin(1, keepdim=True)
        weights = torch.where(present, rarest / volumes, 1.0) ** self.power
        both = (weights * self.sums(scores * target)).sum(1)
        sizes = (weights * (self.sums(scores) + volumes)).sum(1)
        return (1 - (2 * both + self.smooth) / (sizes + self.smooth)).mean()
