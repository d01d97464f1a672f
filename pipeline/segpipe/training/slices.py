"""Networks of single slices: patches of one voxel along the axis that is sliced, turned within their plane alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segpipe.training.config_checks import divisors_of

NETWORKS = ("segpipe.components.SliceUNet", "segpipe.components.SliceDynUNet")
THICK_MM = 5.0  # slices of which a network of slices is worth a try
IN_PLANE = ("rotate_range", "scale_range")  # arguments of RandAffined, one number an axis


def takes_slices(network_def: Any) -> bool:
    """Return whether a network takes patches that are one voxel thick."""
    return isinstance(network_def, Mapping) and network_def.get("_target_") in NETWORKS


def sliced_axis(patch: Sequence[int], spacing_mm: Sequence[float] | None) -> int:
    """Return the axis that is sliced: where a patch has one voxel already, else the coarsest, else the last.

    >>> sliced_axis([128, 128, 1], None), sliced_axis([32, 128, 128], [5.0, 0.8, 0.8])
    (2, 0)
    """
    if list(patch).count(1) == 1:
        return list(patch).index(1)
    return 2 if not spacing_mm or len(set(spacing_mm)) == 1 else list(spacing_mm).index(max(spacing_mm))


def thick_slices(spacing_mm: Sequence[float]) -> bool:
    """Return whether voxels are so thick along one axis that a network of slices is worth a try.

    >>> thick_slices([0.8, 0.8, 5.0]), thick_slices([5.0, 5.0, 5.0])
    (True, False)
    """
    return max(spacing_mm) >= max(THICK_MM, 2 * sorted(spacing_mm)[1])


def divisor_of_slices(divisor: int | Sequence[int], axis: int) -> tuple[int, int, int]:
    """Return what a patch must divide by, one along the axis that is sliced."""
    x, y, z = (1 if place == axis else each for place, each in enumerate(divisors_of(divisor)))
    return x, y, z


def take_slices(config: dict[str, Any]) -> list[str]:
    """Change a config whose network takes slices: its patch, and what turns patches out of their plane.

    Args:
        config: composed; changed in place. Others stay as they are.

    Returns:
        The ids that were changed.
    """
    if not takes_slices(config["network_def"]):
        return []
    pixdim = [item["pixdim"] for item in config["deterministic_transforms"] if "pixdim" in item]
    axis = sliced_axis(config["patch_size"], pixdim[0] if pixdim else None)
    changed = {
        "patch_size": [1 if place == axis else size for place, size in enumerate(config["patch_size"])],
        "patch_divisor": list(divisor_of_slices(config["patch_divisor"], axis)),
        "random_transforms": _in_plane(config["random_transforms"], axis),
        "batch_transforms": _in_plane(config["batch_transforms"], axis),
    }
    ids = [name for name, value in changed.items() if config[name] != value]
    config.update(changed)
    return ids


def _in_plane(steps: Any, axis: int) -> Any:
    return [_turned_within(step, axis) for step in steps] if isinstance(steps, list) else steps


def _turned_within(step: Any, axis: int) -> Any:
    name = str(step.get("_target_", "")).rpartition(".")[2] if isinstance(step, dict) else ""
    if name == "BatchAffine":
        return {**step, "sliced_axis": axis}
    if name != "RandAffined":
        return step
    ranges = {key: step[key] for key in IN_PLANE if isinstance(step.get(key), list) and len(step[key]) == 3}
    turned = ranges.get("rotate_range", [0.0] * 3)
    scaled = ranges.get("scale_range", [0.0] * 3)
    return {
        **step,
        "rotate_range": [each if place == axis else 0.0 for place, each in enumerate(turned)],
        "scale_range": [0.0 if place == axis else each for place, each in enumerate(scaled)],
    }
