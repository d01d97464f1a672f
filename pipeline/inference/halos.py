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
        self._starts = grid.starts[grid.block_axes[0]]
        self._planes: dict[int, torch.Tensor] = {}  # before a row of blocks, by where it begins
        self._edges: dict[int, torch.Tensor] = {}  # beside the next block of a row, by where the row begins

    def inner(self, block: Block) -> torch.Tensor:
        """The scores without their halo."""
        scores = block.scores
        for axis in (self.slow, self.fast):
            scores = scores.narrow(axis, HALO, scores.shape[axis] - HALO)
        return scores

    def fill(self, block: Block) -> None:
        """Write the halo of a block, and keep what its successors need; before the first block it is 0."""
        scores, row, first = block.scores, block.start[self.slow - 1], block.start[self.fast - 1]
        length, after = scores.shape[self.fast], row + scores.shape[self.slow] - HALO
        together = max(start for start in self._starts if start <= row)  # rows that are finished in turns
        self._planes = {start: plane for start, plane in self._planes.items() if start >= together}
        if row in self._planes:
            scores.narrow(self.slow, 0, HALO).copy_(self._planes[row].narrow(self.fast, first, length))
        if first > 0:
            scores.narrow(self.fast, 0, HALO).copy_(self._edges.pop(row))
        if after not in self._planes:
            shape = list(scores.shape)
            shape[self.slow], shape[self.fast] = HALO, self.width + HALO
            self._planes[after] = scores.new_zeros(shape)
        last = scores.narrow(self.slow, scores.shape[self.slow] - HALO, HALO).narrow(
            self.fast, HALO, length - HALO
        )
        self._planes[after].narrow(self.fast, first + HALO, length - HALO).copy_(last)
        if first + length - HALO < self.width:
            self._edges[row] = scores.narrow(self.fast, length - HALO, HALO).clone()
