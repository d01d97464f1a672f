"""Plain ``@references`` of a config, followed as data: nothing is instantiated or evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segpipe.errors import DataError

MOST_RESOLVED = 1_000_000  # values that a config may become, as references to references can double at each step
_REFERENCE = re.compile(r"^@(\w+(?:(?:#|::)\w+)*)$")


def resolve(
    value: Any, config: Mapping[str, Any], seen: frozenset[str] = frozenset(), left: list[int] | None = None
) -> Any:
    """Return ``value`` with each string that is one ``@id`` replaced by that id's value in ``config``.

    What cannot be followed (an unknown id, a circle, an expression) stays as it is written.

    Raises:
        DataError: it would become more than `MOST` values.
    """
    left = [MOST_RESOLVED] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise DataError("the config's references grow beyond any use", expected=f"at most {MOST_RESOLVED} values")
    if isinstance(value, Mapping):
        return {key: resolve(item, config, seen, left) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, config, seen, left) for item in value]
    match = _REFERENCE.match(value) if isinstance(value, str) else None
    if match is None or value in seen:
        return value
    target: Any = config
    for part in re.split("#|::", match[1]):
        if isinstance(target, Mapping) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdecimal() and int(part) < len(target):
            target = target[int(part)]
        else:
            return value
    return resolve(target, config, seen | {value}, left)


def is_plain(value: Any) -> bool:
    """Return whether a value holds no reference, expression or macro any more."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return not (isinstance(value, str) and value[:1] in ("@", "$", "%"))
