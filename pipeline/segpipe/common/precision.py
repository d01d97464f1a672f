"""In which type numbers are computed, where the user leaves that to the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segpipe.common.provenance import cpu_kind

if TYPE_CHECKING:
    import torch


def precision_of(precision: str, device: str) -> str:
    """Return which type is used; for ``auto`` one of 16 bits where the device computes with it natively.

    On CPUs that is bfloat16 with AMX or AVX512-BF16, on CUDA bfloat16, else float16; float32 elsewhere. A CUDA device
    that is not there leaves ``auto`` to where it is.

    Args:
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda`` or another type of `torch.device`.
    """
    if precision != "auto":
        return precision
    if device != "cuda":
        return "bfloat16" if device == "cpu" and cpu_kind() != "neither" else "float32"
    import torch

    if not torch.cuda.is_available():
        return "auto"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def channels_last(network: torch.nn.Module) -> torch.memory_format:
    """Return the memory format in which the channels of a voxel lie side by side: that of a network's dimensions."""
    import torch

    in_3d = any(parameter.ndim == 5 for parameter in network.parameters())
    return torch.channels_last_3d if in_3d else torch.channels_last
