"""Networks of single slices within volumes: as MONAI's `SliceInferer` calls them, one slice being a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from segpipe.errors import UsageError


def by_slices(network: Callable[[torch.Tensor], Any], windows: torch.Tensor, axis: int | None = None) -> Any:
    """Return the scores of windows that are one voxel thick, by a network of two dimensions.

    Args:
        network: (N, C, ...) without the thin axis to scores, or to a list of them.
        windows: (N, C, X, Y, Z).
        axis: 0 to 2, the thin one; None takes the only one of size 1.

    Returns:
        What the network gives, the thin axis put back.

    Raises:
        UsageError: no axis, or more than one, is one voxel thick.
    """
    thin = [place for place in range(3) if windows.shape[2 + place] == 1] if axis is None else [axis]
    if len(thin) != 1:
        raise UsageError(
            "a network of slices takes patches that are one voxel thick along one axis",
            found=" x ".join(map(str, windows.shape[2:])),
            hint="a patch_size such as [256, 256, 1]",
        )
    place = thin[0] - 3  # from behind: heads may be stacked before the channels
    scores = network(windows.squeeze(place))
    if isinstance(scores, (list, tuple)):
        return type(scores)(each.unsqueeze(place) for each in scores)
    return scores.unsqueeze(place)


class OfSlices(torch.nn.Module):
    """A network of two dimensions, called with windows (N, C, X, Y, Z) that are one voxel thick.

    Args:
        network: of two dimensions.
        axis: 0 to 2, along which volumes are sliced.
    """

    def __init__(self, network: torch.nn.Module, axis: int) -> None:
        super().__init__()
        self.network, self.axis = network, axis

    def forward(self, windows: torch.Tensor) -> Any:
        """Return scores (N, K, X, Y, Z)."""
        return by_slices(self.network, windows, self.axis)


def sliced(network: torch.nn.Module, axis: int | None) -> torch.nn.Module:
    """Return the network for windows of volumes; itself where it has three dimensions (``axis`` None)."""
    return network if axis is None else OfSlices(network, axis)
