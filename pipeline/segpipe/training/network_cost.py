"""What a network gives and needs, counted from shapes alone (PyTorch's meta device): nothing is computed.

So it takes a second for any size, needs no memory, and is the same on every machine.
"""

from __future__ import annotations

import contextlib
import copy
import io
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from segpipe.errors import UsageError, first_cause

ADAM_MOMENTS = 2  # tensors that AdamW keeps beside each weight


@dataclass(frozen=True)
class NetworkCost:
    """One training step of a network, without its loss.

    Attributes:
        parameters: trained numbers.
        weight_bytes: parameters and buffers.
        activation_bytes: what the forward pass keeps for the backward pass, each tensor once.
        step_bytes: weights, moments of AdamW, and the peak of activations, gradients and intermediate values.
        multiply_adds: of all convolutions and matrix products, forward and backward.
        heads: outputs that the loss compares with the truth.
    """

    parameters: int
    weight_bytes: int
    activation_bytes: int
    step_bytes: int
    multiply_adds: int
    heads: int


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config, on the CPU; the random state is left as it was.

    Args:
        config: with ``network_def`` and what it refers to.

    Raises:
        UsageError: its class refuses the arguments.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser(copy.deepcopy(dict(config)))
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
            network = parser.get_parsed_content("network_def")  # some networks print their features
    except Exception as error:  # MONAI wraps what a constructor raises
        raise UsageError("the network cannot be built", found=_reason(error)) from error
    if not isinstance(network, nn.Module):
        raise UsageError("network_def is no network", found=type(network).__name__, expected="a torch.nn.Module")
    return network


def shapes_of_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config on the meta device: with the shapes of its weights, none of which is drawn.

    Args:
        config: with ``network_def`` and what it refers to.

    Raises:
        UsageError: its class refuses the arguments.
    """
    try:
        with torch.device("meta"):
            network = build_network(config)
    except UsageError:  # its class may compute with values, such as rates of drop path
        network = build_network(config)
    return network.to("meta")


def output_shapes(network: nn.Module, shape: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Return the shapes of the heads that a network gives for a batch, finest first, in the mode that it is in.

    Args:
        network: on the meta device.
        shape: (B, C, X, Y, Z).

    Returns:
        None where the network cannot run on shapes alone.

    Raises:
        UsageError: the network does not take such a batch.
    """
    try:
        with torch.no_grad():
            outputs = network(torch.empty(tuple(shape), device="meta"))
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return None
        raise UsageError(
            "the network does not take the patch",
            found=f"{'x'.join(map(str, shape[2:]))} voxels, {shape[1]} channels: {_reason(error)}",
            expected="channels as in network_def, and a patch of which more than one voxel is left at the bottom",
            hint="a larger patch_size, or a patch_divisor that all strides together divide",
        ) from error
    return [tuple(head.shape) for head in _heads(outputs, len(shape))]


def cost_of_step(network: nn.Module, shape: Sequence[int]) -> NetworkCost:
    """Count one training step.

    Args:
        network: on any device; it is on the meta device, without its weights, afterwards.
        shape: (B, C, X, Y, Z) of the batch.
    """
    network = network.to("meta").train()
    owned = [*network.parameters(), *network.buffers()]
    kept = _Kept(owned)
    living, flops = _Living(), FlopCounterMode(display=False)
    image = torch.empty(tuple(shape), device="meta")
    with living, flops, torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        outputs = network(image)
        heads = len(_heads(outputs, len(shape)))
        activation_bytes = kept.bytes()
        kept.clear()
        tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        torch.autograd.backward(tensors, [torch.empty_like(tensor) for tensor in tensors])
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in owned)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    moments = ADAM_MOMENTS * sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in trained),
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        step_bytes=weight_bytes + moments + living.peak,
        multiply_adds=flops.get_total_flops() // 2,
        heads=heads,
    )


def _heads(outputs: Any, n_dims: int) -> list[Tensor]:
    """Return the outputs one by one; a tensor with an axis more is a stack of them, as DynUNet gives it."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind(1)) if outputs.ndim == n_dims + 1 else [outputs]
    return list(outputs)


def _reason(error: BaseException) -> str:
    words = str(first_cause(error)).strip() or type(error).__name__
    return words.splitlines()[-1][:200]


class _Kept:
    """The memory that autograd holds for the backward pass, parameters left out."""

    def __init__(self, owned: Sequence[Tensor]) -> None:
        self._owned = {_key(tensor) for tensor in owned}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> Tensor:
        if _key(tensor) not in self._owned:
            self._storages[_key(tensor)] = tensor.untyped_storage()
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())

    def clear(self) -> None:
        self._storages.clear()


class _Living(TorchDispatchMode):
    """The peak of memory in use by all tensors made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and _key(tensor) not in self._sizes:
                storage = tensor.untyped_storage()
                self._sizes[_key(tensor)] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._freed, _key(tensor))
        return output

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
