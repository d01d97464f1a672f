"""A label that a fold's training lacks is said by split, plan and check; cases to look at are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from segpipe.cli.app import run
from segpipe.data.label_presence import labels_not_trained
from segpipe.data.manifest import Manifest, load_manifest
from segpipe.errors import OK

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
NAMES = ["kidney_L", "kidney_R"]


def write_set(root: Path, *labels: list[int], codes: dict[int, str] | None = None) -> Path:
    """A data set with these labels in each case, imported; ``codes`` has the axes of some label maps."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, values in enumerate(labels):
        label = np.zeros((24, 22, 20), np.uint8)
        for value in values:
            label[4 * value : 4 * value + 3, 4:9, 5:11] = value
        image = np.random.default_rng(number).normal(100, 9, label.shape).astype(np.float32) + 40 * label
        stored = nib.Nifti1Image(label, np.eye(4))
        wanted = nib.orientations.axcodes2ornt((codes or {}).get(number, "RAS"))
        axes = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), wanted)
        nib.save(nib.Nifti1Image(image, np.eye(4)), root / f"images/c{number}.nii.gz")
        nib.save(stored.as_reoriented(axes), root / f"labels/c{number}.nii.gz")
    words = ["import", "--images", str(root / "images"), "--labels", str(root / "labels"), "--modality", "MRI"]
    assert run([*words, *[word for name in NAMES for word in ("--label-name", name)]]) == OK
    return root / "manifest.json"


def document(capsys: pytest.CaptureFixture[str], name: str, *words: str, code: int = OK) -> dict[str, object]:
    capsys.readouterr()
    assert run([name, *words, "--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text())).validate(printed)
    return printed


def test_split_plan_and_check_say_what_a_fold_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_set(tmp_path / "set", [1], [1], [1, 2], [1])
    split = document(capsys, "split", str(manifest), "--test", "0", "--folds", "2")
    fold = next(case.fold for case in load_manifest(manifest).training if case.id == "c2")
    words = f"fold {fold}: none of the 2 cases trained on has kidney_R, so it would not be learned"
    assert split["notes"] == [words]
    planned = document(capsys, "plan", str(manifest), "-o", str(tmp_path / "task.yaml"))
    assert planned["notes"][0] == words
    assert planned["notes"][1].startswith("kidney_L, kidney_R have a side")
    checked = document(capsys, "check", str(manifest))
    found = [each for each in checked["findings"] if each["kind"] == "label_not_trained"]
    assert [(each["case_id"], each["found"], each["severity"]) for each in found] == [("c2", words, "warning")]
    assert not (manifest.parent / "check_pictures").exists()


def test_all_is_well_or_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_set(tmp_path / "set", [1, 2], [1, 2], [2, 1], [1, 2])
    assert document(capsys, "split", str(manifest), "--test", "0", "--folds", "2")["notes"] == []
    elsewhere = tmp_path / "elsewhere.json"
    words = ["split", str(manifest), "--test", "0", "--redraw", "-o", str(elsewhere), "--folds", "2"]
    assert run(words) == OK
    (note,) = document(capsys, "split", str(elsewhere), "--test", "keep", "--redraw", "--folds", "2")["notes"]
    assert "--data" in note
    known = ["--test", "keep", "--redraw", "--folds", "2", "--data", str(manifest.parent)]
    assert document(capsys, "split", str(elsewhere), *known)["notes"] == []


def test_without_folds_and_with_unknown_cases() -> None:
    cases = [{"id": f"c{n}", "image": f"i{n}.nii", "label": f"l{n}.nii"} for n in range(3)]
    labels = {"0": "background", "1": "a", "2": "b"}
    manifest = Manifest.model_validate({"name": "x", "modality": {"0": "CT"}, "labels": labels, "training": cases})
    assert labels_not_trained(manifest, {"c0": {0, 1}, "c1": {1}, "c2": set()}) == [(None, "b")]
    assert labels_not_trained(manifest, {"c0": {0, 1}, "c1": {1}, "c2": None}) == []


def test_label_maps_that_only_some_cases_have_turned_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_set(tmp_path / "set", [1, 2], [1, 2], [1, 2], codes={1: "PRS"})
    checked = document(capsys, "check", str(manifest), "--pictures", str(tmp_path / "seen"))
    (found,) = (each for each in checked["findings"] if each["kind"] == "label_turned")
    assert (found["case_id"], found["severity"]) == ("c1", "warning")
    assert found["found"] == "the label map was stored as PRS, its image as RAS"
    assert found["expected"].startswith("stored alike, as in 2 of 3 cases")
    assert checked["pictures"] == ["c1.png"]
    assert min(Image.open(tmp_path / "seen/c1.png").size) > 300
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["c1.png"]


def test_label_maps_that_all_were_turned_are_said_where_left_and_right_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_set(tmp_path / "lps", [1, 2], [1, 2], codes=dict.fromkeys(range(2), "LPS"))
    checked = document(capsys, "check", str(manifest))
    assert checked["kinds"]["label_turned"] == 2
    found = [each["found"] for each in checked["findings"] if each["kind"] == "label_turned"]
    assert all("left and right the other way round" in words for words in found)
    assert sorted(path.name for path in (manifest.parent / "check_pictures").iterdir()) == ["c0.png", "c1.png"]
    others = write_set(tmp_path / "rps", [1, 2], [1, 2], codes=dict.fromkeys(range(2), "RPS"))
    assert "label_turned" not in document(capsys, "check", str(others))["kinds"]
