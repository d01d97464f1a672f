"""Single values of a header, read so that a broken one is an absent one.

pydicom converts values when they are asked for, and raises whatever a broken one leads it to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ASCII = frozenset(["CS", "DA", "DS", "DT", "IS", "TM", "UI"])  # no character set changes them
BLOCKS = range(0x10, 0x20)  # where private creators are, in practice


def text(dataset: Dataset, name: str) -> str:
    """A value as text, several joined by backslashes; empty where it is absent or cannot be read."""
    tag, vr = _tag(name)
    if tag not in dataset.keys():  # noqa: SIM118 - a data set's own `in` is ten times slower, and most are absent
        return ""
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.VR in (vr, None) and isinstance(raw.value, bytes):
        if vr in ASCII:  # what pydicom would make of it takes most of the time of a scan
            return "\\".join(part.strip("\0 ") for part in raw.value.decode("latin-1").split("\\"))
        if vr == "US" and len(raw.value) == 2:
            return str(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big"))
    value = _get(dataset, tag)
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value).strip()
    return "\\".join(str(part).strip() for part in value)


def numbers(value: Any) -> tuple[float, ...]:
    """Finite numbers of a value of any form; empty where one of them is none."""
    if value is None or isinstance(value, bytes):
        return ()
    parts = value.split("\\") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return ()
    return found if all(math.isfinite(number) for number in found) else ()


def whole_number(dataset: Dataset, name: str) -> int | None:
    """A whole number, or None."""
    found = numbers(text(dataset, name))
    return int(found[0]) if found else None


def items(dataset: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or cannot be read."""
    value = _get(dataset, _tag(name)[0])
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else []


def private_value(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """A private value, or None."""
    present = dataset.keys()
    for block in BLOCKS:
        place = group << 16 | block
        if place in present and str(_get(dataset, BaseTag(place))).strip() == creator:
            return _get(dataset, BaseTag(group << 16 | block << 8 | element))
    return None


def _get(dataset: Dataset, tag: BaseTag) -> Any:
    if tag not in dataset.keys():  # noqa: SIM118 - see `text`
        return None
    try:
        return dataset[tag].value
    except Exception:  # noqa: BLE001 - see above
        return None


@cache
def _tag(name: str) -> tuple[BaseTag, str]:
    tag = Tag(name)
    return tag, dictionary_VR(tag)
