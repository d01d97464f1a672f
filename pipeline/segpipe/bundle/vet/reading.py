"""JSON and YAML read as data, more strictly than their readers do, so that two readers cannot see two documents.

Whatever is in them, reading takes time and memory in proportion to what there is, and ends at limits that no config or
manifest comes near.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from segpipe.bundle.vet.bundle_files import DOCUMENTS, METADATA, Finding, is_text, shown
from segpipe.errors import DataError

LARGEST = 32 * 2**20
LARGEST_METADATA = 2**20  # each value of it is compared with a schema
MOST_OF_YAML = 256 * 2**10  # bytes; its reader takes seconds for so many
MOST = 400_000  # values, with what YAML aliases repeat
MOST_CODE, EACH = 2**19, 50  # characters of expressions, which are parsed; as many as each takes, and each target
DEEPEST = 60
LONGEST_KEY = 1000
LONGEST_NUMBER = 100  # characters
LARGEST_NUMBER = 2**64
PLAIN = (dict, list, str, int, float, bool, date, type(None))  # date also of time
_LINE_ENDS = frozenset("\x85\u2028\u2029")  # of YAML 1.1, and not of 1.2 any more


class NotReadableError(Exception):
    """Why a document is refused as a whole."""


def read_documents(paths: Mapping[str, Path]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the JSON and YAML documents among some files, and those that cannot be read without doubt.

    The limits hold for all of them together.
    """
    documents: dict[str, Any] = {}
    unreadable: list[Finding] = []
    reader = _Reader()
    for file, path in paths.items():
        if path.suffix.lower() in DOCUMENTS:
            try:
                documents[file] = reader.read(path)
            except NotReadableError as error:
                unreadable.append(Finding(file, "", shown(str(error)), "it cannot be read without doubt"))
    return documents, unreadable


def read_document(path: Path) -> Any:
    """Read a JSON or YAML document as plain values.

    Raises:
        NotReadableError: it cannot be parsed, repeats a key, holds NaN, or is too large or nested too deeply.
    """
    return _Reader().read(path)


def read_mapping(path: Path, noun: str) -> dict[str, Any]:
    """Return a document as JSON could hold it, as the worker is handed it.

    Raises:
        DataError: it cannot be read, or is no mapping.
    """
    try:
        document = json.loads(json.dumps(read_document(path), default=str))  # dates of YAML, and keys that are numbers
    except NotReadableError as error:
        raise DataError(f"the {noun} cannot be read", path=path, found=error) from error
    if not isinstance(document, dict):
        raise DataError(f"the {noun} is not a mapping", path=path, found=type(document).__name__)
    return document


class _Reader:
    """Reads documents as long as the limits, which hold for all of them, are not reached."""

    def __init__(self) -> None:
        self._values = self._code = self._yaml = self._bytes = 0

    def read(self, path: Path) -> Any:
        """Read a document, as `read_document`."""
        try:
            self._bytes += (size := path.stat().st_size)
            most = LARGEST_METADATA if path.match(METADATA) else LARGEST
            if size > most or self._bytes > LARGEST:
                raise ValueError(f"more than {most >> 20} MiB")
            if path.suffix.lower() == ".json":
                document = _json(path.read_text(encoding="utf-8"))
            else:
                self._yaml += size
                if self._yaml > MOST_OF_YAML:
                    raise ValueError(f"more than {MOST_OF_YAML >> 10} KiB of YAML: write it as JSON")
                document = _yaml(path.read_text(encoding="utf-8"))
            self._check(document)
        except (ValueError, OSError) as error:
            raise NotReadableError(shown(str(error).replace("\n", " "))) from error
        except RecursionError as error:
            raise NotReadableError("nested too deeply") from error
        return document

    def _check(self, document: Any) -> None:
        stack = [(0, document)]
        while stack:
            depth, value = stack.pop()
            self._values += 1
            if self._values > MOST:
                raise ValueError(f"more than {MOST} values")
            if depth > DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} deep")
            if not isinstance(value, PLAIN):
                raise ValueError(f"a value of the type {type(value).__name__}")
            if isinstance(value, dict):
                if any(len(str(key)) > LONGEST_KEY for key in value):
                    raise ValueError(f"a key of more than {LONGEST_KEY} characters")
                if "_target_" in value:
                    self._check_code(0)
                stack += [(depth + 1, part) for part in (*value, *value.values())]
            elif isinstance(value, list):
                stack += [(depth + 1, part) for part in value]
            elif isinstance(value, str):
                self._check_text(value)
            elif isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
                self._check_number(value)

    def _check_text(self, text: str) -> None:
        if not is_text(text):
            raise ValueError("half a character")
        if text.startswith(("$", "@", "%")):
            self._check_code(len(text))

    def _check_code(self, length: int) -> None:
        self._code += length + EACH
        if self._code > MOST_CODE:
            raise ValueError(f"more than {MOST_CODE >> 10} KiB of targets and expressions")

    def _check_number(self, value: float) -> None:
        if isinstance(value, int):
            raise ValueError("a whole number of more than 64 bits")
        if not math.isfinite(value):
            raise ValueError("NaN or an infinite number")


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
        """The safe loader, with each key of a mapping once, short numbers, and merge keys that come to an end."""

        merged = 0

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _require_once(key.value for key in keys)
            _require_once(str(self.construct_object(key)) for key in keys if key.tag != "tag:yaml.org,2002:merge")
            return super().construct_mapping(node, deep)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            text = node.tag == "tag:yaml.org,2002:str" or not isinstance(node, yaml.ScalarNode)
            if not text and len(node.value) > LONGEST_NUMBER:
                raise ValueError(f"a number of more than {LONGEST_NUMBER} characters")
            return super().construct_object(node, deep)

        def flatten_mapping(self, node: Any) -> None:
            self.merged += len(node.value)  # counted before they are copied
            if self.merged > MOST:
                raise ValueError("merge keys that multiply what they merge")
            super().flatten_mapping(node)

    if text.startswith("\ufeff") or not _LINE_ENDS.isdisjoint(text):
        raise ValueError("a byte order mark, or a line end that not every reader takes for one")
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, OverflowError) as error:
        raise ValueError(f"{error}") from error


def _require_once(keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {shown(key)!r} stands twice in one mapping")
        seen.add(key)
