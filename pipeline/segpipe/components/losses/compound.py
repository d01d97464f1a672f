"""Losses with an entropy per voxel: Focal, and its like beside Dice (DiceCE, DiceFocal, Combo).

A loss that pulls far errors in, after an overlap loss has found the organ.

Any loss over several heads of a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import HausdorffDTLoss
from torch import Tensor, nn
from torch.nn import functional

from segpipe.components.losses.base import SegmentationLoss
from segpipe.components.losses.regions import TverskyLoss
from segpipe.errors import UsageError


def focal_terms(logits: Tensor, target: Tensor, activation: str, gamma: float, alpha: float | None) -> Tensor:
    """-(1 - p_t) ** gamma log(p_t) per voxel, Lin et al. 2017, equations 4 and 5.

    1 - p_t is taken from the logits of the other classes, so that neither it nor its gradient is lost at p_t = 1.

    Args:
        logits: (B, C, X, Y, Z).
        target: same shape, 0 or 1.
        activation: ``softmax`` gives (B, 1, X, Y, Z), ``sigmoid`` (B, C, X, Y, Z).
        gamma: from 0, which is cross entropy.
        alpha: weight of foreground against 1 - alpha of background (softmax: channel 0; sigmoid: a "no").
    """
    if activation == "softmax":
        log_right = (target * logits.log_softmax(1)).sum(1, keepdim=True)
        others = logits.masked_fill(target > 0, -torch.inf)
        log_wrong = others.logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
        share = target[:, 1:].sum(1, keepdim=True)
    else:
        towards = logits * (2 * target - 1)
        log_right, log_wrong = functional.logsigmoid(towards), functional.logsigmoid(-towards)
        share = target
    terms = -log_right if gamma == 0 else -(gamma * log_wrong).exp() * log_right
    return terms if alpha is None else terms * (alpha * share + (1 - alpha) * (1 - share))


def _check_focal(gamma: float, alpha: float | None) -> None:
    if gamma < 0 or not 0 <= (0.5 if alpha is None else alpha) <= 1:
        raise UsageError(
            "Focal loss", found=f"gamma {gamma}, alpha {alpha}", expected="gamma from 0, alpha 0 to 1 or null"
        )


class FocalLoss(SegmentationLoss):
    """Focal loss (Lin et al. 2017): cross entropy that dwells on hard voxels; mean over voxels, from 0.

    Args:
        gamma: 0 is cross entropy, 2 the paper's.
        alpha: weight of foreground against 1 - alpha of background; null weighs neither.
        activation, class_weights, ignore_index: see `SegmentationLoss`.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = None,
        activation: str = "softmax",
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(activation, True, class_weights=class_weights, ignore_index=ignore_index)
        _check_focal(gamma, alpha)
        self.gamma, self.alpha = gamma, alpha

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the voxels that count (and over channels, with sigmoid)."""
        terms = focal_terms(logits, target, self.activation, self.gamma, self.alpha)
        return self.voxel_mean(terms, target, mask)


class DiceCELoss(TverskyLoss):
    """alpha * cross entropy + (1 - alpha) * Dice loss, times 2, so that alpha 0.5 is their plain sum.

    With ``sigmoid`` the cross entropy is binary per channel (BCE-Dice), so it also serves labels that overlap.

    Args:
        alpha: share of the cross entropy, 0 to 1.
        smooth, activation, include_background, batch, class_weights, ignore_index: see `TverskyLoss`; the
            background is left out of Dice alone.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(0.5, 0.5, smooth, activation, include_background, batch, class_weights, ignore_index)
        if not 0 <= alpha <= 1:
            raise UsageError("share alpha of the cross entropy", found=alpha, expected="0 to 1")
        self.share = alpha

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """The part that is not Dice, a scalar."""
        return self.cross_entropy(logits, target, mask)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum, a scalar from 0."""
        dice = super().compare(logits, target, mask)
        return 2 * (self.share * self.entropy(logits, target, mask) + (1 - self.share) * dice)


class DiceFocalLoss(DiceCELoss):
    """`DiceCELoss` with `FocalLoss` for the cross entropy, under the same activation as Dice.

    Args:
        alpha: share of the focal loss, 0 to 1.
        gamma, focal_alpha: gamma and alpha of `FocalLoss`.
        smooth, activation, include_background, batch, class_weights, ignore_index: see `DiceCELoss`.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        gamma: float = 2.0,
        focal_alpha: float | None = None,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(alpha, smooth, activation, include_background, batch, class_weights, ignore_index)
        _check_focal(gamma, focal_alpha)
        self.gamma, self.focal_alpha = gamma, focal_alpha

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Focal loss, a scalar."""
        terms = focal_terms(logits, target, self.activation, self.gamma, self.focal_alpha)
        return self.voxel_mean(terms, target, mask)


class ComboLoss(DiceCELoss):
    """alpha * weighted cross entropy + (1 - alpha) * Dice loss (Taghanaki et al. 2019, equation 3, plus 1 - alpha).

    The cross entropy is -(beta t log p + (1 - beta)(1 - t) log(1 - p)), mean over voxels and all channels. The
    paper subtracts Dice and so falls below 0; here 1 - Dice is added, so 0 is perfect.

    Args:
        alpha: share of the cross entropy, 0 to 1.
        beta: weight of missed voxels against 1 - beta of false ones, 0 to 1.
        smooth, activation, include_background, batch, ignore_index: see `DiceCELoss`.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(alpha, smooth, activation, include_background, batch, ignore_index=ignore_index)
        if not 0 <= beta <= 1:
            raise UsageError("weight beta of missed voxels", found=beta, expected="0 to 1")
        self.missed = beta

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted binary cross entropy of every channel, a scalar."""
        if self.activation == "softmax":
            rest = [torch.cat([logits[:, :c], logits[:, c + 1 :]], 1) for c in range(logits.shape[1])]
            odds = logits - torch.stack([other.logsumexp(1) for other in rest], 1)  # sigmoid of it is softmax
        else:
            odds = logits
        yes, no = functional.logsigmoid(odds), functional.logsigmoid(-odds)
        return self.voxel_mean(-(self.missed * target * yes + (1 - self.missed) * (1 - target) * no), target, mask)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum, a scalar from 0."""
        return super().compare(logits, target, mask) / 2


