"""The fragments that a plan writes for ``segpipe train``: of task, runtime and, for some voxels, network.

Each is YAML that is read and changed by hand: what the plan chose has its reason and its source as a comment.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segpipe.data import Manifest
from segpipe.training.fragments import OWNED, read_fragment
from segpipe.training.planning_rules import CROP_MARGIN, Rule

BASE = {"cpu": "cpu", "cuda": "gpu"}  # device to the shipped runtime fragment that a plan changes
RULE_OF = {  # id of a task, or transform of it, to the rule that decided it
    "patch_size": "patch_size",
    "Orientationd": "orientation",
    "Spacingd": "spacing_mm",
    "CropForegroundd": "crop",
    "SplitDimd": "intensity",
    "ScaleIntensityRanged": "intensity",
    "NormalizeIntensityd": "intensity",
}
CROP = {
    "_target_": "CropForegroundd",
    "keys": ["image", "label"],
    "source_key": "image",
    "margin": CROP_MARGIN,
    "allow_smaller": True,
    "allow_missing_keys": True,
}
TASK = """\
# Task fragment, planned from {cases} training cases with `segpipe plan`. To be read, and changed by hand:
# the same transforms serve training, validation and inference.
"""
RUNTIME = (
    "# Runtime fragment, planned with `segpipe plan`; what the plan chose has its reason, the rest is {base}.yaml's.\n"
)
NETWORK = "# Network fragment, planned with `segpipe plan` for these voxels; its channels are those of the one named.\n"


def runtime_path(task: str | Path) -> Path:
    """Return where the runtime fragment of a planned task fragment lies: beside it."""
    return Path(task).with_name(f"{Path(task).stem}.runtime.yaml")


def network_path(task: str | Path) -> Path:
    """Return where the network fragment of a planned task fragment lies, if it has one of its own: beside it."""
    return Path(task).with_name(f"{Path(task).stem}.network.yaml")


def task_of(manifest: Manifest, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return a task fragment: the ids of a MONAI config that are the data set's.

    Args:
        manifest: names of channels and labels.
        rules: by name, each with its value.
    """
    both = {"keys": ["image", "label"], "allow_missing_keys": True}
    intensity = rules["intensity"].value
    return {
        "task_name": re.sub(r"[^a-z0-9]+", "_", manifest.name.lower()).strip("_") or "task",
        "channels": manifest.channels,
        "labels": list(manifest.labels.values()),
        **_meaning(manifest),
        "in_channels": manifest.n_channels,
        "out_channels": len(manifest.labels) if manifest.regions is None else len(manifest.regions),
        "activation": "softmax" if manifest.regions is None else "sigmoid",
        "patch_size": rules["patch_size"].value,
        "deterministic_transforms": [
            {"_target_": "LoadImaged", **both, "reader": "NibabelReader", "image_only": True},
            {"_target_": "EnsureChannelFirstd", **both},
            {
                "_target_": "Orientationd",
                **both,
                "axcodes": rules["orientation"].value,
                "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
            },
            {"_target_": "Spacingd", **both, "pixdim": rules["spacing_mm"].value, "mode": ["bilinear", "nearest"]},
            *([dict(CROP)] if rules["crop"].value else []),
            *(intensity if isinstance(intensity, list) else [intensity]),
            {"_target_": "EnsureTyped", **both},
        ],
    }


def _meaning(manifest: Manifest) -> dict[str, Any]:
    """Return what label maps say beside one label a voxel."""
    return {
        "ignore_label": manifest.ignore_label,
        "regions": manifest.regions or {},
        "annotated_sets": manifest.annotated_sets,
    }


def task_text(task: Mapping[str, Any], rules: Mapping[str, Rule], cases: int) -> str:
    """Write a task fragment; `yaml.safe_load` of it gives the task.

    Args:
        task: its ids.
        rules: by name; some of its ids and transforms are theirs.
        cases: number of cases that it was planned from.
    """
    parts = [TASK.format(cases=cases)]
    for key, value in task.items():
        if key == "deterministic_transforms":
            parts.append(f"\n{key}:\n")
            said = ""  # a rule stands once, above the first of its transforms
            for item in value:
                words = _comment(rules.get(RULE_OF.get(item["_target_"], "")), "  ")
                parts.append(("" if words == said else words) + _yaml([item], "  "))
                said = words or said
        else:
            words = _comment(rules.get(RULE_OF.get(key, "")))
            parts.append(("\n" if words else "") + words + _yaml({key: value}))
    return "".join(parts)


def runtime_text(device: str, settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> str:
    """Write a runtime fragment: the shipped one of the device, with the settings of the plan in their places.

    Args:
        device: ``cpu`` or ``cuda``.
        settings: id to value.
        rules: whose reasons stand above their ids.
    """
    content, _ = read_fragment("runtime", BASE[device])
    parts = [RUNTIME.format(base=BASE[device])]
    planned = {name: value for name, value in settings.items() if name in OWNED["runtime"]}
    for name, value in (content | planned).items():
        words = _comment(rules.get(name)) if name in settings else ""
        flow = None if isinstance(value, dict) else False
        parts.append(words + yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=flow, width=1000))
    return "".join(parts)


def network_text(network: Mapping[str, Any], rules: Mapping[str, Rule]) -> str:
    """Write a network fragment, with the reason of the rule that decided it."""
    return NETWORK + _comment(rules["network"]) + _yaml(dict(network))


def _comment(rule: Rule | None, indent: str = "") -> str:
    """Return why, and who says so, as lines of a comment."""
    if rule is None:
        return ""
    begin, words = f"{indent}# ", f"{rule.why} ({rule.source})"
    return textwrap.fill(words, 105, initial_indent=begin, subsequent_indent=begin, break_on_hyphens=False) + "\n"


def _yaml(value: Any, indent: str = "") -> str:
    parts = list(value.values()) if isinstance(value, dict) else value
    flow = None if any(isinstance(part, list | dict) for part in parts) else False
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=flow, width=1000, allow_unicode=True)
    return textwrap.indent(text, indent)
