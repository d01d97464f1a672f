"""Several networks, or mirrored windows, as one runtime.

Averages of several bundles or of mirrored windows are of scores before activation, as `MeanEnsembled` in front of
`Activationsd` has them; they are summed in place. The members of one bundle are averaged behind their activation: their
scores stay `side_by_side` until a block of them is finished.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from segpipe.inference.sliding_window import Runtime


def average(runtimes: Sequence[Runtime]) -> Runtime:
    """Return the mean of the scores of several networks, for example of folds."""
    if len(runtimes) == 1:
        return runtimes[0]

    def run(windows: torch.Tensor) -> torch.Tensor:
        first, *rest = runtimes
        total = first(windows).clone()
        for runtime in rest:
            total += runtime(windows)
        return total.div_(len(runtimes))

    return run


def side_by_side(runtimes: Sequence[Runtime]) -> Runtime:
    """Return the scores of M networks one behind the other along the channels, (N, M K, X, Y, Z)."""
    if len(runtimes) == 1:
        return runtimes[0]

    def run(windows: torch.Tensor) -> torch.Tensor:
        together = torch.empty(0)
        for number, runtime in enumerate(runtimes):
            scores = runtime(windows)  # which hold until it is called again
            if number == 0:
                shape = (len(scores), len(runtimes) * scores.shape[1], *scores.shape[2:])
                together = scores.new_empty(shape)
            together.narrow(1, number * scores.shape[1], scores.shape[1]).copy_(scores)
        return together

    return run


def mirrored(runtime: Runtime, axes: Sequence[int], of_mirrors: Runtime | None = None) -> Runtime:
    """Return the mean of a network's scores over windows mirrored along some axes or none (test-time augmentation).

    Args:
        runtime: the network; it is called 2 to the power of their number times, the plain window first.
        axes: spatial axes (0 to 2).
        of_mirrors: computes the mirrored windows, where that is not the same.
    """
    other = of_mirrors or runtime

    def flipped(dims: Sequence[int]) -> Runtime:
        return lambda windows: other(windows.flip(dims)).flip(dims)

    flips = [some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count)]
    return average([runtime, *(flipped([axis + 2 for axis in flip]) for flip in flips)])
