"""Losses by name: overlap as MONAI computes it, and what MONAI has not or computes otherwise, behind one adapter.

Dice and Tversky are MONAI's. Ours are Focal (MONAI's is NaN for a gamma below 1 where a
voxel is certain, and float32 alone), generalised Dice (MONAI smooths beside weights of 1e-8), Focal-Tversky of several
classes, Combo, and the sums with cross entropy (MONAI's mix softmax and sigmoid). Others: `lovasz`, `hausdorff`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses import DiceLoss as MonaiDiceLoss
from monai.losses import TverskyLoss as MonaiTverskyLoss
from torch import Tensor, nn
from torch.nn import functional

from segpipe.components.loss_adapter import LossOptions, SegmentationLoss
from segpipe.components.processes import is_part, mean_of_all, total, whole_batch
from segpipe.components.truth_coding import coding_of
from segpipe.errors import UsageError


class OverlapLoss(SegmentationLoss):
    """Base of a loss by class and sample that MONAI computes from probabilities and a one-hot truth.

    Args:
        monai: class of `monai.losses`.
        arguments: of that class.
        options: as of `LossOptions`.
    """

    def __init__(self, monai: type[nn.Module], arguments: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        smooth = {"smooth_nr": self.options.smooth, "smooth_dr": self.options.smooth}
        self.monai = monai(**{**smooth, **arguments}, batch=self.options.batch, reduction="none")

    def by_class(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss (B, counted channels), or (1, counted channels) of a pooled batch."""
        scores, target = self.probabilities(logits, mask), self.counted(target)
        if self.options.batch and is_part():
            return self.of_sums(
                *total(torch.stack([sums.flatten(2).sum((0, 2)) for sums in self.summed(scores, target)]))
            )
        values: Tensor = self.monai(scores, target)
        return values.reshape(-1, target.shape[1])

    def summed(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is summed over voxels for the overlap, the prediction and the truth."""
        return scores * target, scores, target

    @abstractmethod
    def of_sums(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Return the loss of each counted channel, as MONAI's, from these sums over a batch that processes share."""

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over samples and classes; 0 to 1."""
        return self.class_mean(self.by_class(logits, target, mask))


class DiceLoss(OverlapLoss):
    """1 - (2 sum(pt) + s) / (sum(p) + sum(t) + s), as the tutorials write it.

    Args:
        smooth_above: added above alone, where it differs from ``smooth``; not more than it.
        squared: sum(p * p) in the denominator (Milletari et al. 2016, equation 1).
        options: as of `LossOptions`; ``smooth`` is twice that of Tversky with weights 0.5.
    """

    def __init__(self, smooth_above: float | None = None, squared: bool = False, **options: Any) -> None:
        above = {} if smooth_above is None else {"smooth_nr": smooth_above}
        super().__init__(MonaiDiceLoss, {**above, "squared_pred": squared}, **options)
        self.squared = squared
        if smooth_above is not None and not 0 <= smooth_above <= self.options.smooth:
            raise UsageError(
                "smoothing of Dice",
                found=f"{smooth_above} above, {self.options.smooth} below",
                expected="above 0, and not more above",
            )

    def summed(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the terms of the fraction."""
        both, predicted, true = super().summed(scores, target)
        return (both, predicted**2, true**2) if self.squared else (both, predicted, true)

    def of_sums(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Return the fraction."""
        return 1 - (2 * both + self.monai.smooth_nr) / (predicted + true + self.monai.smooth_dr)


class TverskyLoss(OverlapLoss):
    """1 - (TP + s) / (TP + alpha FP + beta FN + s), the Tversky index (Salehi et al. 2017, equation 4), smoothed.

    alpha = beta = 0.5 is Dice, alpha = beta = 1 is Jaccard.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives; above alpha it favours sensitivity.
        options: as of `LossOptions`; ``smooth`` makes "absent and not predicted" 0.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, **options: Any) -> None:
        super().__init__(MonaiTverskyLoss, {"alpha": alpha, "beta": beta}, **options)
        if alpha < 0 or beta < 0 or alpha + beta == 0:
            raise UsageError("Tversky weights", found=f"alpha {alpha}, beta {beta}", expected="above 0")

    def of_sums(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Return the index."""
        wrong = self.monai.alpha * (predicted - both) + self.monai.beta * (true - both)
        return 1 - (both + self.monai.smooth_nr) / (both + wrong + self.monai.smooth_dr)


class FocalTverskyLoss(TverskyLoss):
    """(1 - Tversky index) ** gamma per class (Abraham & Khan 2019, equation 4 with gamma here for their 1/gamma).

    gamma below 1 keeps gradient on classes that are nearly right; above 1 it dwells on the wrong ones. The base is
    clamped at 1e-6, because the derivative of x ** gamma is infinite at 0 for gamma below 1.

    Args:
        alpha, beta: see `TverskyLoss`.
        gamma: the exponent; 0.75 is the paper's 1 / (4/3).
        options: as of `LossOptions`.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75, **options: Any) -> None:
        super().__init__(alpha, beta, **options)
        if gamma <= 0:
            raise UsageError("the exponent gamma of Focal-Tversky", found=gamma, expected="above 0")
        self.gamma = gamma

    def by_class(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return (1 - index) ** gamma by sample (or batch) and class; 0 to 1."""
        return super().by_class(logits, target, mask).clamp_min(1e-6).pow(self.gamma)


class JaccardLoss(TverskyLoss):
    """1 - (I + s) / (U + s), the soft Jaccard or soft IoU (Rahman & Wang 2016): Tversky with both weights 1.

    Args:
        options: as of `LossOptions`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(1.0, 1.0, **options)


class GeneralisedDiceLoss(SegmentationLoss):
    """1 - (2 sum_c w sum(pt) + s) / (sum_c w (sum(p) + sum(t)) + s), Sudre et al. 2017, with w = 1 / volume ** 2.

    Weights are scaled to 1 for the rarest class present, so that ``smooth`` counts in voxels; an absent class
    weighs as the rarest, also where all are absent, so its false positives always count.

    Args:
        weight: of a class: ``square`` (1 / volume ** 2), ``simple`` (1 / volume) or ``uniform``.
        options: as of `LossOptions`, without ``class_weights``.
    """

    defaults = LossOptions(include_background=True)
    without = ("class_weights",)

    def __init__(self, weight: str = "square", **options: Any) -> None:
        super().__init__(**options)
        if weight not in ("square", "simple", "uniform"):
            raise UsageError("weight of generalised Dice", found=weight, expected="square, simple or uniform")
        self.power = {"square": 2, "simple": 1, "uniform": 0}[weight]

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over samples; 0 to 1."""
        scores, target, smooth = self.probabilities(logits, mask), self.counted(target), self.options.smooth
        volumes = self._sums(target)
        present = volumes > 0
        rarest = volumes.where(present, torch.inf).amin(1, keepdim=True)
        weights = torch.where(present, rarest / volumes, 1.0) ** self.power
        both = (weights * self._sums(scores * target)).sum(1)
        sizes = (weights * (self._sums(scores) + volumes)).sum(1)
        values = 1 - (2 * both + smooth) / (sizes + smooth)
        return values.mean() if self.options.batch else mean_of_all(values)

    def _sums(self, channels: Tensor) -> Tensor:
        """Sum over voxels, by sample and channel (B, C), or pooled (1, C)."""
        sums = channels.flatten(2).sum(2)
        return total(sums.sum(0, keepdim=True)) if self.options.batch else sums


class FocalLoss(SegmentationLoss):
    """-(1 - p_t) ** gamma log(p_t), mean over voxels (Lin et al. 2017, equations 4 and 5); from 0.

    Cross entropy that dwells on hard voxels. 1 - p_t is taken from the logits of the other classes, so that neither it
    nor its gradient is lost at p_t = 1.

    Args:
        gamma: 0 is cross entropy, 2 the paper's.
        alpha: weight of foreground against 1 - alpha of background (softmax: channel 0; sigmoid: a "no"); null
            weighs neither.
        options: ``activation``, ``class_weights`` and ``ignore_index`` of `LossOptions`.
    """

    defaults = LossOptions(include_background=True)
    without = ("include_background", "batch", "smooth")

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if gamma < 0 or not 0 <= (0.5 if alpha is None else alpha) <= 1:
            raise UsageError(
                "Focal loss", found=f"gamma {gamma}, alpha {alpha}", expected="gamma from 0, alpha 0 to 1 or null"
            )
        self.gamma, self.alpha = gamma, alpha

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over the voxels that count (and over channels, with sigmoid)."""
        if self.options.activation == "softmax":
            log_right = (target * logits.log_softmax(1)).sum(1, keepdim=True)
            others = logits.masked_fill(target > 0, -torch.inf)
            log_wrong = others.logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
            foreground = target[:, 1:].sum(1, keepdim=True)
        else:
            towards = logits * (2 * target - 1)
            log_right, log_wrong = functional.logsigmoid(towards), functional.logsigmoid(-towards)
            foreground = target
        terms = -log_right if self.gamma == 0 else -(self.gamma * log_wrong).exp() * log_right
        if self.alpha is not None:
            terms = terms * (self.alpha * foreground + (1 - self.alpha) * (1 - foreground))
        return self.voxel_mean(terms, target, mask)


class DiceCELoss(TverskyLoss):
    """alpha * cross entropy + (1 - alpha) * Dice loss, times 2, so that alpha 0.5 is their plain sum.

    With ``sigmoid`` the cross entropy is binary per channel (BCE-Dice), so it also serves labels that overlap.

    Args:
        alpha: share of the cross entropy, 0 to 1.
        options: as of `LossOptions`; the background is left out of Dice alone.
    """

    defaults = LossOptions(batch=True)

    def __init__(self, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(0.5, 0.5, **options)
        if not 0 <= alpha <= 1:
            raise UsageError("share alpha of the cross entropy", found=alpha, expected="0 to 1")
        self.share = alpha

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weighted sum, a scalar from 0."""
        dice = super().compare(logits, target, mask)
        return 2 * (self.share * self.entropy(logits, target, mask) + (1 - self.share) * dice)

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the part that is not Dice, a scalar: softmax over all classes, or binary per channel."""
        if self.options.activation == "softmax":
            return self.voxel_mean(-(target * logits.log_softmax(1)).sum(1, keepdim=True), target, mask)
        if mask is None and self.options.class_weights is None and not is_part():
            return functional.binary_cross_entropy_with_logits(logits, target)
        values = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return self.voxel_mean(values, target, mask)


class DiceFocalLoss(DiceCELoss):
    """`DiceCELoss` with `FocalLoss` for the cross entropy, under the same activation as Dice.

    Args:
        alpha: share of the focal loss, 0 to 1.
        gamma, focal_alpha: gamma and alpha of `FocalLoss`.
        options: as of `LossOptions`.
    """

    def __init__(
        self, alpha: float = 0.5, gamma: float = 2.0, focal_alpha: float | None = None, **options: Any
    ) -> None:
        super().__init__(alpha, **options)
        shared = {name: getattr(self.options, name) for name in ("activation", "class_weights", "ignore_index")}
        self.focal = FocalLoss(gamma, focal_alpha, **shared)

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the focal loss, a scalar."""
        return self.focal.compare(logits, target, mask)


class ComboLoss(DiceCELoss):
    """alpha * weighted cross entropy + (1 - alpha) * Dice loss (Taghanaki et al. 2019, equation 3, plus 1 - alpha).

    The cross entropy is -(beta t log p + (1 - beta)(1 - t) log(1 - p)), mean over voxels and all channels. The
    paper subtracts Dice and so falls below 0; here 1 - Dice is added, so 0 is perfect.

    Args:
        alpha: share of the cross entropy, 0 to 1.
        beta: weight of missed voxels against 1 - beta of false ones, 0 to 1.
        options: as of `LossOptions`, without ``class_weights``.
    """

    without = ("class_weights",)

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, **options: Any) -> None:
        super().__init__(alpha, **options)
        if not 0 <= beta <= 1:
            raise UsageError("weight beta of missed voxels", found=beta, expected="0 to 1")
        self.missed = beta

    def entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weighted binary cross entropy of every channel, a scalar."""
        odds = logits
        if self.options.activation == "softmax":
            rest = [torch.cat([logits[:, :c], logits[:, c + 1 :]], 1) for c in range(logits.shape[1])]
            odds = logits - torch.stack([others.logsumexp(1) for others in rest], 1)  # sigmoid of it is softmax
        yes, no = functional.logsigmoid(odds), functional.logsigmoid(-odds)
        return self.voxel_mean(-(self.missed * target * yes + (1 - self.missed) * (1 - target) * no), target, mask)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weighted sum, a scalar from 0."""
        return super().compare(logits, target, mask) / 2


class DeepSupervision(nn.Module):
    """Any loss over a single output or over several heads, finest first.

    Head i weighs 2 ** -i, weights sum to 1 (Lee et al. 2015; Isensee et al. 2021 use the same halving). A plain
    tensor passes straight through; one with an axis more than the truth, (B, heads, C, X, Y, Z), is a stack of
    heads. Coarser heads are compared with the truth sampled to their grid (nearest).

    Args:
        loss: takes logits and truth.
        n_labels, ignore_label, regions, annotated_sets: what the label maps say, as of `coding_of`; a loss of ours
            then takes them as they are.

    Raises:
        UsageError: the loss cannot compare what they say.
    """

    def __init__(
        self,
        loss: nn.Module,
        n_labels: int = 0,
        ignore_label: int | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        annotated_sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        coding = coding_of(n_labels, ignore_label, regions, annotated_sets)
        if isinstance(loss, SegmentationLoss):
            loss.read_truth(coding)
        elif not coding.is_plain:
            raise UsageError(
                "the loss does not know of ignored voxels, regions and cases that are annotated in part",
                found=type(loss).__name__,
                expected="a loss of segpipe.components",
            )

    def forward(self, outputs: Tensor | Sequence[Tensor], truth: Tensor) -> Tensor:
        """Return the weighted loss, a scalar."""
        if isinstance(outputs, Tensor):
            if outputs.ndim != truth.ndim + 1:
                return self._of_head(outputs, truth)
            outputs = outputs.unbind(1)
        weights = [2.0**-index for index in range(len(outputs))]
        losses = [self._of_head(head, _sampled(truth, head)) for head in outputs]
        return sum((w * loss for w, loss in zip(weights, losses, strict=True)), losses[0] * 0) / sum(weights)

    def _of_head(self, logits: Tensor, truth: Tensor) -> Tensor:
        if logits.requires_grad and not isinstance(self.loss, SegmentationLoss):  # what it sums over is not known
            logits, truth = whole_batch(logits), whole_batch(torch.as_tensor(truth).as_subclass(Tensor))
        loss: Tensor = self.loss(logits, truth)
        return loss


def _sampled(truth: Tensor, head: Tensor) -> Tensor:
    if truth.shape[2:] == head.shape[2:]:
        return truth
    return functional.interpolate(torch.as_tensor(truth).float(), size=head.shape[2:], mode="nearest-exact")
