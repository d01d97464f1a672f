from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from segpipe.common.files import write_json
from segpipe.data.manifest import Manifest

FOLDER = Path(__file__).parents[2] / "data_manifests"
SCHEMA = FOLDER / "manifest.schema.json"
LEDGER_SCHEMA = FOLDER.parent / "docs" / "schemas" / "test_readings.schema.json"


def current() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def test_the_schema_is_current():
    assert json.loads(SCHEMA.read_text()) == current(), "write it again: python tests/data/test_manifest_schema.py"


# no schema, and no ledger beside a manifest
MANIFESTS = [path for path in sorted(FOLDER.glob("*.json")) if len(path.suffixes) == 1]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_shipped_manifest_follows_it(path: Path):
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    Manifest.model_validate(document)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.test_readings.json")), ids=lambda path: path.stem)
def test_every_shipped_ledger_follows_its_schema_and_lies_beside_its_manifest(path: Path):
    jsonschema.validate(json.loads(path.read_text()), json.loads(LEDGER_SCHEMA.read_text()))
    assert path.with_name(path.name.replace(".test_readings", "")) in MANIFESTS


if __name__ == "__main__":
    write_json(SCHEMA, current())
