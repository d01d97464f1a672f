"""The type that a network computes in, and the order of its numbers in memory, for a device as it is."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.data import MetaTensor

from segpipe.common.precision import channels_last as side_by_side
from segpipe.common.precision import precision_of
from segpipe.errors import UsageError

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def in_precision(
    network: torch.nn.Module,
    precision: Precision = "auto",
    channels_last: bool = False,
    device: str | torch.device = "cpu",
    compiled: bool = False,
) -> torch.nn.Module:
    """Return the network itself, on a device, with its forward pass in a type of less bits.

    Weights stay float32, and so do logits, loss and optimiser; names in the state dict are as they were. Between them
    PyTorch's autocast chooses, for the type of the device.

    Args:
        network: any; its class becomes one that is derived from it.
        precision: ``float32``, ``bfloat16``, ``float16``, or ``auto``, see `segpipe.common.precision.precision_of`.
        channels_last: keep the channels of a voxel side by side in memory, which convolutions on CPUs and tensor cores
            read faster.
        device: where it computes.
        compiled: by `torch.compile`, at its first call; needs a compiler, and pays on GPUs in long runs.

    Raises:
        UsageError: float16 on a CPU, where gradients would be lost without a sign.
    """
    device = torch.device(device)
    used = precision_of(precision, device.type)
    if used == "float16" and device.type == "cpu":
        raise UsageError(
            "float16 does not train on a CPU", found="precision float16", hint="--set precision=bfloat16, or auto"
        )
    network = network.to(device)
    if channels_last:
        network = network.to(memory_format=side_by_side(network))
    if used == "bfloat16" and device.type == "cpu":
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                _derive(module, _ShortInFloat32)
    _derive(network, _InPrecision)
    network._computes = (device.type, TYPES[used], channels_last)
    if compiled:
        network.compile()
    return network


def scales_loss(precision: Precision, device: str | torch.device) -> bool:
    """Return whether gradients need a scaler, as those of float16 do: the trainer's ``amp``."""
    device = torch.device(device)
    return device.type == "cuda" and precision_of(precision, device.type) == "float16"


def _derive(module: torch.nn.Module, first: type) -> None:
    """Let the methods of a class come before those of the module's own, in place."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (first, kind), {"__module__": kind.__module__})


class _ShortInFloat32(torch.nn.Module):
    """A convolution that is computed in float32 where an axis is shorter than its kernel, as the deepest may be.

    On processors with AVX512 and no AMX, PyTorch 2.13 (oneDNN) then fills a part of the weights' gradient in bfloat16
    with what lay in memory before: it differs from run to run, or is not finite. So few voxels cost nothing in float32.
    """

    kernel_size: tuple[int, ...]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the convolution gives, in float32 where it is short."""
        if all(size >= kernel for size, kernel in zip(x.shape[2:], self.kernel_size, strict=True)):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _InPrecision(torch.nn.Module):
    """A network's forward pass in autocast; a class, since a method that was replaced would not be copied with it."""

    _computes: Any

    def __call__(self, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """Compute without the metadata of a `MetaTensor`: it costs at each operation, and no network looks at it."""
        return super().__call__(x.as_tensor() if isinstance(x, MetaTensor) else x, *arguments, **named)

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """Return logits in float32, or what the network gives of them."""
        device, dtype, channels_last = self._computes
        if channels_last and x.ndim == 5:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return _in_float32(super().forward(x, *arguments, **named))


def _in_float32(scores: Any) -> Any:
    if isinstance(scores, (list, tuple)):
        return type(scores)(_in_float32(part) for part in scores)
    return scores if scores.dtype == torch.float64 else scores.float()
