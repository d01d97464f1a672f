"""From a fingerprint to a task fragment, rule by rule; each rule explains itself and names its source.

What is written is a plain YAML fragment, to be read and changed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.fingerprint import Fingerprint
from pipeline.manifest import Manifest
from pipeline.plan import rules as rule_functions
from pipeline.plan.rules import NetworkCost, Rule


@dataclass(frozen=True)
class Plan:
    """All rules by name; ``task`` is the fragment, ``settings`` the runtime values to train with."""

    rules: dict[str, Rule]
    task: dict[str, Any]
    settings: dict[str, Any]


def make_plan(
    fingerprint: Fingerprint,
    manifest: Manifest,
    cost: NetworkCost,
    memory_bytes: int,
    free_bytes: int,
    cores: int,
) -> Plan:
    """Apply every rule.

    Args:
        fingerprint: of the manifest's training cases.
        manifest: names of channels and labels.
        cost: of the network to train (`pipeline.plan.rules.cost_of`).
        memory_bytes: what one training step may use.
        free_bytes: memory that is free now, for the cache.
        cores: cores to train on.

    Raises:
        UsageError: the memory does not hold the smallest patch.
        DataError: the intensities of the foreground cannot be scaled.
    """
    spacing = rule_functions.target_spacing(fingerprint)
    shape = rule_functions.resampled_shape(fingerprint, spacing.value)
    patch = rule_functions.patch_size(shape, cost, memory_bytes)
    batch = rule_functions.batch_size(fingerprint, shape, patch.value, cost, memory_bytes)
    fold = next(iter(manifest.folds()), None)
    trained = len(manifest.select("training", fold))
    rules = [
        rule_functions.orientation(fingerprint),
        spacing,
        rule_functions.intensity(fingerprint),
        patch,
        batch,
        rule_functions.depth(patch.value, spacing.value),
        rule_functions.overlap(),
        rule_functions.cache_rate(fingerprint, shape, free_bytes),
        rule_functions.epoch_time(trained, patch.value, batch.value, cost, cores),
    ]
    named = {rule.name: rule for rule in rules}
    settings = {name: named[name].value for name in ("batch_size", "cache_rate", "overlap")}
    return Plan(named, _task(manifest, named), settings)


def _task(manifest: Manifest, rules: Mapping[str, Rule]) -> dict[str, Any]:
    both = {"keys": ["image", "label"], "allow_missing_keys": True}
    return {
        "task_name": re.sub(r"[^a-z0-9]+", "_", manifest.name.lower()).strip("_") or "task",
        "channels": manifest.channels,
        "labels": list(manifest.labels.values()),
        "in_channels": manifest.n_channels,
        "out_channels": len(manifest.labels),
        "activation": "softmax",
        "patch_size": rules["patch_size"].value,
        "deterministic_transforms": [
            {"_target_": "LoadImaged", **both, "reader": "NibabelReader", "image_only": True},
            {"_target_": "EnsureChannelFirstd", **both},
            {"_target_": "Orientationd", **both, "axcodes": rules["orientation"].value,
             "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
            {"_target_": "Spacingd", **both, "pixdim": rules["spacing_mm"].value,
             "mode": ["bilinear", "nearest"]},
            rules["intensity"].value,
            {"_target_": "EnsureTyped", **both},
        ],
    }  # fmt: skip
