"""Networks that MONAI has, with behaviour that training needs."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNetPlusPlus


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
