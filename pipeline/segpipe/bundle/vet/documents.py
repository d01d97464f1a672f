"""JSON and YAML read as data, more strictly than their readers do, so that two readers cannot see two documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 256 * 2**20
DEEPEST = 60
MOST = 5_000_000  # values in one document, with what YAML aliases repeat
MOST_OF_YAML = 500_000


class NotReadableError(Exception):
    """Why a document is refused as a whole."""


def read_document(path: Path) -> Any:
    """A JSON or YAML document as plain values.

    Raises:
        NotReadableError: it cannot be parsed, repeats a key, holds NaN, or is too large or nested too deeply.
    """
    if path.stat().st_size > LARGEST:
        raise NotReadableError(f"more than {LARGEST // 2**20} MB")
    try:
        text = path.read_text(encoding="utf-8")
        json_file = path.suffix.lower() == ".json"
        document = _json(text) if json_file else _yaml(text)
        _check(document, MOST if json_file else MOST_OF_YAML)
    except (ValueError, OSError) as error:
        raise NotReadableError(str(error).replace("\n", " ")) from error
    except RecursionError as error:
        raise NotReadableError("nested too deeply") from error
    return document


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            raise ValueError(
                f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one mapping"
            )
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, with each key of a mapping once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise ValueError(f"the key {key!r} stands twice in one mapping")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, OverflowError) as error:
        raise ValueError(f"{error}") from error


def _check(document: Any, most: int) -> None:
    for count, (depth, value) in enumerate(_values(document)):
        if count >= most:
            raise ValueError(f"more than {most} values")
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("NaN or an infinite number")
        if not isinstance(value, (dict, list, str, int, float, bool, type(None))) and not _is_date(value):
            raise ValueError(f"a value of the type {type(value).__name__}")


def _values(document: Any) -> Iterator[tuple[int, Any]]:
    stack = [(0, document)]
    while stack:
        depth, value = stack.pop()
        yield depth, value
        if isinstance(value, dict):
            stack += [(depth + 1, each) for each in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            stack += [(depth + 1, each) for each in value]


def _is_date(value: object) -> bool:
    return type(value).__module__ == "datetime"
