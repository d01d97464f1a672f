"""Lovász losses (Berman et al. 2018): the exact convex surrogate of 1 - IoU, over whole volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segpipe.components.loss_adapter import LossOptions, SegmentationLoss
from segpipe.components.processes import mean_of_all, whole_batch
from segpipe.errors import UsageError

INDEX_BITS = 31


class LovaszSoftmax(SegmentationLoss):
    """Lovász-Softmax (Berman et al. 2018, equation 11); 0 to 1, and 1 - IoU where predictions are hard.

    Args:
        classes: ``present`` (those in the truth), ``all``, or a list of channels, which are averaged over.
        options: as of `LossOptions`; without ``batch`` a value per image, and their mean.
    """

    defaults = LossOptions(include_background=True)
    without = ("include_background", "smooth")

    def __init__(self, classes: str | Sequence[int] = "present", **options: Any) -> None:
        super().__init__(**options)
        if classes not in ("present", "all") and (
            isinstance(classes, str) or not classes or min(classes) < 0 or len(set(classes)) != len(classes)
        ):
            raise UsageError("classes of Lovász", found=classes, expected="present, all or a list of channels")
        self.classes = classes

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over classes, then over images."""
        if not isinstance(self.classes, str) and max(self.classes) >= target.shape[1]:
            raise UsageError("no such channel for Lovász", found=self.classes, expected=f"below {target.shape[1]}")
        return self.extend((target - self.probabilities(logits, mask)).abs(), target)

    def extend(self, errors: Tensor, target: Tensor) -> Tensor:
        """Return the extension of (B, C, X, Y, Z) errors from 0, mean over classes and images."""
        if self.options.batch:  # sorted together
            errors, target = (whole_batch(each).transpose(0, 1)[None] for each in (errors, target))
        images = [self._image(*pair) for pair in zip(errors.flatten(2), target.flatten(2) > 0, strict=True)]
        values = torch.stack(images)
        return values.mean() if self.options.batch else mean_of_all(values)

    def _image(self, errors: Tensor, truth: Tensor) -> Tensor:
        """Return the weighted mean over the classes of one image; (C, N) each."""
        chosen = range(len(errors)) if isinstance(self.classes, str) else self.classes
        present = [int(c) for c in chosen if self.classes != "present" or bool(truth[c].any())]
        weights = self.options.class_weights
        shares = [1.0 if weights is None else weights[c] for c in present]
        if not any(shares):
            return errors.sum() * 0  # all ignored
        terms = [
            share * (errors[c] * lovasz_weights(errors[c], truth[c])).sum()  # dot loses the small ones
            for c, share in zip(present, shares, strict=True)
        ]
        return torch.stack(terms).sum() / sum(shares)


class LovaszHinge(LovaszSoftmax):
    """Lovász hinge (Berman et al. 2018, equation 8), for yes or no per channel; from 0, without an upper bound.

    Args:
        options: as of `LossOptions`; with ``sigmoid`` each channel is a score of its own, with ``softmax`` the
            difference of two channels is, which has no ``class_weights``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("all", **options)
        if self.options.class_weights is not None and self.options.activation == "softmax":
            raise UsageError("class_weights have no meaning for the Lovász hinge of two classes")

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over channels, then over images."""
        if self.options.activation == "softmax":
            if logits.shape[1] != 2:
                raise UsageError(
                    "the Lovász hinge knows yes and no alone",
                    found=f"{logits.shape[1]} classes",
                    expected="2",
                    hint="use lovasz_softmax",
                )
            logits, target = logits[:, 1:] - logits[:, :1], target[:, 1:]
        errors = (1 - logits * (2 * target - 1)).relu()
        return self.extend(errors if mask is None else errors * mask, target)


@torch.no_grad()
def lovasz_weights(errors: Tensor, truth: Tensor) -> Tensor:
    """Return how much each error counts: Berman et al. 2018, algorithm 1, written by rank, exactly.

    With errors in falling order (P voxels of the class, f of them and b others so far) a voxel of the class weighs
    1 / (P + b), another (P - f) / ((P + b)(P + b - 1)). So an error of 0 adds nothing, and neither does another
    voxel whose error is below all errors of the class (f = P): both are left out before the sort. What is left is
    sorted as one whole number per voxel, error bits above index, which costs half of a sort with indices.

    Args:
        errors: (N,), from 0.
        truth: (N,) of bool, the voxels of the class.

    Returns:
        (N,), the gradient of the extension; the loss is its product with the errors.
    """
    weights = torch.zeros_like(errors)
    total = int(truth.sum())
    if total == 0:
        if errors.numel():
            weights[errors.argmax()] = 1  # of an absent class the largest error alone counts
        return weights
    lowest = errors.where(truth, torch.inf).amin()
    kept = ((errors > 0) & (truth | (errors > lowest))).nonzero()[:, 0]
    index, within = _falling(errors[kept], truth[kept], kept)
    hits = within.cumsum(0)
    union = total + torch.arange(1, len(index) + 1, device=errors.device) - hits
    wide = union.double()  # products of voxel counts
    weight = torch.where(within > 0, 1 / wide, (total - hits) / (wide * (wide - 1)))
    weights[index] = weight.to(errors.dtype)
    return weights


def _falling(errors: Tensor, truth: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and truth (0 or 1) in falling order of the errors."""
    if errors.dtype != torch.float32 or (len(index) and int(index[-1]) >= 1 << INDEX_BITS):
        order = errors.sort(descending=True).indices
        return index[order], truth[order].long()
    bits = errors.view(torch.int32).long()  # floats from 0 stand in the order of their bits
    keys = (bits << INDEX_BITS + 1) | (truth.long() << INDEX_BITS) | index
    keys = -(-keys).sort().values  # whole numbers sort faster upwards
    return keys & ((1 << INDEX_BITS) - 1), (keys >> INDEX_BITS) & 1
