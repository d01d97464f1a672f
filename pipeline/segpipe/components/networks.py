"""Networks that MONAI has, with behaviour that training needs."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus, DynUNet, UNet

from segpipe.inference import by_slices


class UNetPlusPlus(BasicUNetPlusPlus):
    """UNet++ (Zhou et al. 2018, 2020) whose deep supervision fits losses and inferers.

    MONAI's `BasicUNetPlusPlus` returns a list in every mode, shallowest head first. This one returns in training,
    with ``deep_supervision``, the heads finest first, each of shape (B, C, X, Y, Z); otherwise the finest head
    alone as a tensor. State-dict keys are MONAI's, so weights load into `BasicUNetPlusPlus`.

    Args:
        arguments: as for `monai.networks.nets.BasicUNetPlusPlus`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits of shape (B, C, X, Y, Z), or a list of them, finest first."""
        heads = super().forward(x)
        if self.training and self.deep_supervision:
            return heads[::-1]
        return heads[-1]


class _OfSlices(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        """Return logits (B, C, X, Y, Z) of slices, in the form that the class gives; one of X, Y and Z is 1."""
        return by_slices(super().forward, x)


class SliceUNet(_OfSlices, UNet):
    """A U-Net of single slices (Ronneberger et al. 2015) for patches of a volume that are one voxel thick.

    It is MONAI's `UNet` with ``spatial_dims`` 2, whose weights load into that; `monai.inferers.SliceInferer` then moves
    it over a volume. The axis along which a patch has one voxel is the one that is sliced.

    Args:
        arguments: as for `monai.networks.nets.UNet`, with ``spatial_dims`` 2.
    """


class SliceDynUNet(_OfSlices, DynUNet):
    """nnU-Net's 2D network (Isensee et al. 2021) for patches of a volume that are one voxel thick, as `SliceUNet`.

    Args:
        arguments: as for `monai.networks.nets.DynUNet`, with ``spatial_dims`` 2.
    """
