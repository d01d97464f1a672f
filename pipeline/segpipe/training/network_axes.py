"""A network whose strides and kernels follow the voxels, where these are coarser along one axis.

The rules are nnU-Net's: Isensee et al., Nat Methods 18:203-211, 2021, doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segpipe.training.planning_rules import NNUNET, Rule, halved_axes

COARSER = 2.0  # an axis is not halved, and not convolved over, while its voxels are so many times as long as the finest
KERNEL = 3

Strides = list[list[int]]


def network_by_axis(fragment: Mapping[str, Any], spacing_mm: Sequence[float], shape: Sequence[int]) -> Rule | None:
    """Return the network fragment for voxels that are coarser along an axis, or None where it is right as it is.

    It has as many levels, and as many channels, as the fragment. An axis is halved later while its voxels are at least
    twice as long as the finest; a network with kernels of its own a level (``DynUNet``) does not convolve over it
    until then either. A fragment that has strides an axis already, or whose class takes none, stays as it is.

    Args:
        fragment: content of a network fragment: ``network_name``, ``network_def``, ``patch_divisor``.
        spacing_mm: of the grid that the network works on.
        shape: of the median case there (voxels).

    >>> unet = {"network_def": {"_target_": "UNet", "strides": [2, 2, 2]}, "network_name": "unet", "patch_divisor": 8}
    >>> rule = network_by_axis(unet, (0.6, 0.6, 3.6), (320, 320, 20))
    >>> rule.value["network_def"]["strides"], rule.value["patch_divisor"]
    ([[2, 2, 1], [2, 2, 1], [2, 2, 2]], [8, 8, 2])
    >>> network_by_axis(unet, (1, 1, 1), (320, 320, 200)) is None
    True
    """
    definition = fragment["network_def"]
    adapt = ADAPTED.get(str(definition.get("_target_", "")).rpartition(".")[2])
    if adapt is None or not is_anisotropic(spacing_mm):
        return None
    given = definition.get("strides")
    if not isinstance(given, list) or not all(type(stride) is int and stride in (1, 2) for stride in given):
        return None
    strides = _strides(given, spacing_mm, shape)
    changed = copy.deepcopy(dict(definition)) | {"strides": strides} | adapt(strides, spacing_mm)
    divisor = [math.prod(level[axis] for level in strides) for axis in range(3)]
    value = {"network_name": fragment["network_name"], "patch_divisor": divisor, "network_def": changed}
    edges = " x ".join(f"{edge:.3g}" for edge in spacing_mm)
    why = f"voxels of {edges} mm: an axis is halved{KERNELS[adapt]} only once its voxels are less than twice the finest"
    return Rule("network", value, why, NNUNET)


def is_anisotropic(spacing_mm: Sequence[float]) -> bool:
    """Whether the voxels are at least twice as long along one axis as along another."""
    return max(spacing_mm) >= COARSER * min(spacing_mm)


def _strides(levels: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int]) -> Strides:
    spacing, size, strides = list(spacing_mm), list(map(float, shape)), []
    for level in levels:
        halved = halved_axes(size, spacing) if level == 2 else []
        step = [2 if axis in halved else 1 for axis in range(3)]
        strides.append(step)
        size = [value / by for value, by in zip(size, step, strict=True)]
        spacing = [edge * by for edge, by in zip(spacing, step, strict=True)]
    return strides


def _kernels(strides: Strides, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Return the arguments of a ``DynUNet``: kernels of 1 along an axis until its voxels are not much coarser."""
    spacing, kernels = list(spacing_mm), []
    for step in strides:
        spacing = [edge * by for edge, by in zip(spacing, step, strict=True)]
        kernels.append([1 if edge >= COARSER * min(spacing) else KERNEL for edge in spacing])
    return {"kernel_size": kernels, "upsample_kernel_size": strides[1:]}


def _no_kernels(strides: Strides, spacing_mm: Sequence[float]) -> dict[str, Any]:
    return {}


Adapt = Callable[[Strides, Sequence[float]], dict[str, Any]]
ADAPTED: dict[str, Adapt] = {"UNet": _no_kernels, "DynUNet": _kernels}  # MONAI's classes that take strides an axis
KERNELS: dict[Adapt, str] = {_no_kernels: "", _kernels: ", and convolved over,"}
