"""Manifests that are refused, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segpipe.data.manifest import load_manifest, parse_manifest, save_manifest
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
        {"schema_version": 3},
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


LABELS = {"0": "background", "1": "edema", "2": "necrosis", "3": "enhancing"}
NESTED = {"whole tumour": [1, 2, 3], "core": [2, 3], "enhancing tumour": [3]}


def _version_2(**changes: Any) -> dict[str, Any]:
    return _document(**{"labels": LABELS, "modality": {"0": "CT", "1": "PET"}, **changes})


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, 1),
        ({"schema_version": 2}, 1),
        ({"ignore_label": 4}, 2),
        ({"ignore_label": 255}, 2),
        ({"regions": NESTED}, 2),
        ({"units": {"1": "SUVbw"}}, 2),
    ],
)
def test_the_version_is_the_lowest_that_knows_what_is_used(
    changes: dict[str, Any], version: int, tmp_path: Path
) -> None:
    save_manifest(parse_manifest(_version_2(**changes), "m"), tmp_path / "m.json")
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["schema_version"] == version
    assert {name: written[name] for name in changes if name != "schema_version"} == {
        name: value for name, value in changes.items() if name != "schema_version"
    }
    assert load_manifest(tmp_path / "m.json").schema_version == version


@pytest.mark.parametrize(
    "field", [{"annotated_labels": ["core"]}, {"annotated_labels": [1]}, {"registered": "by hand"}]
)
def test_fields_of_a_case_make_it_version_2_also_where_they_come_later(field: dict[str, Any]) -> None:
    labels = {"0": "background", "1": "core", "2": "rim"}
    manifest = parse_manifest(_document(labels=labels), "m")
    manifest.training[0] = manifest.training[0].model_copy(update=field)
    assert manifest.dump()["schema_version"] == 2
    assert parse_manifest(manifest.dump(), "m").training[0] == manifest.training[0]


def test_what_was_looked_for_is_told_by_value_or_name() -> None:
    def annotated(*labels: int | str) -> frozenset[int] | None:
        case = {"id": "a", "image": "a", "label": "b", "annotated_labels": list(labels)}
        manifest = parse_manifest(_version_2(training=[case]), "m")
        return manifest.annotated(manifest.training[0])

    assert annotated("edema", 3) == {1, 3}
    assert annotated(2) == {2}
    assert annotated(1, 2, "enhancing") is None
    manifest = parse_manifest(_version_2(), "m")
    assert manifest.annotated(manifest.training[0]) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ignore_label": 3}, "ignore_label 3: must be a value of no label, 4 to 255"),
        ({"ignore_label": 256}, "4 to 255"),
        ({"regions": {"a": [1, 2]}}, r"labels \[3\] are of none"),
        ({"regions": {"a": [1, 2, 3], "b": [3, 2, 1]}}, "join the same labels"),
        ({"regions": {"a": [1, 2, 3], "b": []}}, "'b' joins"),
        ({"regions": {"a": [0, 1, 2, 3]}}, "'a' joins"),
        ({"regions": {"a": [1, 2, 3, 3]}}, "'a' joins"),
        ({"regions": {"background": [1, 2, 3]}}, "no name of a region"),
        ({"units": {"2": "SUVbw"}}, "no channel '2'"),
        ({"units": {"1": "kBq"}}, "units"),
        ({"training": [{"id": "a", "image": "a", "label": "b", "annotated_labels": []}]}, "annotated_labels"),
        ({"training": [{"id": "a", "image": "a", "label": "b", "annotated_labels": [0]}]}, "annotated label 0 is none"),
        ({"training": [{"id": "a", "image": "a", "label": "b", "annotated_labels": ["x"]}]}, "'a': annotated label"),
    ],
)
def test_what_labels_units_and_regions_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_manifest(_version_2(**changes), "m")
