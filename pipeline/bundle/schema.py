"""``metadata.json`` against our schema where it is a bundle of ours, else against the core of MONAI's specification.

``golden.json`` against the schema of golden cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pipeline.bundle.finding import Finding, shown

FILE = "configs/metadata.json"
_OURS = {"commands", "config_requirements", "evaluate_section"}
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
# https://docs.monai.io/en/stable/mb_specification.html: what a bundle must say, without which nobody can run it
CORE: Mapping[str, Any] = {
    "type": "object",
    "required": ["version", "monai_version", "pytorch_version", "network_data_format"],
    "properties": {
        "version": _TEXT,
        "monai_version": _TEXT,
        "pytorch_version": _TEXT,
        "numpy_version": _TEXT,
        "changelog": _OBJECT,
        "required_packages_version": _OBJECT,
        "optional_packages_version": _OBJECT,
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _OBJECT, "outputs": _OBJECT},
        },
    },
}


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether metadata was written by `segpipe export`."""
    return set(metadata) >= _OURS


def vet_schema(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Each place where metadata is not as its schema says."""
    yield from breaches(metadata, _packaged("bundle_metadata") if is_ours(metadata) else CORE, FILE)


def vet_golden_schema(document: Any, file: str) -> Iterator[Finding]:
    """The same of ``golden.json``."""
    yield from breaches(document, _packaged("golden"), file)


def breaches(document: Any, schema: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Each place where a document is not as a schema says."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(document):
        place = "::".join(str(part) for part in error.absolute_path)
        yield Finding(file, place, shown(error.instance) if place else "", shown(error.message))


@cache
def _packaged(name: str) -> dict[str, Any]:
    text = (files("pipeline") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
