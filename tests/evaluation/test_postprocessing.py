"""A clean-up rule is chosen where it helps beyond doubt, and never on test cases."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.evaluation.postprocessing import CANDIDATES, apply_rule, try_rules
from segpipe.inference.cleanup import LabelRule, read_rules

LABELS = {1: "head", 2: "tail"}


def write_study(root: Path, specks: bool, section: str = "training", n: int = 6) -> list[str]:
    """Predictions of two labels that are right but for a speck of label 1 far from it."""
    cases = []
    for number in range(n):
        truth = np.zeros((12, 12, 8), np.uint8)
        truth[1:5, 1:5, 1 : 4 + number % 3], truth[6:9, 6:9, 2:5] = 1, 2
        prediction = truth.copy()
        prediction[1, 1, 1] = 0
        if specks:
            prediction[10, 10, 6:] = 1
        for folder, array in {"labels": truth, "predictions": prediction}.items():
            (root / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / folder / f"c{number}.nii.gz")
        case = {"id": f"c{number}", "image": "i.nii", "label": f"labels/c{number}.nii.gz"}
        cases.append({**case, "fold": 0} if section == "training" else case)
    manifest = {
        "schema_version": 1,
        "name": "tiny",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "head", "2": "tail"},
        section: cases,
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    words = ["evaluate", str(root / "manifest.json"), str(root / "predictions"), "--out", str(root / "out")]
    return [*words, "--no-figures"]


def test_largest_component_is_chosen_where_it_helps(tmp_path: Path, capsys) -> None:
    words = write_study(tmp_path, specks=True)
    assert run([*words, "--split", "validation", "--fold", "0", "--try-postprocessing"]) == 0
    assert read_rules(tmp_path / "out/postprocessing.json") == {1: LabelRule(keep_largest=True)}
    document = json.loads((tmp_path / "out/postprocessing.json").read_text())
    head = document["evidence"]["labels"]["1"]
    assert head["candidates"][0]["low"] > 0 and head["candidates"][0]["n"] == 6
    assert all(entry["mean_gain"] <= 0 for entry in document["evidence"]["labels"]["2"]["candidates"])
    printed = capsys.readouterr()
    assert "largest component" in printed.out and "none helps" in printed.out and printed.err == ""


@pytest.mark.parametrize("as_masks", [True, False])
def test_a_rule_is_chosen_for_a_region(tmp_path: Path, as_masks: bool) -> None:
    """A speck of the inner label is one of both regions: each gains by itself; a label map and masks say the same."""
    words = write_study(tmp_path, specks=True)
    document = json.loads((tmp_path / "manifest.json").read_text())
    document |= {"schema_version": 2, "regions": {"both": [1, 2], "tail": [2], "head": [1]}}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    for path in (tmp_path / "predictions").iterdir() if as_masks else ():
        labels = np.asarray(nib.load(path).dataobj)
        masks = np.stack([labels > 0, labels == 2, labels == 1], -1).astype(np.uint8)
        nib.save(nib.Nifti1Image(masks, np.eye(4)), path)
    assert run([*words, "--split", "validation", "--fold", "0", "--try-postprocessing"]) == 0
    rules = read_rules(tmp_path / "out/postprocessing.json")
    assert set(rules) == {1, 3} and rules[3] == LabelRule(keep_largest=True)
    assert rules[1] == LabelRule(False, 0.01)  # of two organs the largest is not all
    evidence = json.loads((tmp_path / "out/postprocessing.json").read_text())["evidence"]["labels"]
    assert [evidence[number]["name"] for number in "123"] == ["both", "tail", "head"]


def test_no_rule_where_nothing_is_gained(tmp_path: Path) -> None:
    words = write_study(tmp_path, specks=False)
    assert run([*words, "--split", "validation", "--fold", "0", "--try-postprocessing"]) == 0
    assert read_rules(tmp_path / "out/postprocessing.json") == {}


@pytest.mark.parametrize("split", ["test", "all"])
def test_refuses_test_cases(tmp_path: Path, capsys, split: str) -> None:
    words = write_study(tmp_path, specks=True, section="test")
    assert run([*words, "--split", split, "--try-postprocessing"]) == 5
    assert "never chosen on test cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_removed_false_positive_is_a_gain() -> None:
    truth, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    prediction[1, 1, 1] = 2
    head, tail = try_rules(truth, prediction, LABELS, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert head.before == 1 and set(head.after) == {1.0}
    after = dict(zip(CANDIDATES, tail.after, strict=True))
    assert tail.before == 0
    assert after[LabelRule(True)] == 0 and after[LabelRule(False, 0.01)] == 1


def test_rules_know_the_voxel_volume() -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[0, 0, :3], mask[4:, 4:, 4:] = True, True
    for spacing, left in ((1.0, 64), (2.0, 67)):  # 3 mm3 and 24 mm3 against 10 mm3
        cleaned = apply_rule(LabelRule(False, 0.01), mask, np.diag([spacing] * 3 + [1.0]))
        assert cleaned.sum() == left
