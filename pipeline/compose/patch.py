"""The patch that a network takes: padded to it, or refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UsageError


def padded_patch(size: Sequence[int], divisor: int) -> list[int]:
    """The smallest patch that holds ``size`` and that the network can halve down to 1/``divisor``.

    Each axis becomes a multiple of ``divisor``. Where one voxel alone would be left at the bottom, which no
    normalisation can work on, the longest axis is doubled.
    """
    padded = [-(-length // divisor) * divisor for length in size]
    if max(padded) == divisor:
        padded[list(size).index(max(size))] *= 2
    return padded


def check_network(config: Mapping[str, Any]) -> None:
    """Refuse a network that does not take the patch, or whose scores do not fit the truth. Imports MONAI.

    A network that cannot run on shapes alone passes; its first step will tell.

    Args:
        config: a whole config, with its references.

    Raises:
        UsageError: saying what the network gave and what was expected.
    """
    from pipeline.footprint import build_network, output_shapes

    network = build_network(config).to("meta")
    channels, patch = config["in_channels"], tuple(config["patch_size"])
    expected = (1, config["out_channels"], *patch)  # the last batch of an epoch may hold one case
    for training in (True, False):
        shapes = output_shapes(network.train(training), (1, channels, *patch))
        if shapes is None:
            return
        mode = "training" if training else "evaluation"
        if not shapes or shapes[0] != expected or any(shape[:2] != expected[:2] for shape in shapes):
            raise UsageError(
                f"the network's scores do not fit the truth in {mode}", found=f"shapes {shapes}",
                expected=f"{expected}, finest first",
                hint="patch_divisor, out_channels and the strides of network_def must fit each other",
            )  # fmt: skip
        if not training and len(shapes) > 1:
            raise UsageError(
                "the network gives several scores in evaluation", found=f"{len(shapes)} heads", expected="one",
                hint="deep_supervision false, or for UNet++ pipeline.components.UNetPlusPlus",
            )  # fmt: skip
