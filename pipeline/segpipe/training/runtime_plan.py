"""The runtime fragment that a plan writes beside its task fragment, for ``segpipe train --runtime``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segpipe.training.fragments import OWNED, read_fragment
from segpipe.training.planning_rules import Rule

BASE = {"cpu": "cpu", "cuda": "gpu"}  # device to the shipped fragment that a plan changes
HEAD = (
    "# Runtime fragment, planned with `segpipe plan`; what the plan chose has its reason, the rest is {base}.yaml's.\n"
)


def runtime_path(task: str | Path) -> Path:
    """Return where the runtime fragment of a planned task fragment lies: beside it."""
    return Path(task).with_name(f"{Path(task).stem}.runtime.yaml")


def planned_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the settings a runtime fragment holds."""
    return {name: value for name, value in settings.items() if name in OWNED["runtime"]}


def runtime_text(device: str, settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> str:
    """Write the whole fragment: the shipped one of the device, with the settings of the plan in their places.

    Args:
        device: ``cpu`` or ``cuda``.
        settings: id to value.
        rules: whose reasons stand above their ids.
    """
    content, _ = read_fragment("runtime", BASE[device])
    parts = [HEAD.format(base=BASE[device])]
    for name, value in (content | planned_ids(settings)).items():
        if name in settings and name in rules:
            parts.append(_comment(rules[name]))
        flow = None if isinstance(value, dict) else False
        parts.append(yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=flow, width=1000))
    return "".join(parts)


def _comment(rule: Rule) -> str:
    words = f"{rule.why} ({rule.source})"
    return textwrap.fill(words, 105, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"
