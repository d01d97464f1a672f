"""The verb end to end, in-process, on tiny label maps with every kind of trouble."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tiny_study import Study, cube, save

from segpipe.cli.app import run
from segpipe.evaluation import case_evaluation as cases_module
from segpipe.evaluation.case_evaluation import Job, choose_workers, evaluate_case, evaluate_cases

SCHEMA = Path(__file__).parents[2] / "docs/schemas/metrics.schema.json"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_good_predictions(study: Study, capsys) -> None:
    both = cube() + cube(2, 6, 2)
    study.add("a", both, both, patient_id="p1")
    study.add("b", cube(), cube(at=3), patient_id="p2")
    assert study.run() == 0
    report, rows = study.report(), study.rows()
    assert rows["a", "1"]["dice"] == "1.0" and rows["a", "2"]["hd_mm"] == "0.0"
    assert float(rows["b", "1"]["dice"]) == 0.75 and float(rows["b", "1"]["hd_mm"]) == 1
    assert rows["b", "2"] == rows["b", "2"] | {"dice": "", "flag": "absent", "truth_ml": "0.0"}
    overall = report["summary"]["overall"]
    assert overall["metrics"]["dice"]["mean"] == pytest.approx((1 + 0.75) / 2)
    assert overall["metrics"]["dice"]["low"] == 0.75 and overall["metrics"]["dice"]["high"] == 1
    assert report["summary"]["labels"]["2"]["counts"]["absent"] == 1
    assert report["schema_version"] == 1 and set(report["definitions"]) >= {"dice", "hd95_mm", "nsd"}
    printed = capsys.readouterr()
    assert "0.8750" in printed.out and "mean of labels" in printed.out and printed.err == ""


def test_all_kinds_of_failure_count_and_are_named(study: Study, capsys) -> None:
    study.add("good", cube(), cube())
    study.add("missing", cube(), None)
    study.add("extra", cube(), cube() + cube(2, 7, 1))
    study.add("shifted", cube(), cube(), affine=np.diag([1.0, 1.0, 2.1, 1.0]))
    study.add("unknown", cube(), cube(7))
    study.add("fraction", cube(), cube().astype(np.float32) / 2)
    study.add("broken", cube(), cube())
    file = study.predictions / "broken.nii.gz"
    file.write_bytes(file.read_bytes()[:40])
    assert study.run() == 4
    report, rows = study.report(), study.rows()
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    reasons = {case["id"]: case["failure"] for case in report["cases"]}
    assert reasons["good"] is None and reasons["extra"] is None
    assert reasons["missing"] == "no prediction"
    assert "not on the grid" in reasons["shifted"] and "mm apart" in reasons["shifted"]
    assert "found 7, expected 0, 1, 2" in reasons["unknown"]
    assert "whole numbers" in reasons["fraction"]
    assert "cannot read" in reasons["broken"]
    assert rows["extra", "2"]["flag"] == "false_positive" and rows["extra", "2"]["dice"] == "0.0"
    for id, flag in {"missing": "missing", "shifted": "failed", "unknown": "failed"}.items():
        assert (rows[id, "1"]["dice"], rows[id, "1"]["flag"]) == ("0.0", flag)
        assert rows[id, "2"]["flag"] == "absent"
    counts = report["summary"]["overall"]["counts"]
    assert counts["cases"] == counts["counted"] == 7
    assert counts["missing"] == 1 and counts["failed"] == 4 and counts["undefined_distances"] == 6  # and extra's tail
    # one good case (1), one with a false positive (0.5), five failures (0)
    assert report["summary"]["overall"]["metrics"]["dice"]["mean"] == pytest.approx(1.5 / 7)
    assert report["summary"]["labels"]["1"]["metrics"]["dice"]["mean"] == pytest.approx(2 / 7)
    assert "unknown: the prediction has values" in capsys.readouterr().err


def test_no_path_in_the_outputs(study: Study) -> None:
    study.add("x", cube(), cube(), patient_id="Jane_Doe")
    (study.root / "labels/x.nii.gz").rename(study.root / "labels/Jane_Doe.nii.gz")
    study.cases[0]["label"] = "labels/Jane_Doe.nii.gz"
    (study.root / "labels/Jane_Doe.nii.gz").write_bytes(b"nonsense")
    assert study.run() == 4
    written = (study.out / "metrics.json").read_text() + (study.out / "metrics.csv").read_text()
    assert "Jane" not in written and str(study.root) not in written
    assert study.report()["cases"][0]["failure"].startswith("truth: ")
    assert {row["flag"] for row in study.rows().values()} == {"failed"}


def test_json_is_one_document(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    study.add("b", cube(), None)
    assert study.run("--json", "--tolerance-mm", "0.5") == 4
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["schema_version"] == 1 and document["command"] == "evaluate"
    assert document["tolerance_mm"] == 0.5
    assert document["failures"] == [{"id": "b", "reason": "no prediction"}]
    assert document["summary"]["labels"]["1"]["metrics"]["dice"]["mean"] == 0.5


def test_reads_result_folders_and_stock_outputs(study: Study) -> None:
    for id, name in {"a": "a/segmentation.nii.gz", "b": "b_seg.nii.gz", "c": "c.nii"}.items():
        study.add(id, cube(), None)
        save(study.predictions / name, cube())
    assert study.run() == 0
    assert study.report()["summary"]["overall"]["metrics"]["dice"]["mean"] == 1


def test_4d_prediction_is_a_failed_case(study: Study) -> None:
    study.add("a", cube(), np.stack([cube(), cube()], axis=-1))
    assert study.run() == 4
    assert study.report()["cases"][0]["failure"].startswith("the prediction is not one label map")


def test_files_of_other_cases_are_named_where_cases_are_missing(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    save(study.predictions / "renamed_b.nii.gz", cube())
    assert study.run() == 0
    assert "renamed_b" not in capsys.readouterr().err
    study.add("b", cube(), None)
    assert study.run() == 4
    assert "1 files there belong to no case of this split: renamed_b.nii.gz" in capsys.readouterr().err


def test_the_picture_is_written_and_unlabelled_cases_are_told(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    study.cases.append({"section": "test", "id": "bare", "image": "bare.nii.gz"})
    study.draws = True
    assert study.run() == 0
    assert "1 cases of the split have no label" in capsys.readouterr().out
    assert study.report()["cases_without_label"] == 1
    assert (study.out / "dice.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", [("--tolerance-mm", "nan"), ("--tolerance-mm", "inf"), ("--bootstrap", "999999999")])
def test_options_without_sense_are_refused_before_the_work(study: Study, option: tuple[str, str]) -> None:
    study.add("a", cube(), cube())
    assert study.run(*option) == 2
    assert not study.out.exists()


def test_a_split_without_labels_names_those_that_have_some(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    study.cases[0]["section"] = "training"
    assert study.run() == 2
    assert "name one that has labels: --split training" in capsys.readouterr().err
    assert study.run("--split", "training") == 0


def test_usage_errors(study: Study, capsys) -> None:
    assert run(["evaluate", str(study.root / "no.json"), str(study.predictions), "--out", "x"]) == 2
    assert study.run() == 2
    assert "no labelled case" in capsys.readouterr().err
    study.add("a", cube(), None)
    assert study.run() == 2
    assert "predictions is empty" in capsys.readouterr().err
    assert study.run("--data", str(study.predictions)) == 2
    assert "--data" in capsys.readouterr().err
    assert study.run("--split", "tset") == 2
    study.predictions.rmdir()
    assert study.run() == 2
    assert not study.out.exists()


def test_output_that_cannot_be_written(study: Study, capsys) -> None:
    study.add("a", cube(), cube())
    study.out.write_text("a file")
    assert study.run() == 2
    assert "cannot write" in capsys.readouterr().err


def test_split_and_fold(study: Study) -> None:
    study.add("a", cube(), cube(), "training", fold=0)
    study.add("b", cube(), cube(), "training", fold=1)
    study.add("c", cube(), cube())
    assert study.run("--split", "validation", "--fold", "1") == 0
    assert [case["id"] for case in study.report()["cases"]] == ["b"]
    assert study.run("--split", "all") == 0
    assert len(study.report()["cases"]) == 3
    assert study.run("--split", "validation") == 2


def job(tmp_path: Path, id: str, prediction: np.ndarray | None) -> Job:
    truth = save(tmp_path / f"{id}.nii", cube())
    path = None if prediction is None else save(tmp_path / f"{id}_p.nii", prediction)
    return Job(id, id, truth, path, {1: "head", 2: "tail"})


def test_a_case_too_large_for_memory_fails_alone(tmp_path: Path, monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    one = job(tmp_path, "a", cube())
    monkeypatch.setattr(cases_module, "read_volume", no_memory)
    result = evaluate_case(one)
    assert result.failure == "not enough memory" and result.measures[1].dice == 0


def test_small_work_stays_in_one_process(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", cube()), job(tmp_path, "b", None)]
    assert choose_workers(jobs) == 1
    seen: list[int] = []
    results = evaluate_cases(jobs, 1, lambda done, total: seen.append(done))
    assert [result.id for result in results] == ["a", "b"] and len(seen) == 2
    assert results[1].missing and not results[0].missing


@pytest.mark.slow
def test_processes_give_the_same(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", cube(at=3)), job(tmp_path, "b", None), job(tmp_path, "c", cube(9))]
    assert evaluate_cases(jobs, 2) == evaluate_cases(jobs, 1)


def test_tilted_grid_measures_in_mm(study: Study) -> None:
    angle = 0.4
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine = turn @ np.diag([1.5, 1.0, 2.0, 1.0])
    study.add("a", cube(), cube(at=3), affine=affine)
    save(study.root / "labels/a.nii.gz", cube(), affine)
    assert study.run() == 0
    assert float(study.rows()["a", "1"]["hd_mm"]) == pytest.approx(1.5, abs=1e-5)
