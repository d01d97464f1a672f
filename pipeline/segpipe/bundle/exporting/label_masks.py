"""Masks of label maps, by transforms of stock MONAI: of regions, of voxels that count, of each label."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def counted_voxels(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what makes a mask of the truth's voxels that are not ignored, under ``counted``."""
    labels, ignored = range(len(config["labels"])), config["ignore_label"]
    return [
        {"_target_": "CopyItemsd", "keys": "truth", "names": "counted"},
        _mapped("counted", [*labels, ignored], [*([1] * len(labels)), 0]),
    ]


def region_masks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what makes a mask of each region of the truth, under ``label``, in the order of the channels."""
    values = [*range(len(config["labels"])), *([] if config["ignore_label"] is None else [config["ignore_label"]])]
    names = [f"region_{index}" for index in range(len(config["regions"]))]
    return [
        *one_mask_each("truth", names, values, config["regions"].values()),
        {"_target_": "ConcatItemsd", "keys": names, "name": "label"},
    ]


def one_mask_each(
    key: str, names: Sequence[str], values: Sequence[int], of: Iterable[Collection[int]]
) -> list[dict[str, Any]]:
    """Return what makes masks of a label map.

    Args:
        key: of the label map, which stays.
        names: key of each mask.
        values: that a label map may have.
        of: those that are 1 in each mask.
    """
    return [
        {"_target_": "CopyItemsd", "keys": key, "times": len(names), "names": names},
        *(
            _mapped(name, values, [int(value in inside) for value in values])
            for name, inside in zip(names, of, strict=True)
        ),
    ]


def _mapped(key: str, values: Sequence[int], to: Sequence[int]) -> dict[str, Any]:
    return {"_target_": "MapLabelValued", "keys": key, "orig_labels": values, "target_labels": to}
