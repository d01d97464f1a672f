"""Losses of overlap: Dice and generalised Dice. Both lie between 0 and 1.

Losses that weigh false positives against missed voxels: Tversky, Focal-Tversky, Jaccard. All lie in 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segpipe.components.losses.base import SegmentationLoss
from segpipe.errors import UsageError


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
                "smoothing of Dice", found=f"{above} above, {smooth} below", expected="above 0, and not more above"
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
                "generalised Dice",
                found=f"weight {weight}, smooth {smooth}",
                expected="square, simple or uniform, and smooth above 0",
            )
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


def tversky_index(
    probabilities: Tensor, target: Tensor, alpha: float, beta: float, batch: bool, smooth: float
) -> Tensor:
    """(TP + s) / (TP + alpha FP + beta FN + s), Salehi et al. 2017, equation 4, with smoothing.

    Args:
        probabilities: (B, C, X, Y, Z) in 0 to 1.
        target: same shape, 0 or 1.
        alpha: weight of false positives.
        beta: weight of false negatives.
        batch: pool over the batch; the result is (1, C) instead of (B, C).
        smooth: added above and below; makes "absent and not predicted" 1.
    """
    axes = [0, *range(2, probabilities.ndim)] if batch else list(range(2, probabilities.ndim))
    both = (probabilities * target).sum(axes, keepdim=True)
    false_positive = (probabilities * (1 - target)).sum(axes, keepdim=True)
    false_negative = ((1 - probabilities) * target).sum(axes, keepdim=True)
    index = (both + smooth) / (both + alpha * false_positive + beta * false_negative + smooth)
    return index.flatten(1) if batch else index.flatten(2).squeeze(-1)


class TverskyLoss(SegmentationLoss):
    """1 - Tversky index (Salehi et al. 2017). alpha = beta = 0.5 is Dice, alpha = beta = 1 is Jaccard.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives; above alpha it favours sensitivity.
        smooth: voxels added above and below, see `tversky_index`.
        activation, include_background, batch, class_weights, ignore_index: see `SegmentationLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(activation, include_background, batch, class_weights, ignore_index)
        if alpha < 0 or beta < 0 or alpha + beta == 0 or smooth <= 0:
            raise UsageError(
                "Tversky weights", found=f"alpha {alpha}, beta {beta}, smooth {smooth}", expected="above 0"
            )
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def index(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Tversky index by sample (or batch) and class."""
        scores, target = self.probabilities(logits, mask), self.counted(target)
        return tversky_index(scores, target, self.alpha, self.beta, self.batch, self.smooth)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """1 - index, mean over samples and classes; 0 to 1."""
        return self.class_mean(1 - self.index(logits, target, mask))


class FocalTverskyLoss(TverskyLoss):
    """(1 - Tversky index) ** gamma per class (Abraham & Khan 2019, equation 4 with gamma here for their 1/gamma).

    gamma below 1 keeps gradient on classes that are nearly right; above 1 it dwells on the wrong ones. The base is
    clamped at 1e-6, because the derivative of x ** gamma is infinite at 0 for gamma below 1.

    Args:
        gamma: the exponent; 0.75 is the paper's 1 / (4/3).
        alpha, beta, smooth, activation, include_background, batch, class_weights, ignore_index: see `TverskyLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(alpha, beta, smooth, activation, include_background, batch, class_weights, ignore_index)
        if gamma <= 0:
            raise UsageError("the exponent gamma of Focal-Tversky", found=gamma, expected="above 0")
        self.gamma = gamma

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean of (1 - index) ** gamma over samples and classes; 0 to 1."""
        return self.class_mean((1 - self.index(logits, target, mask)).clamp_min(1e-6).pow(self.gamma))


class JaccardLoss(TverskyLoss):
    """1 - (I + s) / (U + s), the soft Jaccard or soft IoU (Rahman & Wang 2016): Tversky with both weights 1.

    Args:
        smooth: voxels added above and below.
        activation, include_background, batch, class_weights, ignore_index: see `SegmentationLoss`.
    """

    def __init__(
        self,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(1.0, 1.0, smooth, activation, include_background, batch, class_weights, ignore_index)
