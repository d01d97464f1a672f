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


def current() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def test_the_schema_is_current():
    assert json.loads(SCHEMA.read_text()) == current(), "write it again: python tests/test_manifest_schema.py"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_manifest_follows_it(path: Path):
    if path != SCHEMA:
        document = json.loads(path.read_text())
        jsonschema.validate(document, json.loads(SCHEMA.read_text()))
        Manifest.model_validate(document)


if __name__ == "__main__":
    write_json(SCHEMA, current())
