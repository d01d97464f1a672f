"""Random examples, and every loss written once more in NumPy float64, independently."""

from __future__ import annotations

import numpy as np
import torch

from segpipe.components.losses import (
    ComboLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralisedDiceLoss,
    JaccardLoss,
)

KINDS = ["random", "empty", "full", "one voxel", "perfect", "inverted"]
SMOOTH = 1e-5


def example(seed: int, classes: int = 3, shape=(4, 3, 5), batch: int = 2, kind: str = "random"):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *shape, generator=generator, dtype=torch.float64) * 2
    truth = torch.randint(0, classes, (batch, 1, *shape), generator=generator)
    if kind in ("empty", "full", "one voxel"):
        truth = torch.full_like(truth, 1 if kind == "full" else 0)
    if kind == "one voxel":
        truth[0, 0, 0, 0, 0] = classes - 1
    if kind in ("perfect", "inverted"):
        sign = 60 if kind == "perfect" else -60
        logits = sign * torch.nn.functional.one_hot(truth[:, 0], classes).movedim(-1, 1).double()
    return logits, truth


def numpy_parts(logits, truth):
    """Probabilities (C, B, N), their logarithms, and truth in 0 and 1."""
    x = logits.numpy().reshape(*logits.shape[:2], -1).swapaxes(0, 1)
    top = x.max(0)
    logs = x - top - np.log(np.exp(x - top).sum(0))
    flat = truth.numpy().reshape(len(truth), -1)
    return np.exp(logs), logs, np.stack([flat == c for c in range(len(x))]).astype(float)


def mean_over(values) -> float:
    return float(np.mean(values))


def numpy_dice(p, t, smooth=SMOOTH, squared=False, jaccard=False):
    """Loss by class and sample of (C, B, N)."""
    both, sizes = (p * t).sum(-1), (p**2 if squared else p).sum(-1) + t.sum(-1)
    if jaccard:
        return 1 - (both + smooth) / (sizes - both + smooth)
    return 1 - (2 * both + smooth) / (sizes + smooth)


def numpy_generalised(p, t):
    losses = []
    for b in range(p.shape[1]):
        volumes = t[:, b].sum(-1)
        rarest = volumes[volumes > 0].min()
        w = np.array([(rarest / v) ** 2 if v else 1.0 for v in volumes])
        both, sizes = (p[:, b] * t[:, b]).sum(-1), p[:, b].sum(-1) + volumes
        losses.append(1 - (2 * (w @ both) + SMOOTH) / (w @ sizes + SMOOTH))
    return losses


def log_of_rest(logs):
    """log(1 - p) by class, from the logarithms of the others."""
    return np.stack([np.logaddexp.reduce(np.delete(logs, c, 0), axis=0) for c in range(len(logs))])


def formulas(logits, truth) -> dict[type, float]:
    p, logs, t = numpy_parts(logits, truth)
    p1, t1, rest = p[1:], t[1:], log_of_rest(logs)
    entropy = -mean_over((t * logs).sum(0))
    focal = -mean_over((t * np.exp(2 * rest) * logs).sum(0))
    half = mean_over(numpy_dice(p1, t1, 2 * SMOOTH))
    return {
        DiceLoss: mean_over(numpy_dice(p1, t1)),
        JaccardLoss: mean_over(numpy_dice(p1, t1, jaccard=True)),
        GeneralisedDiceLoss: mean_over(numpy_generalised(p, t)),
        FocalLoss: focal,
        DiceCELoss: entropy + half,
        DiceFocalLoss: focal + half,
        ComboLoss: 0.5 * half - 0.5 * mean_over(0.5 * t * logs + 0.5 * (1 - t) * rest),
    }
