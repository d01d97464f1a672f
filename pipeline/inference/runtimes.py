"""What computes the scores of windows: one network, several, or one on mirrored windows.

All are `Runtime`s: windows (N, C, X, Y, Z) to scores (N, K, X, Y, Z). Averages are of scores before activation, as
`MeanEnsembled` in front of `Activationsd` has them; they are summed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.inference.windows import Runtime


def torch_runtime(network: torch.nn.Module) -> Runtime:
    """A network of torch; of several outputs in a list the only one, as MONAI's inferer takes it."""

    def run(windows: torch.Tensor) -> torch.Tensor:
        scores: Any = network(windows)
        only: torch.Tensor = scores[0] if isinstance(scores, (list, tuple)) and len(scores) == 1 else scores
        return only

    return run


def average(runtimes: Sequence[Runtime]) -> Runtime:
    """The mean of the scores of several networks, for example of folds."""

    def run(windows: torch.Tensor) -> torch.Tensor:
        first, *rest = runtimes
        total = first(windows).clone()
        for runtime in rest:
            total += runtime(windows)
        return total.div_(len(runtimes))

    return run


def mirrored(runtime: Runtime, flips: Sequence[Sequence[int]] = ((), (0,), (1,), (2,))) -> Runtime:
    """The mean of a network's scores over mirrored windows, turned back (test-time augmentation).

    Args:
        runtime: the network.
        flips: for each pass the spatial axes (0 to 2) that are mirrored.
    """

    def flipped(axes: Sequence[int]) -> Runtime:
        dims = [axis + 2 for axis in axes]
        return lambda windows: runtime(windows.flip(dims)).flip(dims)

    return average([flipped(axes) for axes in flips])
