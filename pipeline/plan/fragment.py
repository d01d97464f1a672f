"""The task fragment as YAML text, with the reason and the source of each value beside it."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from pipeline.plan import Plan

RULE_OF = {
    "patch_size": "patch_size",
    "Orientationd": "orientation",
    "Spacingd": "spacing_mm",
    "ScaleIntensityRanged": "intensity",
    "NormalizeIntensityd": "intensity",
}
HEAD = """\
# Task fragment, planned from {cases} training cases with `segpipe plan`. To be read, and changed by hand:
# the same transforms serve training, validation and inference.
"""


def fragment_text(plan: Plan, cases: int) -> str:
    """The fragment of a plan; `yaml.safe_load` of it gives ``plan.task``."""
    parts = [HEAD.format(cases=cases)]
    for key, value in plan.task.items():
        if key == "deterministic_transforms":
            parts.append(f"\n{key}:\n")
            parts += [_comment(plan, item["_target_"], "  ") + _yaml([item], "  ") for item in value]
        else:
            parts.append(("\n" if key in RULE_OF else "") + _comment(plan, key, "") + _yaml({key: value}, ""))
    return "".join(parts)


def _comment(plan: Plan, key: str, indent: str) -> str:
    if key not in RULE_OF:
        return ""
    rule = plan.rules[RULE_OF[key]]
    return textwrap.fill(
        f"{rule.why} ({rule.source})", 105,
        initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False,
    ) + "\n"  # fmt: skip


def _yaml(value: Any, indent: str) -> str:
    flow = None if any(isinstance(part, list | dict) for part in _parts(value)) else False
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=flow, width=1000, allow_unicode=True)
    return textwrap.indent(text, indent)


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
