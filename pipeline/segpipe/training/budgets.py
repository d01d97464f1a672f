"""A budget of time: how much training is enough, and the time read from text and put into words."""

from __future__ import annotations

import math
import re

from segpipe.errors import UsageError

ENOUGH_STEPS = 1000  # of two patches; with fewer, resolution is given up for steps
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
DURATION = re.compile(r"(\d{1,6}(?:\.\d+)?)\s*(h|min|m|s)\s*")


def parse_budget(text: str | float) -> float:
    """Return the seconds of a budget such as ``2h``, ``1h30m``, ``45m`` or ``90s``; a number is seconds.

    Raises:
        UsageError: it is none.
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text) and text > 0:
        return float(text)
    parts = DURATION.findall(str(text).strip().lower())
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if seconds <= 0 or DURATION.sub("", str(text).strip().lower()):
        raise UsageError("not a budget of time", found=text, expected="a number and a unit, e.g. 2h, 90m or 1h30m")
    return seconds


def duration(seconds: float) -> str:
    """Return a time in words, to two units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if not hours:
        whole, left = divmod(round(seconds), 60)
        return f"{whole} min {left} s" if left else f"{whole} min"
    return f"{hours} h {rest} min" if rest else f"{hours} h"
