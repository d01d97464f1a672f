"""Normalisation over many voxels, summed in parts: as exact in OpenVINO as PyTorch's.

OpenVINO 2026.4 sums what instance and group normalisation take the mean of in float32, one voxel after the other: over
96 x 96 x 96 voxels scores are then off by 3 in 10,000 of the largest, and by more where few values are large. Means of
planes, and then of those, are sums of few numbers each.
"""

from __future__ import annotations

import copy

import torch


class _InParts(torch.nn.Module):
    """Instance or group normalisation by means of means.

    Args:
        norm: what it does the same as, with its weights.
    """

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return each channel, or group of channels, of each image less its mean, by its standard deviation."""
        norm = self.norm
        groups = norm.num_groups if isinstance(norm, torch.nn.GroupNorm) else x.shape[1]
        rows = x.reshape(x.shape[0], groups, -1, *x.shape[-2:])
        centred = rows - _mean(rows)
        scaled = (centred * torch.rsqrt(_mean(centred * centred) + norm.eps)).reshape(x.shape)
        if norm.weight is None:
            return scaled
        by_channel = (1, -1, *[1] * (x.ndim - 2))
        weighted = scaled * norm.weight.reshape(by_channel)
        return weighted if norm.bias is None else weighted + norm.bias.reshape(by_channel)


def _mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of (N, G, P, Y, Z) over the last three axes, which stay.

    Means that follow each other OpenVINO makes one of; what is reshaped between them keeps those of planes apart.
    """
    planes = rows.mean((3, 4))
    return planes.reshape(*planes.shape, 1).mean(2).reshape(*planes.shape[:2], 1, 1, 1)


def summed_in_parts(network: torch.nn.Module) -> torch.nn.Module | None:
    """Return a copy of a network whose instance and group normalisations sum in parts; None where it has none.

    Args:
        network: in evaluation mode, on the CPU; it stays as it is.

    >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.GroupNorm(2, 4)).eval()
    >>> x = torch.randn(1, 1, 9, 8, 7)
    >>> torch.allclose(summed_in_parts(network)(x), network(x), atol=1e-5)
    True
    >>> summed_in_parts(torch.nn.Conv3d(1, 4, 3)) is None
    True
    """
    copied = copy.deepcopy(network)
    found = [
        (parent, name, module)
        for parent in copied.modules()
        for name, module in parent.named_children()
        if _sums_over_images(module)
    ]
    for parent, name, module in found:
        setattr(parent, name, _InParts(module))
    return copied if found else None


def _sums_over_images(module: torch.nn.Module) -> bool:
    if isinstance(module, (torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d)):
        return not module.track_running_stats
    return isinstance(module, torch.nn.GroupNorm)
