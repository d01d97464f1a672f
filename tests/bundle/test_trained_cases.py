"""Which cases a bundle lists as trained on, of the shipped one and of lists that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle import TrainedCases
from segpipe.common.files import write_json
from segpipe.data import load_manifest

ROOT = Path(__file__).parents[2]
HIPPOCAMPUS = ROOT / "bundles/hippocampus_mri"


def bundle(root: Path, *training: str, **case: Any) -> Path:
    cases = [{"id": id, "image": f"{id}.nii", "sha256": {f"{id}.nii": id * 64}, **case} for id in training]
    write_json(root / "configs/manifest.json", {"training": cases})
    write_json(root / "provenance.json", {"split": {"training": list(training)}, "manifest": {}})
    return root


def test_the_shipped_bundle_knows_its_own_cases_by_their_images_and_none_of_its_test_cases() -> None:
    trained = TrainedCases.of([HIPPOCAMPUS])
    assert trained is not None
    split = json.loads((HIPPOCAMPUS / "provenance.json").read_text())["split"]
    manifest = load_manifest(ROOT / "data_manifests/msd_task04_hippocampus.json")

    def part_of(case_id: str) -> set[str | None]:
        case = next(case for case in manifest.cases() if case.id == case_id)
        said = trained.judge(case_id, [(case.sha256 or {})[path] for path in case.images])
        elsewhere = trained.judge("renamed", [(case.sha256 or {})[path] for path in case.images])
        return {said["image"], said["case"], elsewhere["image"]}

    for part, cases in (("training", split["training"]), ("validation", split["validation"])):
        assert (cases or part == "validation") and all(part_of(case_id) == {part} for case_id in cases)
    assert manifest.test and all(part_of(case.id) == {None} for case in manifest.test)


def test_several_bundles_list_together_what_each_was_trained_on(tmp_path: Path) -> None:
    roots = [bundle(tmp_path / "one", "a"), bundle(tmp_path / "two", "b"), tmp_path / "lists nothing"]
    trained = TrainedCases.of(roots)
    assert trained is not None and sorted(trained.cases) == ["a", "b"]
    assert trained.judge("x", ["b" * 64])["image"] == "training"


def test_what_a_first_stage_and_its_parent_were_trained_on_counts_as_well(tmp_path: Path) -> None:
    first = bundle(bundle(tmp_path, "b") / "first_stage", "a")
    record = json.loads((first / "provenance.json").read_text())
    record["parent"] = {"seen": {"is_known": True, "images": {"c" * 64: "training"}, "cases": {}}}
    write_json(first / "provenance.json", record)
    trained = TrainedCases.of([tmp_path])
    assert trained is not None and trained.judge("a", [])["case"] == "training"
    assert trained.judge("x", ["c" * 64])["image"] == "training"


def test_what_a_parent_was_trained_on_counts_as_well(tmp_path: Path) -> None:
    root = bundle(tmp_path, "a", "b")
    record = json.loads((root / "provenance.json").read_text())
    images = {"a" * 64: "validation", "c" * 64: "training", "d" * 64: "validation", "e" * 64: "patient"}
    seen = {"is_known": True, "images": images, "cases": {}}
    record["parent"] = {"seen": seen, "overlap": {"is_known": True, "cases": {"tested": "patient"}}}
    write_json(root / "provenance.json", record)
    trained = TrainedCases.of([root])
    assert trained is not None
    found = {letter: trained.judge("x", [letter * 64])["image"] for letter in "abcdef"}
    assert found == {"a": "training", "b": "training", "c": "training", "d": "validation", "e": None, "f": None}
    assert trained.judge("tested", [])["case"] == "training"
    record["parent"] = {"seen": 3}
    write_json(root / "provenance.json", record)
    assert TrainedCases.of([root]) is None


def test_channels_in_files_of_their_own_are_known_one_by_one(tmp_path: Path) -> None:
    images = {"image": ["a_0000.nii", "a_0001.nii"], "sha256": {"a_0001.nii": "e" * 64}}
    trained = TrainedCases.of([bundle(tmp_path, "a", **images)])
    assert trained is not None and trained.judge("x", ["f" * 64, "e" * 64])["image"] == "training"


@pytest.mark.parametrize(
    "provenance", ["[]", "{", "{}", '{"split": []}', '{"split": {"training": ["a"]}, "manifest": 3}']
)
def test_lists_that_cannot_be_used_are_none(tmp_path: Path, provenance: str) -> None:
    root = bundle(tmp_path, "a")
    (root / "provenance.json").write_text(provenance)
    assert TrainedCases.of([root]) is None


def test_without_hashes_the_ids_are_left(tmp_path: Path) -> None:
    trained = TrainedCases.of([bundle(tmp_path, "a", sha256=None)])
    assert trained is not None
    assert trained.judge("a", ["a" * 64]) == {"image": None, "case": "training", "manifests": []}
