"""Test cases are counted when they are read, and are none where the model was trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_study import Study, cube, save

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.data import readings_of
from segpipe.evaluation import evaluate

SEEN_BEFORE = "1 model has been measured on this test set so far"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def predicted(study: Study, id: str, weights: str = "a", training: dict[str, Any] | None = None) -> None:
    """A label map as `segpipe predict` leaves it, of a bundle with these weights."""
    path = save(study.predictions / id / "segmentation.nii.gz", cube(at=3))
    result = {
        "id": id,
        "bundle": {"name": f"bundle {weights}", "version": "1.0.0", "sha256": weights * 64},
        "model": {"files": {"models/model.pt": weights * 64}, "postprocessing": []},
        "ensemble": [],
        "mirror": [],
        "runtime": "torch",
        "engine": "streaming",
        "versions": {"segpipe": "1"},
        "source_sha256": ["d" * 64],
        "sha256": {path.name: sha256_of(path)},
        "training": training,
    }
    (path.parent / "result.json").write_text(json.dumps(result))


def seen(image: str | None = None, case: str | None = None, *manifests: str) -> dict[str, Any]:
    return {"image": image, "case": case, "manifests": list(manifests)}


def test_a_model_that_is_measured_again_is_one_reading_and_another_is_a_second(study: Study, capsys) -> None:
    study.add("a", cube(), None)
    study.add("b", cube(), None, "training", fold=0)
    for id in ("a", "b"):
        predicted(study, id)
    manifest = study.root / "manifest.json"
    assert study.run("--split", "validation", "--fold", "0") == 0
    assert study.report()["test_readings"] is None and readings_of(manifest) == []
    assert study.run("--reason", "first release") == 0
    assert f"{SEEN_BEFORE}, this one among them" in capsys.readouterr().out
    assert study.run("--split", "all") == 0
    predicted(study, "a", "e")
    assert study.run() == 0
    assert "2 models have been measured" in capsys.readouterr().out
    assert study.report()["test_readings"] == {
        "count": 2,
        "file": "manifest.test_readings.json",
        "reason": None,
        "note": None,
    }
    first, second = readings_of(manifest)
    assert (first.times, first.cases, first.reason) == (2, 1, "first release")
    assert [reading.bundle and reading.bundle.sha256[0] for reading in (first, second)] == ["a", "e"]


def test_label_maps_of_an_unknown_model_count_once_as_long_as_they_are_the_same(study: Study) -> None:
    study.add("a", cube(), cube(at=3))
    assert study.run() == study.run() == 0
    save(study.predictions / "a.nii.gz", cube(at=1))
    assert study.run() == 0
    assert [(reading.bundle, reading.times) for reading in readings_of(study.root / "manifest.json")] == [
        (None, 2),
        (None, 1),
    ]


def test_where_nothing_was_predicted_no_model_was_measured(study: Study) -> None:
    study.add("a", cube(), None)
    study.predictions.mkdir(exist_ok=True)
    save(study.predictions / "of_another_case.nii.gz", cube())
    assert study.run() == 4
    assert readings_of(study.root / "manifest.json") == [] and study.report()["test_readings"] is None


def test_a_ledger_that_cannot_be_written_is_a_warning(study: Study, capsys, monkeypatch) -> None:
    def refuse(path: Path, document: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("segpipe.data.reading_ledger.write_json", refuse)
    study.add("a", cube(), cube())
    assert study.run() == 0
    printed = capsys.readouterr()
    assert SEEN_BEFORE in printed.out and "not in its ledger" in printed.err and "Read-only" in printed.err
    note = study.report()["test_readings"]["note"]
    assert note == "the ledger manifest.test_readings.json could not be written (Read-only file system)"


def test_what_cannot_be_counted_is_not_measured(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    ledger = study.root / "manifest.test_readings.json"
    ledger.write_text("{")
    assert study.run() == 3
    assert "ledger" in capsys.readouterr().err and not study.out.exists()
    ledger.unlink()
    assert study.run("--reason", " ") == 2
    assert study.run() == 0


def test_in_python_the_reading_is_counted_without_a_folder_too(study: Study) -> None:
    study.add("a", cube(), cube())
    assert study.run() == 0
    save(study.predictions / "a.nii.gz", cube(at=1))
    evaluation = evaluate(study.root / "manifest.json", study.predictions, reason="a look")
    assert evaluation.readings is not None and evaluation.readings.count == 2


@pytest.mark.parametrize("part", ["training", "validation"])
def test_cases_of_the_training_are_not_called_test_cases(study: Study, capsys, part: str) -> None:
    study.add("a", cube(), None)
    study.add("b", cube(), None)
    predicted(study, "a", training=seen(part))
    predicted(study, "b", training=seen())
    assert study.run() == 5
    said = capsys.readouterr().err
    assert "cases that the model was trained on cannot be called test cases" in said
    assert "1 of 2: a" in said and "bundle a 1.0.0 (aaaaaaaaaaaa)" in said and "--split all" in said
    assert not any(study.out.iterdir()) and readings_of(study.root / "manifest.json") == []
    assert study.run("--split", "all") == 0  # as the hint says
    trained = part == "training"
    assert study.report().get("seen_in_training") == (["a"] if trained else None)
    assert ("figures are too good" in capsys.readouterr().err) is trained
    predicted(study, "a", training=seen())
    assert study.run() == 0


def test_an_id_is_the_same_case_in_the_manifest_of_the_training_alone(study: Study, capsys) -> None:
    study.add("a", cube(), None)
    predicted(study, "a", training=seen(None, "training", "f" * 64))
    assert study.run() == 0
    predicted(study, "a", training=seen(None, "training", "f" * 64, sha256_of(study.root / "manifest.json")))
    assert run(["evaluate", str(study.root / "manifest.json"), str(study.predictions), "--out", str(study.out)]) == 5
    assert "a" in capsys.readouterr().err


def test_results_without_the_list_are_measured_as_before(study: Study) -> None:
    study.add("a", cube(), None)
    predicted(study, "a", training=None)
    assert study.run() == 0


def test_where_patients_are_unknown_nothing_claims_an_interval_over_them(study: Study, capsys) -> None:
    for id in ("a", "b", "c"):
        study.add(id, cube(), cube())
    study.draws = True
    assert study.run("--worst", "0") == 0
    said = capsys.readouterr().out
    assert "interval over cases" in said and "patients unknown" in said
    assert study.report()["bootstrap"]["unit"] == "case"
    page = (study.out / "report.html").read_text()
    assert "cases of unknown patients" in page and "draws of cases" in page
    study.cases[0]["patient_id"] = "P1"
    study.cases[1]["patient_id"] = study.cases[2]["patient_id"] = "P2"
    assert study.run("--no-figures") == 0
    assert "interval over patients" in capsys.readouterr().out
    assert study.report()["bootstrap"]["unit"] == "patient"


def test_a_test_set_of_whose_patients_some_are_trained_on_is_not_measured_as_one(study: Study, capsys) -> None:
    study.add("a", cube(), cube(), patient_id="P1")
    study.add("b", cube(), cube(), "training", fold=0, patient_id="P1")
    assert study.run("--no-figures") == 3
    assert "patients of the test set are in training too" in capsys.readouterr().err
    assert readings_of(study.root / "manifest.json") == []
    assert study.run("--no-figures", "--split", "all") == 0
