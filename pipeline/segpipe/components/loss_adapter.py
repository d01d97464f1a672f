"""The adapter that every loss stands behind, MONAI's and ours: logits in, one number out, by one set of options.

Activation, one-hot, ignored voxels, float32, class weights and means are applied here and nowhere else, and the
network's output and the truth are checked before the first step.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segpipe.components.processes import mean_of_all, total
from segpipe.components.truth_coding import TruthCoding
from segpipe.errors import DataError, UsageError

ACTIVATED = ("Sigmoid", "Softmax", "LogSoftmax")
PASSING = (
    "ToCopy",
    "Alias",
    "Clone",
    "Select",
    "Slice",
    "View",
    "UnsafeView",
    "Unsqueeze",
    "Squeeze",
    "Permute",
    "_DDPSink",
)


@dataclass(frozen=True)
class LossOptions:
    """Options that the losses share; each loss takes those that have a meaning for it.

    Attributes:
        activation: ``softmax`` (classes exclude each other) or ``sigmoid`` (one yes or no per channel).
        include_background: whether channel 0 counts; only with ``softmax`` may it be left out.
        batch: pool the voxels of the batch before dividing, instead of a value per sample.
        class_weights: one weight per channel, background too (though it may not count); from 0.
        ignore_index: truth value of the voxels that do not count, whatever is predicted there.
        smooth: added above and below a fraction of sums over voxels, in voxels.
    """

    activation: str = "softmax"
    include_background: bool = False
    batch: bool = False
    class_weights: Sequence[float] | None = None
    ignore_index: int | None = None
    smooth: float = 1e-5

    def check(self) -> None:
        """Refuse what no loss can be computed with.

        Raises:
            UsageError: an activation that is not known, or weights or smoothing that cannot be used.
        """
        if self.activation not in ("softmax", "sigmoid"):
            raise UsageError("unknown activation of a loss", found=self.activation, expected="softmax or sigmoid")
        if self.smooth <= 0:
            raise UsageError("smoothing of a loss", found=self.smooth, expected="above 0")
        weights = self.class_weights
        if weights is not None and (min(weights, default=0) < 0 or not any(weights[self.first_channel :])):
            raise UsageError(
                "class_weights of a loss",
                found=weights,
                expected="one per channel, from 0, and above 0 for a channel that counts",
            )

    @property
    def first_channel(self) -> int:
        """Return the first channel that counts: 1 where the background is left out."""
        return 0 if self.include_background or self.activation == "sigmoid" else 1


class _Signature:
    """The signature of a loss with the shared options spelled out, by which configs are checked."""

    def __get__(self, instance: object, loss: type[SegmentationLoss]) -> inspect.Signature:
        own = [part for part in inspect.signature(loss.__init__).parameters.values() if part.name != "options"][1:]
        shared = [
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(loss.defaults, option.name))
            for option in fields(LossOptions)
            if option.name not in loss.without
        ]
        return inspect.Signature([*own, *shared])


class SegmentationLoss(nn.Module, ABC):
    """Base of a loss of logits (B, C, X, Y, Z), computed in float32 (float64 stays); a loss defines `compare`.

    With ``softmax`` the truth is (B, 1, X, Y, Z) with whole label values below C; with ``sigmoid`` it is
    (B, C, X, Y, Z) with 0 or 1. Two dimensions (B, C, X, Y) work the same. Every loss is a scalar, and of a batch that
    several processes share that of all of it (`segpipe.components.processes`).

    Args:
        options: as of `LossOptions`.

    Raises:
        TypeError: an option that has no meaning for this loss.
        UsageError: one that cannot be used.
    """

    defaults: ClassVar[LossOptions] = LossOptions()
    without: ClassVar[tuple[str, ...]] = ()  # options that have no meaning for the loss
    __signature__: ClassVar[_Signature] = _Signature()

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name in self.without:
                raise TypeError(f"{name} has no meaning for {type(self).__name__}")
        self.options = replace(self.defaults, **options)
        self.options.check()
        self._coding: TruthCoding | None = None
        self._checked = False

    def read_truth(self, coding: TruthCoding) -> None:
        """Take the truth as label maps (B, 1, X, Y, Z) whose values mean what a coding says.

        Raises:
            UsageError: the loss has another activation than regions need, or leaves out another value.
        """
        if coding.is_plain:
            return
        if coding.regions and self.options.activation != "sigmoid":
            raise UsageError("regions need a loss of sigmoids", found=self.options.activation, expected="sigmoid")
        if coding.annotated_sets and not coding.regions and self.options.activation != "softmax":
            raise UsageError("labels that were not looked for are joined with the background, which sigmoid has not")
        stated = self.options.ignore_index
        if coding.ignored is not None and stated not in (None, coding.ignored):
            raise UsageError("two values are to be ignored", found=f"{stated}, and {coding.ignored} by the task")
        if coding.ignored is not None:
            self.options = replace(self.options, ignore_index=coding.ignored)
        self._coding = coding

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: shapes do not fit each other or the activation, or the network's output is activated already.
            DataError: a truth value that is no class.
        """
        trains = logits.requires_grad and torch.is_grad_enabled()  # else it is a case of this process alone
        with torch.autocast(logits.device.type, enabled=False), torch.set_grad_enabled(trains):
            logits = logits.as_subclass(Tensor)
            truth = torch.as_tensor(truth).as_subclass(Tensor)
            first = not self._checked  # the data was checked case by case, this guards the pairing
            if first:
                check_output(logits, self.options)
            if logits.dtype != torch.float64:
                logits = logits.float()  # half precision sums overflow at 65504 voxels
            if self._coding is not None:
                logits, truth = self._coding.prepare(logits, truth)
            check_shape(truth, logits, self.options)
            if first:
                check_truth(truth, logits, self.options)
                self._checked = True
            return self.compare(logits, *self._encode(truth, logits))

    @abstractmethod
    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of logits against a 0 or 1 target of the same shape and dtype.

        Args:
            logits: (B, C, X, Y, Z).
            target: same shape, 0 where ignored.
            mask: 1 where a voxel counts, (B, 1 or C, X, Y, Z); None where all do.
        """

    def probabilities(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Activate the logits of the channels that count; 0 where ignored."""
        activated = logits.softmax(1) if self.options.activation == "softmax" else logits.sigmoid()
        return self.counted(activated if mask is None else activated * mask)

    def counted(self, channels: Tensor) -> Tensor:
        """Return the channels that count."""
        return channels[:, self.options.first_channel :]

    def class_mean(self, values: Tensor) -> Tensor:
        """Return the mean of (B or 1, counted channels), weighed by class."""
        mean = torch.mean if self.options.batch else mean_of_all  # a pooled batch is that of all processes
        if self.options.class_weights is None:
            return mean(values)
        weights = self.counted(values.new_tensor([self.options.class_weights]))
        return mean((values * weights).sum(1)) / weights.sum()

    def voxel_mean(self, values: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean of (B, 1 or C, X, Y, Z) over what counts, weighed by the class of each voxel or channel."""
        weights = mask
        if self.options.class_weights is not None:
            by_class = values.new_tensor(self.options.class_weights).view(1, -1, *[1] * (values.ndim - 2))
            if self.options.activation == "softmax":
                by_class = (target * by_class).sum(1, keepdim=True)
            weights = by_class if mask is None else by_class * mask
        if weights is None:
            return mean_of_all(values)
        weights = weights.expand_as(values)
        above, below = total(torch.stack([(values * weights).sum(), weights.sum()]))
        return above / below.clamp_min(torch.finfo(values.dtype).tiny)

    def _encode(self, truth: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the target of the logits' shape, and the mask of what counts."""
        ignored = self.options.ignore_index
        mask = None if ignored is None else (truth != ignored).to(logits.dtype)
        if self.options.activation == "sigmoid":
            target = truth.to(logits.dtype)
        else:
            labels = truth.long() if ignored is None else truth.long().where(truth != ignored, 0)
            target = torch.zeros_like(logits, memory_format=torch.contiguous_format).scatter_(1, labels, 1)
        return (target if mask is None else target * mask), mask


def check_output(logits: Tensor, options: LossOptions) -> None:
    """Refuse an output (B, C, X, Y, Z) that a loss of logits has no meaning for.

    Raises:
        UsageError: no spatial axis, one channel under softmax, weights of another count, or an output that
            went through a softmax or sigmoid already.
    """
    if logits.ndim < 3:
        raise UsageError("the network's output has no voxels", found=tuple(logits.shape), expected="(B, C, X, Y, Z)")
    channels, exclusive = logits.shape[1], options.activation == "softmax"
    if exclusive and channels < 2:
        raise UsageError(
            "softmax over one channel is always 1", hint="use sigmoid, or one channel per label and background"
        )
    if options.class_weights is not None and len(options.class_weights) != channels:
        raise UsageError("class_weights must be one per channel", found=len(options.class_weights), expected=channels)
    if _ends_in_activation(logits) or (exclusive and _sums_to_one(logits)):
        raise UsageError(
            "the network's output is activated already, the loss takes logits",
            hint="take the softmax or sigmoid out of the network: the loss applies it",
        )


def check_shape(truth: Tensor, logits: Tensor, options: LossOptions) -> None:
    """Refuse a truth of another shape than the logits (B, C, X, Y, Z) ask for.

    Raises:
        UsageError: it has another.
    """
    expected = (logits.shape[0], 1 if options.activation == "softmax" else logits.shape[1], *logits.shape[2:])
    if tuple(truth.shape) != expected:
        raise UsageError("the truth does not fit the logits", found=tuple(truth.shape), expected=expected)


def check_truth(truth: Tensor, logits: Tensor, options: LossOptions) -> None:
    """Refuse a truth whose values do not fit the logits.

    Raises:
        DataError: a value that is neither a class nor ignored.
    """
    channels, exclusive = logits.shape[1], options.activation == "softmax"
    limit, ignored = channels if exclusive else 2, options.ignore_index
    values = torch.unique(truth).double()
    known = set(range(limit)) | (set() if ignored is None else {ignored})
    if not bool(torch.isin(values, values.new_tensor(sorted(known))).all()):
        raise DataError(
            "truth values that are no class",
            found=values[:12].tolist(),
            expected=f"0 to {limit - 1}" + ("" if ignored is None else f", or {ignored} (ignored)"),
        )


def _ends_in_activation(output: Tensor) -> bool:
    """Return whether the graph of the output ends in an activation; casts and views are looked through."""
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
