"""In which type numbers are computed, where the user leaves that to the machine."""

from __future__ import annotations

from segpipe.common.provenance import cpu_kind


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
