"""The type that a network computes in, and the order of its numbers in memory, for a device as it is."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.networks.blocks import ResidualUnit

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
        network: any; its class becomes one that is derived from it. Given once more, what is said last holds.
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
    if device.type == "cpu":
        for module in network.modules():
            for kinds, first in _on_cpu(used, channels_last):
                if isinstance(module, kinds):
                    _derive(module, first)
    _derive(network, _InPrecision)
    network._computes = (device.type, TYPES[used], channels_last)
    if compiled:
        network.compile()
    return network


def scales_loss(precision: Precision, device: str | torch.device) -> bool:
    """Return whether gradients need a scaler, as those of float16 do: the trainer's ``amp``."""
    device = torch.device(device)
    return device.type == "cuda" and precision_of(precision, device.type) == "float16"


def _on_cpu(used: str, channels_last: bool) -> list[tuple[tuple[type, ...], type]]:
    """Return what kinds of modules compute in another way on a CPU."""
    nn = torch.nn
    kinds: list[tuple[tuple[type, ...], type]] = []
    if used == "bfloat16":
        kinds.append(((nn.Conv2d, nn.Conv3d), _ShortInFloat32))
    if channels_last:
        kinds.append(((nn.ReLU, nn.LeakyReLU, nn.PReLU, ResidualUnit), _GradientSideBySide))
        if used == "bfloat16":
            kinds.append(((nn.InstanceNorm2d, nn.InstanceNorm3d), _NormalisedSideBySide))
    return kinds


def _derive(module: torch.nn.Module, first: type) -> None:
    """Let the methods of a class come before those of the module's own, in place, unless they do."""
    kind = type(module)
    if issubclass(kind, first):
        return
    module.__class__ = type(kind.__name__, (first, kind), {"__module__": kind.__module__})


class _ShortInFloat32(torch.nn.Module):
    """A convolution that is computed in float32 where an axis is shorter than its kernel, as the deepest may be.

    On processors with AVX512 and no AMX, PyTorch 2.13 (oneDNN) then fills a part of the weights' gradient in bfloat16
    with what lay in memory before: it differs from run to run, or is not finite. So few voxels cost nothing in float32.
    """

    kernel_size: tuple[int, ...]

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """Return what the convolution gives, in float32 where it is short."""
        if not self._is_short(x):
            return super().forward(x, *arguments, **named)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float().contiguous(), *arguments, **named)

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._is_short(x):
            weight = weight.contiguous()  # gradients of many weights side by side would take longer
        return super()._conv_forward(x, weight, bias)

    def _is_short(self, x: torch.Tensor) -> bool:
        sizes = x.shape[-len(self.kernel_size) :]
        return any(size < kernel for size, kernel in zip(sizes, self.kernel_size, strict=True))


class _NormalisedSideBySide(torch.nn.Module):
    """Instance normalisation of channels that lie side by side, as they lie, in bfloat16.

    PyTorch 2.13 brings each channel's voxels together and back again, which takes up to three times as long as batch
    normalisation of one image, which is the same. That takes longer for less than ``FEWEST`` channels; and it sums in
    float32, one voxel after the other: beyond ``MOST_SUMMED`` voxels an error of that would be seen beside those of
    bfloat16.
    """

    FEWEST, MOST_SUMMED = 16, 100_000
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    track_running_stats: bool

    def _apply_instance_norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return each channel of each image less its mean, by its standard deviation."""
        worth = x.shape[1] >= self.FEWEST and 1 < x.shape[2:].numel() <= self.MOST_SUMMED
        if x.dtype != torch.bfloat16 or self.track_running_stats or not worth:
            return super()._apply_instance_norm(x)
        weight = x.new_ones(x.shape[1], dtype=torch.float32) if self.weight is None else self.weight  # for its type
        normalised = [
            torch.nn.functional.batch_norm(image, None, None, weight, self.bias, training=True, eps=self.eps)
            for image in x.split(1)
        ]
        return torch.cat(normalised)


class _GradientSideBySide(torch.nn.Module):
    """An activation, or a sum, whose gradient gets the order in memory of what it gave, before it is used.

    Where the two differ, as behind a skip connection or a loss, PyTorch takes up to twenty times as long for it.
    """

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the module gives."""
        y = super().forward(*arguments, **named)
        return _gradient_as_it_lies(y) if isinstance(y, torch.Tensor) else y


def _gradient_as_it_lies(y: torch.Tensor) -> torch.Tensor:
    """Return it, with a gradient that will lie in memory as it does."""
    orders = [torch.contiguous_format, *{4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(y.ndim, [])]
    order = next((order for order in orders[::-1] if y.is_contiguous(memory_format=order)), None)
    if order is not None and y.requires_grad:
        y.register_hook(lambda gradient: gradient.contiguous(memory_format=order))
    return y


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
            return _as_losses_read(super().forward(x, *arguments, **named), channels_last and device == "cpu")


def _as_losses_read(scores: Any, side_by_side: bool) -> Any:
    """Return logits in float32, each channel in one piece."""
    if isinstance(scores, (list, tuple)):
        return type(scores)(_as_losses_read(part, side_by_side) for part in scores)
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    if not side_by_side:
        return scores.to(dtype)
    return _gradient_as_it_lies(scores).to(dtype, memory_format=torch.contiguous_format)
