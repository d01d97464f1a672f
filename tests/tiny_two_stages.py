"""A small bundle of two stages, written by hand: the first marks what is bright, the second has its mask beside."""

from __future__ import annotations

from pathlib import Path

import torch

from tiny_bundle import THRESHOLD, write_bundle


def write_two_stages(root: Path) -> Path:
    """A bundle that looks at its scan alone, whatever the mask says."""
    weight = torch.zeros(2, 2, 1, 1, 1)
    weight[0, 0], weight[1, 0] = -1.0, 1.0
    state = {"weight": weight, "bias": torch.tensor([THRESHOLD, -THRESHOLD])}
    write_bundle(root, channels=("MRI", "mask of bright"), state=state)
    write_bundle(root / "first_stage")
    return root
