"""The planes between blocks of scores: every cell of eight voxels lies within one block and its halo."""

from __future__ import annotations

import torch

from pipeline.inference.windows import Block, WindowGrid

HALO = 1  # planes before a block along the axes that are cut


class Halos:
    """The last planes of finished blocks, which the next ones need."""

    def __init__(self, grid: WindowGrid) -> None:
        self.slow, self.fast = (axis + 1 for axis in grid.block_axes)
        self.width = grid.padded[grid.block_axes[1]]
        self._before: torch.Tensor | None = None  # the last plane of the row before, with one voxel in front
        self._row: torch.Tensor | None = None
        self._beside: torch.Tensor | None = None  # the last plane of the block before in this row

    def inner(self, block: Block) -> torch.Tensor:
        """The scores without their halo."""
        scores = block.scores
        for axis in (self.slow, self.fast):
            scores = scores.narrow(axis, HALO, scores.shape[axis] - HALO)
        return scores

    def fill(self, block: Block) -> None:
        """Write the halo of a block, and keep what its successors need; before the first block it is 0."""
        scores, first = block.scores, block.start[self.fast - 1]
        length = scores.shape[self.fast]
        if first == 0:
            self._before, self._row, self._beside = self._row, None, None
        before, beside = scores.narrow(self.slow, 0, 1), scores.narrow(self.fast, 0, 1)
        if self._before is not None:
            before.copy_(self._before.narrow(self.fast, first, length))
        if self._beside is not None:
            rest = beside.narrow(self.slow, HALO, beside.shape[self.slow] - HALO)
            rest.copy_(self._beside)
        if self._row is None:
            shape = list(scores.shape)
            shape[self.slow], shape[self.fast] = 1, self.width + HALO
            self._row = scores.new_zeros(shape)
        last = scores.narrow(self.slow, scores.shape[self.slow] - 1, 1)
        own = length - HALO
        self._row.narrow(self.fast, first + HALO, own).copy_(last.narrow(self.fast, HALO, own))
        edge = scores.narrow(self.fast, length - 1, 1)
        self._beside = edge.narrow(self.slow, HALO, edge.shape[self.slow] - HALO).clone()
