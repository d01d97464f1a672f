"""What must fit before a loss says anything: the network's output, the truth, and the loss.

What all losses share: activation, one-hot, ignored voxels, float32, reduction, checks before the first step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.errors import DataError, UsageError

ACTIVATED = ("Sigmoid", "Softmax", "LogSoftmax")
PASSING = ("ToCopy", "Alias", "Clone", "Select", "Slice", "View", "UnsafeView", "Unsqueeze", "Squeeze", "Permute")


def check_output(logits: Tensor, activation: str, class_weights: Sequence[float] | None) -> None:
    """Refuse an output that a loss of logits has no meaning for.

    Args:
        logits: (B, C, X, Y, Z), as the network gave them.
        activation: of the loss.
        class_weights: of the loss.

    Raises:
        UsageError: no spatial axis, one channel under softmax, weights of another count, or an output that
            went through a softmax or sigmoid already.
    """
    if logits.ndim < 3:
        raise UsageError("the network's output has no voxels", found=tuple(logits.shape), expected="(B, C, X, Y, Z)")
    channels = logits.shape[1]
    if activation == "softmax" and channels < 2:
        raise UsageError(
            "softmax over one channel is always 1", hint="use sigmoid, or one channel per label and background"
        )
    if class_weights is not None and len(class_weights) != channels:
        raise UsageError("class_weights must be one per channel", found=len(class_weights), expected=channels)
    if _ends_in_activation(logits) or (activation == "softmax" and _sums_to_one(logits)):
        raise UsageError(
            "the network's output is activated already, the loss takes logits",
            hint="take the softmax or sigmoid out of the network: the loss applies it",
        )


def check_truth(truth: Tensor, logits: Tensor, activation: str, ignore_index: int | None) -> None:
    """Refuse a truth that does not fit the logits.

    Raises:
        UsageError: its shape.
        DataError: a value that is neither a class nor ignored.
    """
    channels = logits.shape[1]
    expected = (logits.shape[0], 1 if activation == "softmax" else channels, *logits.shape[2:])
    if tuple(truth.shape) != expected:
        raise UsageError("the truth does not fit the logits", found=tuple(truth.shape), expected=expected)
    limit = channels if activation == "softmax" else 2
    values = torch.unique(truth).double()
    known = set(range(limit)) | (set() if ignore_index is None else {ignore_index})
    if not bool(torch.isin(values, values.new_tensor(sorted(known))).all()):
        raise DataError(
            "truth values that are no class",
            found=values[:12].tolist(),
            expected=f"0 to {limit - 1}" + ("" if ignore_index is None else f", or {ignore_index} (ignored)"),
        )


def _ends_in_activation(output: Tensor) -> bool:
    """Whether the graph of the output ends in an activation; casts and views are looked through."""
    node = output.grad_fn
    while node is not None:
        name = node.name().removesuffix("0").removesuffix("Backward")
        if name in ACTIVATED:
            return True
        if name not in PASSING:
            return False
        node = node.next_functions[0][0]
    return False


def _sums_to_one(output: Tensor) -> bool:
    values = output.detach().float()
    return bool((values >= 0).all()) and bool((values.sum(1) - 1).abs().max() < 1e-2)


class SegmentationLoss(nn.Module, ABC):
    """Base of a loss of logits (B, C, X, Y, Z), computed in float32 (float64 stays); a loss defines `compare`.

    With ``softmax`` the truth is (B, 1, X, Y, Z) with whole label values below C; with ``sigmoid`` it is
    (B, C, X, Y, Z) with 0 or 1. Two dimensions (B, C, X, Y) work the same. Every loss is a scalar.

    Args:
        activation: ``softmax`` (classes exclude each other) or ``sigmoid`` (one yes or no per channel).
        include_background: whether channel 0 counts; only with ``softmax`` may it be left out.
        batch: pool the voxels of the batch before dividing, instead of a value per sample.
        class_weights: one weight per channel, background too (though it may not count); from 0.
        ignore_index: truth value of the voxels that do not count, whatever is predicted there.

    Raises:
        UsageError: an activation that is not known, or weights that cannot be used.
    """

    def __init__(
        self,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise UsageError("unknown activation of a loss", found=activation, expected="softmax or sigmoid")
        self.activation = activation
        self.include_background = include_background or activation == "sigmoid"
        self.batch = batch
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        counted = self.class_weights and self.class_weights[0 if self.include_background else 1 :]
        if self.class_weights is not None and (min(self.class_weights, default=0) < 0 or not any(counted or [])):
            raise UsageError(
                "class_weights of a loss",
                found=self.class_weights,
                expected="one per channel, from 0, and above 0 for a channel that counts",
            )
        self.ignore_index = ignore_index
        self._checked = False

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss, a scalar.

        Raises:
            UsageError: shapes do not fit each other or the activation, or the network's output is activated already.
            DataError: a truth value that is no class.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.as_subclass(Tensor)
            truth = torch.as_tensor(truth).as_subclass(Tensor)
            if not self._checked:  # once: the data was checked case by case, this guards the pairing
                check_output(logits, self.activation, self.class_weights)
                check_truth(truth, logits, self.activation, self.ignore_index)
                self._checked = True
            if logits.dtype != torch.float64:
                logits = logits.float()  # half precision sums overflow at 65504 voxels
            target, mask = self._encode(truth, logits)
            return self.compare(logits, target, mask)

    @abstractmethod
    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of logits against a 0 or 1 target of the same shape and dtype.

        Args:
            logits: (B, C, X, Y, Z).
            target: same shape, 0 where ignored.
            mask: 1 where a voxel counts, (B, 1 or C, X, Y, Z); None where all do.
        """

    def probabilities(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Activated logits of the channels that count, 0 where ignored."""
        activated = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
        return self.counted(activated if mask is None else activated * mask)

    def counted(self, channels: Tensor) -> Tensor:
        """The channels that count."""
        return channels if self.include_background else channels[:, 1:]

    def sums(self, channels: Tensor) -> Tensor:
        """Sum over voxels, by sample and channel (B, C), or pooled (1, C)."""
        sums = channels.flatten(2).sum(2)
        return sums.sum(0, keepdim=True) if self.batch else sums

    def class_mean(self, values: Tensor) -> Tensor:
        """Mean of (B or 1, counted channels), weighed by class."""
        if self.class_weights is None:
            return values.mean()
        weights = self.counted(values.new_tensor([self.class_weights]))
        return (values * weights).sum(1).mean() / weights.sum()

    def voxel_mean(self, values: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the voxels that count of (B, 1 or C, X, Y, Z), weighed by the class of each voxel or channel."""
        weights = mask
        if self.class_weights is not None:
            by_class = values.new_tensor(self.class_weights).view(1, -1, *[1] * (values.ndim - 2))
            by_class = (target * by_class).sum(1, keepdim=True) if self.activation == "softmax" else by_class
            weights = by_class if mask is None else by_class * mask
        if weights is None:
            return values.mean()
        weights = weights.expand_as(values)
        return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)

    def cross_entropy(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Cross entropy: softmax over all classes, or binary per channel. A scalar."""
        if self.activation == "softmax":
            return self.voxel_mean(-(target * logits.log_softmax(1)).sum(1, keepdim=True), target, mask)
        if mask is None and self.class_weights is None:
            return functional.binary_cross_entropy_with_logits(logits, target)
        values = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return self.voxel_mean(values, target, mask)

    def _encode(self, truth: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Target of the logits' shape, and the mask of what counts."""
        mask: Tensor | None = None
        if self.activation == "sigmoid":
            target = truth.to(logits.dtype)
            if self.ignore_index is not None:
                mask = (target != self.ignore_index).to(logits.dtype)
                target = target * mask
            return target, mask
        labels = truth.long()
        if self.ignore_index is not None:
            mask = (labels != self.ignore_index).to(logits.dtype)
            labels = labels.where(labels != self.ignore_index, 0)
        target = functional.one_hot(labels[:, 0], logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        return (target if mask is None else target * mask), mask
