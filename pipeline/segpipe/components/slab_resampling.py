"""Have MONAI resample volumes a slab at a time: the same bits, in a third of the memory.

MONAI lists the coordinates of all voxels of the result at once, as 24 bytes each, which PyTorch computes from another
32. Voxels of a result depend on their own coordinates alone, so a few planes of it at a time give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import AffineTransform
from monai.networks.utils import to_norm_affine
from torch.nn.functional import affine_grid, grid_sample

SLAB = 1 << 18  # voxels of the result at a time, of 56 bytes while their coordinates are computed


class SlabAffineTransform(AffineTransform):
    """MONAI's resampling by a matrix, of which float64 is rounded to float32 slab by slab.

    What it does not do so (other devices, gradients, flat images, normalised matrices), MONAI does.
    """

    def forward(
        self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """Return a volume (1, C, X, Y, Z) on another grid, float32; arguments as of MONAI's."""
        plain = src.ndim == 5 and len(src) == 1 and theta.shape == (4, 4) and not (self.normalized or src.requires_grad)
        sized = isinstance(spatial_size, (Sequence, torch.Tensor)) and len(spatial_size) == 3
        if not (plain and sized and self.reverse_indexing and src.device.type == "cpu"):
            result: torch.Tensor = super().forward(src, theta, spatial_size)
            return result
        size = [int(length) for length in spatial_size]  # type: ignore[union-attr]
        matrix = to_norm_affine(theta[None], src.shape[2:], size, self.align_corners, self.zero_centered)
        matrix = matrix[:, [2, 1, 0]][:, :, [2, 1, 0, 3]]  # torch counts axes from the last
        across, down, along = (self._centres(length, matrix.dtype) for length in size)
        src, found = src.contiguous(), torch.empty((1, src.shape[1], *size), dtype=torch.float32)
        rows = max(1, SLAB // (size[1] * size[2]))
        for first in range(0, size[0], rows):
            part = across[first : first + rows]
            places = torch.ones((len(part), *size[1:], 4), dtype=matrix.dtype)
            places[..., 0] = along
            places[..., 1] = down[:, None]
            places[..., 2] = part[:, None, None]
            grid = places.view(1, -1, 4).bmm(matrix[:, :3].transpose(1, 2)).view(1, len(part), *size[1:], 3)
            del places
            found[:, :, first : first + rows] = grid_sample(
                src, grid, self.mode, self.padding_mode, align_corners=self.align_corners
            )
        return found

    def _centres(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the normalised coordinates along an axis, as torch itself computes them."""
        line = affine_grid(torch.eye(3, 4, dtype=dtype)[None], [1, 1, 1, 1, length], self.align_corners)
        return line[0, 0, 0, :, 0]


def resample_in_slabs() -> None:
    """Have MONAI's transforms use `SlabAffineTransform` in this process."""
    from monai.transforms.spatial import functional

    module: Any = functional
    module.AffineTransform = SlabAffineTransform
