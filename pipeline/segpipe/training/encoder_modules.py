"""Which modules of a network are its encoder: the way down, with the bottom, before anything is scaled up again."""

from __future__ import annotations

from typing import Any

from torch import nn

from segpipe.errors import UsageError

# By class of MONAI; one that is derived from it has the same. Skip connections that only the encoder feeds are of it.
NAMED: dict[str, tuple[str, ...]] = {
    "BasicUNet": ("conv_0", "down_1", "down_2", "down_3", "down_4"),
    "BasicUNetPlusPlus": ("conv_0_0", "conv_1_0", "conv_2_0", "conv_3_0", "conv_4_0"),
    "DynUNet": ("input_block", "downsamples", "bottleneck"),
    "FlexibleUNet": ("encoder",),
    "SegResNet": ("convInit", "down_layers"),
    "SegResNetDS": ("encoder",),
    "SwinUNETR": ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10"),
    "UNETR": ("vit", "encoder1", "encoder2", "encoder3", "encoder4"),
}
NESTED = ("AttentionUnet", "UNet")  # each level lies within the one above it


def encoder_modules(network: nn.Module) -> list[str]:
    """Return the names of the modules that are a network's encoder.

    >>> from monai.networks.nets import UNet
    >>> encoder_modules(UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2)))
    ['model.0', 'model.1.submodule.0', 'model.1.submodule.1.submodule']

    Raises:
        UsageError: no rule says what is the encoder of such a network.
    """
    kinds = [kind.__name__ for kind in type(network).__mro__ if kind.__module__.startswith("monai.")]
    for kind in kinds:
        if kind in NESTED:
            return _nested(network.model, "model")
        if kind in NAMED:
            return list(NAMED[kind])
    raise UsageError(
        "it is not known what the encoder of this network is",
        found=type(network).__name__,
        expected=", ".join(sorted((*NAMED, *NESTED))),
        hint="leave --freeze out: all weights are trained, from the parent's on",
    )


def _nested(level: Any, name: str) -> list[str]:
    """Return the way down of a level (down, what lies within, up), and that of those within it; the last is whole."""
    names = []
    while isinstance(level, nn.Sequential) and hasattr(level[1], "submodule"):
        names.append(f"{name}.0")
        level, name = level[1].submodule, f"{name}.1.submodule"
    return [*names, name]
