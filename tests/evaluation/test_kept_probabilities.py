"""Calibration from probabilities that lie beside a prediction, and what happens where they cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.evaluation.measure.probabilities import expected_calibration_error

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (8, 7, 6)
LABELS = {"0": "background", "1": "head", "2": "tail"}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


class Study:
    """Two cases with label maps; probabilities as a test gives them."""

    def __init__(self, root: Path, labels: dict[str, str] = LABELS) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        self.truth = rng.integers(0, len(labels), SHAPE).astype(np.uint8)
        scores = rng.random((*SHAPE, len(labels))).astype(np.float32)
        self.scores = scores / scores.sum(-1, keepdims=True)
        for id in ("a", "b"):
            save(root / f"labels/{id}.nii.gz", self.truth)
            save(root / f"predictions/{id}/segmentation.nii.gz", self.scores.argmax(-1).astype(np.uint8))
        cases = [{"id": id, "image": f"{id}.nii.gz", "label": f"labels/{id}.nii.gz"} for id in ("a", "b")]
        manifest = {
            "schema_version": 1,
            "name": "tiny",
            "modality": {"0": "MRI"},
            "labels": labels,
            "training": [],
            "test": cases,
        }
        (root / "manifest.json").write_text(json.dumps(manifest))

    def keep(self, id: str, scores: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        save(self.root / f"predictions/{id}/probabilities.nii.gz", scores, affine)

    def run(self) -> tuple[int, dict[str, Any]]:
        words = [str(self.root / "manifest.json"), str(self.root / "predictions")]
        code = run(["evaluate", *words, "--out", str(self.root / "out"), "--no-figures"])
        report = json.loads((self.root / "out/metrics.json").read_text(), parse_constant=pytest.fail)
        jsonschema.validate(report, json.loads((SCHEMAS / "metrics.schema.json").read_text()))
        return code, report


def test_ece_of_every_label_and_of_the_case(tmp_path: Path, capsys) -> None:
    study = Study(tmp_path)
    study.keep("a", study.scores)
    code, report = study.run()
    assert code == 0
    first, second = report["cases"]
    expected = [expected_calibration_error(study.truth == value, study.scores[..., value]) for value in (1, 2)]
    assert [label["ece"] for label in first["labels"]] == pytest.approx(expected)
    assert [label["ece"] for label in second["labels"]] == [None, None]
    assert first["remark"] is None and second["remark"] is None
    assert report["summary"]["overall"]["metrics"]["ece"]["mean"] == pytest.approx(np.mean(expected))
    assert report["summary"]["overall"]["metrics"]["ece"]["n"] == 1
    printed = capsys.readouterr()
    assert "ece" in printed.out and printed.err == ""


def test_without_any_the_table_does_not_speak_of_it(tmp_path: Path, capsys) -> None:
    study = Study(tmp_path)
    code, report = study.run()
    assert code == 0 and report["summary"]["overall"]["metrics"]["ece"]["n"] == 0
    printed = capsys.readouterr().out
    assert "ece" not in printed.split() and "precision" in printed and "lesion_f1" in printed


def test_one_channel_a_label_is_sigmoid(tmp_path: Path) -> None:
    study = Study(tmp_path, {"0": "background", "1": "head"})
    study.keep("a", study.scores[..., 1:])  # NIfTI drops the last axis of one
    study.keep("b", study.scores)
    code, report = study.run()
    assert code == 0
    one, other = (case["labels"][0]["ece"] for case in report["cases"])
    assert one == pytest.approx(other) and one > 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("channels", "5 channels, expected 3, or 2 without background"),
        ("values", "no probabilities"),
        ("nan", "no probabilities"),
        ("grid", "not on the grid"),
        ("shape", "not on the grid"),
        ("broken", "cannot read"),
    ],
)
def test_what_cannot_be_used_is_said_and_costs_nothing_else(tmp_path, capsys, fault, words) -> None:
    study = Study(tmp_path)
    scores, affine = study.scores.copy(), AFFINE
    if fault == "channels":
        scores = np.repeat(scores[..., :1], 5, -1)
    elif fault == "values":
        scores = scores * 7
    elif fault == "nan":
        scores[0, 0, 0, 1] = np.nan
    elif fault == "grid":
        affine = np.diag([1.0, 1.0, 2.1, 1.0])
    elif fault == "shape":
        scores = scores[1:]
    study.keep("a", scores, affine)
    if fault == "broken":
        path = study.root / "predictions/a/probabilities.nii.gz"
        path.write_bytes(path.read_bytes()[:60])
    code, report = study.run()
    assert code == 0
    case = report["cases"][0]
    assert words in case["remark"] and str(tmp_path) not in case["remark"]
    assert case["failure"] is None and case["mean_dice"] == report["cases"][1]["mean_dice"]
    assert [label["ece"] for label in case["labels"]] == [None, None]
    error = capsys.readouterr().err
    assert "1 case(s) have no calibration error" in error and words in " ".join(error.split())


def test_probabilities_are_no_label_map_of_another_case(tmp_path: Path, capsys) -> None:
    study = Study(tmp_path)
    study.keep("b", study.scores)
    (study.root / "predictions/b/segmentation.nii.gz").unlink()
    assert study.run()[0] == 4
    assert "belong to no case" not in capsys.readouterr().err
