"""What must fit before a loss says anything: the network's output, the truth, and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import DataError, UsageError

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
)


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
        raise UsageError(
            "the network's output has no voxels", found=tuple(logits.shape), expected="(B, C, X, Y, Z)"
        )
    channels = logits.shape[1]
    if activation == "softmax" and channels < 2:
        raise UsageError(
            "softmax over one channel is always 1",
            hint="use sigmoid, or one channel per label and background",
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
            "truth values that are no class", found=values[:12].tolist(),
            expected=f"0 to {limit - 1}" + ("" if ignore_index is None else f", or {ignore_index} (ignored)"),
        )  # fmt: skip


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
