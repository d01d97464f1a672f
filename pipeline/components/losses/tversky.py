"""Losses that weigh false positives against missed voxels: Tversky, Focal-Tversky, Jaccard. All lie in 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.components.losses.base import SegmentationLoss
from pipeline.errors import UsageError


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
        super().__init__(
            alpha, beta, smooth, activation, include_background, batch, class_weights, ignore_index
        )
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
