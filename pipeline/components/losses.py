"""Losses of logits, in float32, with one activation, one-hot and reduction for all of them.

Shapes: logits (B, C, X, Y, Z). With ``softmax`` the truth is (B, 1, X, Y, Z) with whole label values below C;
with ``sigmoid`` it is (B, C, X, Y, Z) with 0 or 1. Every loss is a scalar, mean over samples (or the pooled
batch) and over classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import DataError, UsageError


class SegmentationLoss(nn.Module):
    """Base: activation, one-hot, float32, checks; a loss defines `compare`.

    Args:
        activation: ``softmax`` (classes exclude each other) or ``sigmoid`` (one yes or no per channel).
        include_background: whether channel 0 counts; only with ``softmax`` may it be left out.
        batch: pool the voxels of the batch before dividing, instead of a value per sample.

    Raises:
        UsageError: an activation that is not known, or sigmoid without background.
    """

    def __init__(
        self, activation: str = "softmax", include_background: bool = False, batch: bool = False
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise UsageError("unknown activation of a loss", found=activation, expected="softmax or sigmoid")
        self.activation = activation
        self.include_background = include_background or activation == "sigmoid"
        self.batch = batch
        self._checked = False

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss, a scalar.

        Raises:
            UsageError: shapes do not fit each other or the activation.
            DataError: a truth value that is no class.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()  # half precision sums overflow at 65504 voxels
            truth = torch.as_tensor(truth)
            if not self._checked:  # once: the data was checked case by case, this guards the pairing
                self._check(logits, truth)
                self._checked = True
            if self.activation == "softmax":
                target = functional.one_hot(truth[:, 0].long(), logits.shape[1]).movedim(-1, 1).float()
            else:
                target = truth.float()
            return self.compare(logits, target)

    def compare(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of float32 logits against a float32 target of the same shape."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Activated logits of the channels that count."""
        return self.counted(logits.softmax(1) if self.activation == "softmax" else logits.sigmoid())

    def counted(self, channels: Tensor) -> Tensor:
        """The channels that count."""
        return channels if self.include_background else channels[:, 1:]

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy per voxel: softmax over all classes, or binary per channel."""
        if self.activation == "softmax":
            return -(target * logits.log_softmax(1)).sum(1).mean()
        return functional.binary_cross_entropy_with_logits(logits, target)

    def _check(self, logits: Tensor, truth: Tensor) -> None:
        channels = logits.shape[1]
        expected = (logits.shape[0], 1 if self.activation == "softmax" else channels, *logits.shape[2:])
        if tuple(truth.shape) != expected:
            raise UsageError("the truth does not fit the logits", found=tuple(truth.shape), expected=expected)
        if self.activation == "softmax" and channels < 2:
            raise UsageError(
                "softmax over one channel is always 1",
                hint="use sigmoid, or one channel per label and background",
            )
        limit = channels if self.activation == "softmax" else 2
        values = torch.unique(truth)
        if not bool(torch.isin(values, torch.arange(limit, dtype=values.dtype, device=values.device)).all()):
            raise DataError(
                "truth values that are no class", found=values[:12].tolist(), expected=f"0 to {limit - 1}"
            )


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
        smooth: see `tversky_index`.
        activation, include_background, batch: see `SegmentationLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
    ) -> None:
        super().__init__(activation, include_background, batch)
        if alpha < 0 or beta < 0 or alpha + beta == 0 or smooth <= 0:
            raise UsageError(
                "Tversky weights", found=f"alpha {alpha}, beta {beta}, smooth {smooth}", expected="above 0"
            )
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def index(self, logits: Tensor, target: Tensor) -> Tensor:
        """Tversky index by sample (or batch) and class."""
        return tversky_index(
            self.probabilities(logits), self.counted(target), self.alpha, self.beta, self.batch, self.smooth
        )

    def compare(self, logits: Tensor, target: Tensor) -> Tensor:
        """1 - index, mean over samples and classes; 0 to 1."""
        return (1 - self.index(logits, target)).mean()


class FocalTverskyLoss(TverskyLoss):
    """(1 - Tversky index) ** gamma per class (Abraham & Khan 2019, equation 4 with gamma here for their 1/gamma).

    gamma below 1 keeps gradient on classes that are nearly right; above 1 it dwells on the wrong ones. The base is
    clamped at 1e-6, because the derivative of x ** gamma is infinite at 0 for gamma below 1.

    Args:
        gamma: the exponent; 0.75 is the paper's 1 / (4/3).
        alpha, beta, smooth, activation, include_background, batch: see `TverskyLoss`.
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
    ) -> None:
        super().__init__(alpha, beta, smooth, activation, include_background, batch)
        if gamma <= 0:
            raise UsageError("the exponent gamma of Focal-Tversky", found=gamma, expected="above 0")
        self.gamma = gamma

    def compare(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean of (1 - index) ** gamma over samples and classes; 0 to 1."""
        return (1 - self.index(logits, target)).clamp_min(1e-6).pow(self.gamma).mean()


class DiceCELoss(TverskyLoss):
    """alpha * cross entropy + (1 - alpha) * Dice loss, times 2, so that alpha 0.5 is their plain sum.

    With ``sigmoid`` the cross entropy is binary per channel, so it also serves labels that overlap.

    Args:
        alpha: share of the cross entropy, 0 to 1.
        smooth, activation, include_background, batch: see `TverskyLoss`; the background is left out of Dice alone.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
    ) -> None:
        super().__init__(0.5, 0.5, smooth, activation, include_background, batch)
        if not 0 <= alpha <= 1:
            raise UsageError("share alpha of the cross entropy", found=alpha, expected="0 to 1")
        self.share = alpha

    def compare(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted sum, a scalar from 0."""
        dice = super().compare(logits, target)
        return 2 * (self.share * self.cross_entropy(logits, target) + (1 - self.share) * dice)


class DeepSupervision(nn.Module):
    """Any loss over one output or over several heads, finest first.

    Head i weighs 2 ** -i, weights sum to 1 (Lee et al. 2015; Isensee et al. 2021 use the same halving). A plain
    tensor passes straight through. Coarser heads are compared with the truth sampled to their grid (nearest).

    Args:
        loss: takes logits and truth.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], truth: Tensor) -> Tensor:
        """The weighted loss, a scalar."""
        if isinstance(outputs, Tensor):
            return self.loss(outputs, truth)
        weights = [2.0**-index for index in range(len(outputs))]
        losses = [self.loss(head, _sampled(truth, head)) for head in outputs]
        return sum((w * loss for w, loss in zip(weights, losses, strict=True)), losses[0] * 0) / sum(weights)


def _sampled(truth: Tensor, head: Tensor) -> Tensor:
    if truth.shape[2:] == head.shape[2:]:
        return truth
    return functional.interpolate(torch.as_tensor(truth).float(), size=head.shape[2:], mode="nearest-exact")
