"""An evaluation held against another one of the same cases, paired by patient."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy.stats import wilcoxon
from tiny_study import Study, cube

from segpipe.cli.app import run

SCHEMA = Path(__file__).parents[2] / "docs/schemas/evaluate.schema.json"


def measured(tmp_path: Path, patients: list[str]) -> Study:
    """Cubes that are predicted a voxel aside, measured; then predicted well but for the first case."""
    study = Study(tmp_path)
    for number, patient in enumerate(patients):
        study.add(f"c{number}", cube(), cube(at=3 + number % 2), patient_id=patient)
    assert study.run() == 0
    shutil.move(study.out, tmp_path / "before")
    for number in range(1, len(patients)):
        shutil.copy(tmp_path / f"labels/c{number}.nii.gz", study.predictions / f"c{number}.nii.gz")
    return study


def test_the_difference_is_paired_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = measured(tmp_path, ["a", "a", "b", "c", "d", "e", "f"])
    capsys.readouterr()
    assert study.run("--json", "--against", str(tmp_path / "before")) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    against = document["against"]
    gains = [0.0, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25]  # cubes of 4, moved by 1 and 2 voxels: Dice 0.75 and 0.5
    assert (against["evaluation"], against["cases"], against["patients"]) == ("before", 7, 6)
    assert against["difference"]["mean"] == pytest.approx(np.mean(gains))
    assert 0 < against["difference"]["low"] < np.mean(gains) < against["difference"]["high"]
    by_patient = [np.mean(gains[:2]), *gains[2:]]
    assert against["p"] == pytest.approx(float(wilcoxon(by_patient).pvalue))
    assert study.run("--against", str(tmp_path / "before")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Paired over 7 cases of 6 patients: out: mean Dice 0.3214 above before, 95 % interval +" in said


def test_who_rightly_finds_nothing_is_above_who_finds_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, nothing = Study(tmp_path), np.zeros_like(cube())
    study.add("found", nothing, cube(), patient_id="a")
    study.add("nothing", nothing, nothing, patient_id="b")
    study.add("right", cube(), cube(), patient_id="c")
    assert study.run() == 0
    shutil.move(study.out, tmp_path / "before/out")
    shutil.copy(tmp_path / "labels/found.nii.gz", study.predictions / "found.nii.gz")
    capsys.readouterr()
    assert study.run("--json", "--against", str(tmp_path / "before/out")) == 0
    against = json.loads(capsys.readouterr().out)["against"]
    assert (against["cases"], against["left_out"], against["difference"]["mean"]) == (2, 1, 0.5)
    assert study.run("--against", str(tmp_path / "before/out")) == 0
    said = capsys.readouterr().out.replace("\n", "").replace(" ", "")
    assert f"{study.out}:meanDice0.5000above{tmp_path}/before/out" in said  # one name: told by their paths
    assert "1caseleftout(nothing):noDiceoneitherside,sincenothingisthereandnothingwasfound." in said
    assert list(against["left_out_cases"]) == ["nothing"]


def test_a_case_that_failed_on_one_side_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = measured(tmp_path, ["a", "b"])
    (study.predictions / "c1.nii.gz").unlink()
    capsys.readouterr()
    assert study.run("--no-figures", "--json", "--against", str(tmp_path / "before")) == 4
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["against"]["failed_alone"] == {"reference": [], "this": ["c1"]}
    assert study.run("--no-figures", "--against", str(tmp_path / "before")) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "No fair comparison: 1 case of out alone failed (c1) and counts as Dice 0." in said


def test_with_few_patients_it_says_how_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = measured(tmp_path, ["a", "b", "b"])
    capsys.readouterr()
    assert study.run("--against", str(tmp_path / "before")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Paired over 3 cases of 2 patients" in said and "No p value: 2 patients, and fewer than 6" in said


def test_only_an_evaluation_of_the_same_cases_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = measured(tmp_path, ["a", "b"])
    capsys.readouterr()
    before = tmp_path / "before"
    assert study.run("--against", str(before), "--split", "all") == 2
    said = capsys.readouterr().err
    assert "of other cases" in said and "--split test" in said and "--split all" in said
    assert study.run("--against", str(tmp_path / "labels")) == 2
    assert "no evaluation there" in capsys.readouterr().err
    study.cases[0]["patient_id"] = "c"
    assert study.run("--against", str(before)) == 2
    assert "of another manifest" in capsys.readouterr().err
    (before / "metrics.json").write_text("{}")
    assert study.run("--against", str(before)) == 3
    hint = capsys.readouterr().err
    assert "measure it again with `segpipe evaluate`" in hint and not study.out.exists()
    manifest, predictions = str(tmp_path / "manifest.json"), str(study.predictions)
    assert run(["evaluate", manifest, predictions, "--out", str(before), "--no-figures"]) == 0
    assert study.run("--against", str(before)) == 0


def test_an_evaluation_is_not_held_against_what_it_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = measured(tmp_path, ["a", "b"])
    assert study.run() == 0
    before = (study.out / "metrics.json").read_bytes()
    for same in (study.out, study.out / ".." / study.out.name):
        assert study.run("--against", str(same)) == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert (study.out / "metrics.json").read_bytes() == before
