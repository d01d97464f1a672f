"""What a clean-up rule does to one label of one case."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.inference.cleanup import LabelRule, cleanup_transforms
from pipeline.measure import dice, volume_ml

MIN_VOLUMES_ML = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
"""From specks to a small organ; most labels gain from none of them."""

CANDIDATES = tuple(
    LabelRule(keep_largest, volume) for volume in (None, *MIN_VOLUMES_ML) for keep_largest in (False, True)
)[1:]
"""Simple rules first: of two that do equally well, the earlier is chosen."""


@dataclass(frozen=True)
class Trial:
    """Dice of one label of a case as predicted, and after each of `CANDIDATES`; 1 where both masks are empty."""

    label: int
    before: float
    after: tuple[float, ...]


def try_rules(
    truth: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    labels: Mapping[int, str],
    affine: NDArray[np.float64],
) -> list[Trial]:
    """Dice of every label with every candidate rule.

    A label that is empty in both counts 1 here, so that removing what is not in truth is a gain.
    """
    voxel_ml = volume_ml([True], affine)
    trials = []
    for value in labels:
        true, predicted = truth == value, prediction == value
        before = _score(true, predicted)
        sizes_ml = _component_sizes(predicted) * voxel_ml
        after = tuple(
            _score(true, apply_rule(rule, predicted, affine))
            if _changes(rule, sizes_ml, voxel_ml)
            else before
            for rule in CANDIDATES
        )
        trials.append(Trial(value, before, after))
    return trials


def _component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return np.bincount(components.ravel())[1:]


def _changes(rule: LabelRule, sizes_ml: NDArray[np.floating[Any]], voxel_ml: float) -> bool:
    """Whether a rule could remove anything; most labels are one component, and need no transform."""
    least = None if rule.min_volume_ml is None else rule.min_volume_ml + 2 * voxel_ml  # more than rounding
    return (rule.keep_largest and len(sizes_ml) > 1) or (least is not None and bool((sizes_ml < least).any()))


def apply_rule(rule: LabelRule, mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A mask, not empty, after the very transforms that a bundle would apply."""
    import torch
    from monai.data import MetaTensor

    box = ndimage.find_objects(mask.astype(np.uint8))[
        0
    ]  # and background around it, without which all is kept
    image = torch.from_numpy(np.pad(mask[box], 1)[None].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image renames an argument that MONAI passes
        item = _transforms(rule)({"pred": MetaTensor(image, affine=torch.from_numpy(affine))})
    cleaned = np.zeros_like(mask)
    cleaned[box] = item["pred"][0, 1:-1, 1:-1, 1:-1].numpy() > 0
    return cleaned


@lru_cache(maxsize=len(CANDIDATES))
def _transforms(rule: LabelRule) -> Callable[[dict[str, Any]], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.bundle import ConfigParser

        steps = cleanup_transforms({1: rule}, n_labels=2)
        parser = ConfigParser({"cleanup": {"_target_": "Compose", "transforms": steps}})
        transforms: Callable[[dict[str, Any]], dict[str, Any]] = parser.get_parsed_content("cleanup")
    return transforms


def _score(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    score = dice(truth, prediction)
    return 1.0 if score is None else score