class HausdorffLoss(DiceCELoss):
    """`DiceCELoss` (alpha 0.5) + w * Hausdorff loss (Karimi & Salcudean 2019, equation 8, by distance transforms).

    The second part is mean((p - t) ** 2 * (d_p ** power + d_t ** power)), d in voxels from the outlines of p > 0.5
    and of t. On the wide errors of a network that has learnt nothing it is huge and leads nowhere, so its weight is 0
    up to ``start`` and grows evenly to ``weight`` over ``ramp``; `LossSchedule` tells the time from the trainer's
    state, so a resumed run goes on as it would have. Without that handler the weight is full.

    Args:
        weight: of the Hausdorff part, once grown.
        start: last epoch (or step) without it.
        ramp: epochs (or steps) that it grows over; 0 for at once.
        unit: ``epoch`` or ``step``, of start and ramp.
        power: of the distances.
        smooth, activation, include_background, batch: see `DiceCELoss`.
    """

    def __init__(
        self,
        weight: float = 0.1,
        start: int = 0,
        ramp: int = 0,
        unit: str = "epoch",
        power: float = 2.0,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
    ) -> None:
        super().__init__(0.5, smooth, activation, include_background, batch)
        if weight < 0 or start < 0 or ramp < 0 or power <= 0 or unit not in ("epoch", "step"):
            raise UsageError(
                "schedule of the Hausdorff loss",
                found=f"weight {weight}, start {start}, ramp {ramp}, unit {unit}, power {power}",
                expected="numbers from 0, unit epoch or step, power above 0",
            )
        self.weight, self.start, self.ramp, self.unit = weight, start, ramp, unit
        self.share_grown = 1.0
        self.distance = HausdorffDTLoss(alpha=power, include_background=True)

    def set_time(self, epoch: int, step: int) -> None:
        """Set the weight for an epoch and a step, both counted from 1 over the whole run."""
        since = (epoch if self.unit == "epoch" else step) - self.start
        self.share_grown = min(max(since / self.ramp, 0.0), 1.0) if self.ramp else float(since > 0)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Sum of both parts, a scalar from 0."""
        overlap = super().compare(logits, target, mask)
        weight = self.weight * self.share_grown
        if weight == 0:
            return overlap
        return overlap + weight * self.distance(self.probabilities(logits, mask), self.counted(target))


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
