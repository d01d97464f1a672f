"""Lovász-Softmax, exact, beside Dice + cross entropy and a plain sort: forward and backward on 2x3x96^3 in one run."""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

from segpipe.components.losses import DiceCELoss
from segpipe.components.lovasz import LovaszSoftmax

REPEATS = 3
LIMIT = 8.0  # what a plain sort costs


def plain(logits: Tensor, truth: Tensor) -> Tensor:
    """Algorithm 1 of Berman et al. 2018 as published: one sort with indices per class."""
    losses = []
    for c, scores in enumerate(logits.softmax(1).transpose(0, 1).flatten(1)):
        found = (truth == c).flatten().float()
        errors, order = (found - scores).abs().sort(descending=True)
        found = found[order]
        union = found.sum() + (1 - found).cumsum(0)
        jaccard = 1 - (found.sum() - found.cumsum(0)) / union
        losses.append((errors * torch.diff(jaccard, prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean()


def seconds(loss, logits: Tensor, truth: Tensor) -> float:
    """Median processor time of one forward and backward, in seconds; the first only warms up."""
    times = []
    for _ in range(REPEATS + 1):
        leaf = logits.clone().requires_grad_(True)
        start = time.process_time()
        loss(leaf, truth).backward()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def main() -> int:
    """Print times and ratios for a network that knows nothing and one that is nearly right; 1 above the limit."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 6, 6, 6, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=(96, 96, 96), mode="trilinear")
    truth = (blobs > 0.7).long() + (blobs > 0.8).long()
    noise = torch.randn(2, 3, 96, 96, 96, generator=generator)
    right = 8 * torch.nn.functional.one_hot(truth[:, 0], 3).movedim(-1, 1) + noise
    worst = 0.0
    for name, logits in (("untrained", noise), ("trained", right)):
        ours, sort = LovaszSoftmax(batch=True), plain
        same = abs(float(ours(logits, truth)) - float(sort(logits, truth)))
        base, exact, naive = (seconds(loss, logits, truth) for loss in (DiceCELoss(), ours, sort))
        worst = max(worst, exact / base)
        print(f"{name:9}  DiceCE {base:.3f} s  Lovász {exact:.3f} s  plain sort {naive:.3f} s")
        print(f"{'':9}  ratio to DiceCE {exact / base:.1f}, plain {naive / base:.1f}; values differ by {same:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
