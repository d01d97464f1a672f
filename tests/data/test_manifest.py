"""Manifests that are refused, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segpipe.data.manifest import load_manifest, parse_manifest
from segpipe.errors import DataError


def _document(**changes: Any) -> dict[str, Any]:
    case = {"id": "a", "image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    labels = {"0": "background", "1": "liver"}
    return {"name": "tiny", "modality": {"0": "CT"}, "labels": labels, "training": [case], **changes}


def test_a_manifest_is_read() -> None:
    manifest = parse_manifest(_document(), "manifest.json")
    assert [case.id for case in manifest.cases()] == ["a"]
    assert manifest.foreground == {1: "liver"}


@pytest.mark.parametrize("name", ["", "a\n", "a b", "../a", "-a", "a" * 129, "ä", "a/b"])
def test_ids_that_are_no_safe_file_name_are_refused(name: str) -> None:
    case = {"id": name, "image": "a.nii.gz", "label": "b.nii.gz"}
    with pytest.raises(DataError, match="id"):
        parse_manifest(_document(training=[case]), "manifest.json")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a.nii.gz", "a/../../b.nii.gz", "a\\b.nii.gz"])
def test_paths_that_leave_the_data_are_refused(path: str) -> None:
    with pytest.raises(DataError, match="relative to the data folder"):
        parse_manifest(_document(training=[{"id": "a", "image": path, "label": "b.nii.gz"}]), "manifest.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {}},
        {"labels": {"0": "background"}},
        {"labels": {"0": "liver", "1": "background"}},
        {"labels": {"0": "background", "1": "x", "2": "x"}},
        {"labels": {"0": "background", "2": "x"}},
        {"labels": {"0": "background", "١": "x"}},
        {"labels": ["background", "x"]},
        {"modality": {}, "training": [{"id": "a", "image": ["a", "b"], "label": "c"}]},
        {"modality": {"0": 5}},
        {"training": {}},
        {"training": [{"id": "a", "image": [], "label": "c"}]},
        {"training": [{"id": "a", "image": "a"}]},
        {"training": [{"id": "a", "image": "a", "label": "b", "fold": -1}]},
        {"training": [{"id": "a", "image": "a", "label": "b", "kind": 1}]},
        {"training": [{"id": "a", "image": "a", "label": "b"}] * 2},
        {"name": None},
        {"schema_version": 2},
    ],
)
def test_other_mistakes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the manifest is not valid"):
        parse_manifest(_document(**changes), "manifest.json")


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "null", "5", '"a"', "[" * 100_000, "{" * 100_000, r'{"name": "\ud800"}']
)
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(DataError):
        load_manifest(path)
