"""What holds for every manifest: it comes back as written, and its splits partition the cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.common.image_names import image_stem
from segpipe.data.manifest import Manifest, data_root, load_manifest, parse_manifest, save_manifest
from segpipe.errors import DataError, UsageError

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
parts = st.text("abcXYZ019 ._-äß", min_size=1, max_size=8).filter(lambda part: part.strip(".") != "")
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid manifest of up to six cases."""
    channels = draw(st.integers(1, 3))
    foreground = draw(st.lists(names.filter(lambda name: name != "background"), min_size=1, max_size=4, unique=True))
    known = draw(st.lists(ids, max_size=6, unique=True))
    n_training = draw(st.integers(0, len(known)))
    cases = []
    for number, case_id in enumerate(known):
        many = draw(st.booleans())
        case: dict[str, Any] = {"id": case_id, "image": draw(paths)}
        if many and channels > 1:
            case["image"] = [draw(paths) for _ in range(channels)]
        if number < n_training or draw(st.booleans()):
            case["label"] = draw(paths)
        if number < n_training and draw(st.booleans()):
            case["fold"] = draw(st.integers(0, 3))
        if draw(st.booleans()):
            case["patient_id"] = draw(names)
        cases.append(case)
    return {
        "name": draw(names),
        "licence": draw(names),
        "modality": {str(index): draw(st.sampled_from(["CT", "MRI"])) for index in range(channels)},
        "labels": {"0": "background", **{str(n): name for n, name in enumerate(foreground, 1)}},
        "training": cases[:n_training],
        "test": cases[n_training:],
    }


@settings(max_examples=40)
@given(document=documents())
def test_a_manifest_comes_back_as_it_was_written(
    document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = parse_manifest(document, "m.json")
    assert Manifest.model_validate(manifest.dump()) == manifest
    path = tmp_path_factory.getbasetemp() / "round.json"
    save_manifest(manifest, path)
    assert load_manifest(path) == manifest
    written = json.loads(path.read_text())
    assert {name: written[name] for name in document} == document  # nothing lost, nothing bent
    assert (written["numTraining"], written["numTest"]) == (len(document["training"]), len(document["test"]))


@settings(max_examples=40)
@given(document=documents())
def test_each_fold_and_the_rest_are_the_training_cases(document: dict[str, Any]) -> None:
    manifest = parse_manifest(document, "m.json")
    known = [case.id for case in manifest.training]
    assert [case.id for case in manifest.select("training")] == known
    assert manifest.select("all") == manifest.select("training") + manifest.select("test")
    for fold in manifest.folds():
        held = [case.id for case in manifest.select("validation", fold)]
        rest = [case.id for case in manifest.select("training", fold)]
        assert held and sorted(held + rest) == sorted(known)
        assert all(case.fold == fold for case in manifest.select("validation", fold))
    for split, fold in (("validation", None), ("training", 99), ("validation", -1), ("tests", None)):
        with pytest.raises(UsageError):
            manifest.select(split, fold)


def document(**changes: Any) -> dict[str, Any]:
    case = {"id": "a", "image": "i/a.nii", "label": "l/a.nii"}
    labels = {"0": "background", "1": "liver"}
    return {"schema_version": 1, "name": "d", "modality": {"0": "CT"}, "labels": labels, "training": [case], **changes}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"modality": {"1": "CT"}}, "modality: keys"),
        ({"modality": {}}, "modality: .*at least one"),
        ({"modality": {"00": "CT"}}, "modality: key '00'"),
        ({"labels": {"0": "background", "2": "x"}}, "labels: keys"),
        ({"labels": {"0": "background", **{str(n): f"l{n}" for n in range(1, 257)}}}, "labels: at most 255"),
        ({"training": [{"id": "a", "image": "a.nii", "label": "../b.nii"}]}, r"training\.0\.label: path"),
        ({"training": [{"id": "a b", "image": "a.nii", "label": "b.nii"}]}, r"training\.0\.id: case id"),
        ({"test": [{"id": "t", "image": "t.nii", "fold": "one"}]}, r"test\.0\.fold"),
        ({"test": [{"id": "a", "image": "t.nii"}]}, "case id 'a' stands 2 times"),
        ({"test": [{"id": "t", "image": ["a.nii", "b.nii"]}]}, "'t' has 2 image files, expected 1 or 1"),
        ({"training": [{"id": "a", "image": "a.nii"}]}, "'a' has no label"),
        ({"licens": "CC0"}, "licens: "),
    ],
)
def test_a_fault_names_its_field(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document(**changes)))
    with pytest.raises(DataError, match=field) as caught:
        load_manifest(path)
    assert caught.value.path == str(path)


def test_labels_and_channels_are_in_the_order_of_their_numbers() -> None:
    labels = {str(n): f"l{n}" for n in range(11, 0, -1)}
    manifest = parse_manifest(document(labels={**labels, "0": "background"}, modality={"1": "T2", "0": "T1"}), "m")
    assert list(manifest.foreground.items()) == [(n, f"l{n}") for n in range(1, 12)]
    assert manifest.channels == ["T1", "T2"]


def test_a_stated_number_of_cases_is_counted_again() -> None:
    assert parse_manifest(document(numTraining=99, numTest=7), "m").dump()["numTraining"] == 1


def test_a_dataset_json_is_told_from_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], "labels": {}}))
    with pytest.raises(DataError, match=r"Decathlon dataset\.json") as caught:
        load_manifest(tmp_path / "dataset.json")
    assert "segpipe import" in str(caught.value.hint)


def test_a_case_without_patient_stands_for_itself() -> None:
    cases = [{"id": name, "image": "a", "label": "b"} for name in ("a", "b")]
    manifest = parse_manifest(document(training=[{**cases[0], "patient_id": "p"}, cases[1]]), "m")
    assert [case.group for case in manifest.training] == ["p", "b"]


def test_paths_start_from_the_manifest_s_folder_unless_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "data" / "m.json")
    (tmp_path / "data" / "m.json").touch()
    assert data_root(tmp_path / "link.json") == (tmp_path / "data").resolve()
    assert data_root("m.json", tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no such data folder"):
        data_root("m.json", tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii.gz", "a"), ("x/b.c.NII", "b.c"), ("d.NII.GZ", "d"), ("e.gz", "e"), ("f.nii.nii.gz", "f.nii")],
)
def test_the_stem_of_a_scan(name: str, stem: str) -> None:
    assert image_stem(name) == stem
