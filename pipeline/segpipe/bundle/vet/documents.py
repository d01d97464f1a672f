"""JSON and YAML read as data, more strictly than their readers do, so that two readers cannot see two documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

LARGEST = 256 * 2**20
DEEPEST = 60
MOST_OF_JSON, MOST_OF_YAML = 5_000_000, 500_000  # values in one document, with what YAML aliases repeat
PLAIN = (dict, list, str, int, float, bool, date, type(None))  # date also of time


class NotReadableError(Exception):
    """Why a document is refused as a whole."""


def read_document(path: Path) -> Any:
    """Read a JSON or YAML document as plain values.

    Raises:
        NotReadableError: it cannot be parsed, repeats a key, holds NaN, or is too large or nested too deeply.
    """
    if path.stat().st_size > LARGEST:
        raise NotReadableError(f"more than {LARGEST // 2**20} MB")
    parse, most = (_json, MOST_OF_JSON) if path.suffix.lower() == ".json" else (_yaml, MOST_OF_YAML)
    try:
        document = parse(path.read_text(encoding="utf-8"))
        _check(document, most)
    except (ValueError, OSError) as error:
        raise NotReadableError(str(error).replace("\n", " ")) from error
    except RecursionError as error:
        raise NotReadableError("nested too deeply") from error
    return document


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_once(key for key, _ in items)
        return dict(items)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, with each key of a mapping once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _require_once(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, OverflowError) as error:
        raise ValueError(f"{error}") from error


def _require_once(keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {key!r} stands twice in one mapping")
        seen.add(key)


def _check(document: Any, most: int) -> None:
    stack, count = [(0, document)], 0
    while stack:
        (depth, value), count = stack.pop(), count + 1
        if count > most:
            raise ValueError(f"more than {most} values")
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("NaN or an infinite number")
        if not isinstance(value, PLAIN):
            raise ValueError(f"a value of the type {type(value).__name__}")
        below = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
        stack += [(depth + 1, part) for part in below]
