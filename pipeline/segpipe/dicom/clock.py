"""Dates and times of day of a header as seconds, in the order in which they followed each other."""

from __future__ import annotations

import datetime
import re

CLOCKS = ("AcquisitionTime", "ContentTime")  # the values that are such times
DAY_S = 86400.0


def seconds_of(when: str) -> float | None:
    """Return seconds of a date (eight digits, or spaces where there is none) and a time of day; None without a time.

    They are of UTC where an offset from it follows, else of the clock of the header.
    """
    time = re.match(r"(\d\d):?(\d\d)?:?(\d\d)?(\.\d+)?", when[8:])
    if time is None:
        return None
    hours, minutes, seconds, parts = time.groups(default="0")
    try:
        days = datetime.date(int(when[:4]), int(when[4:6]), int(when[6:8])).toordinal()
    except ValueError:
        days = 0
    clock_s = days * DAY_S + int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(parts)
    return clock_s - (offset_s(when) or 0.0)


def offset_s(when: str) -> float | None:
    """Return the seconds from UTC that stand behind a time (``&ZZXX`` of a DT), or alone; None where there are none."""
    offset = re.search(r"([+-])(\d\d)(\d\d)\s*$", when)
    return None if offset is None else float(f"{offset[1]}1") * (int(offset[2]) * 3600 + int(offset[3]) * 60)


def clock_order(times: list[float]) -> list[float]:
    """Return times of `seconds_of` as they follow each other, also across midnight where dates are missing or stay.

    Times of day lie on a circle, which is cut where nothing was acquired for longest.
    """
    if min(times) < DAY_S < max(times):  # only some have a date
        times = [time % DAY_S for time in times]
    if max(times) - min(times) < DAY_S / 2 or min(times) // DAY_S != max(times) // DAY_S:
        return times
    ordered = sorted(set(times))
    gaps = [later - earlier for earlier, later in zip(ordered, [*ordered[1:], ordered[0] + DAY_S], strict=True)]
    last = ordered[gaps.index(max(gaps))]
    return times if last == ordered[-1] else [time + DAY_S if time <= last else time for time in times]
