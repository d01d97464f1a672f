"""A report over result folders: what it says of each, what it compares, and what it cannot read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.cohort.results import outlying, read_cohort, robust_scores
from segpipe.common.files import sha256_of
from segpipe.reporting import control_limit, running_mean

BUNDLE = {"name": "organs", "version": "1.0.0", "sha256": "b" * 64}


def write_results(folder: Path, cases: int = 12, seed: int = 0, bundle: dict[str, Any] = BUNDLE) -> Path:
    """A result folder as `predict` leaves it, with images where its mapping says."""
    random = np.random.default_rng(seed)
    images = folder.parent / f"{folder.name} images"
    images.mkdir(parents=True)
    folder.mkdir()
    for number in range(cases):
        id, labels = f"case_{number}", np.zeros((16, 14, 12), np.uint8)
        labels[2 : 6 + number % 3, 3:9, 2:8] = 1
        if number != 1:
            labels[10:12, 3:6, 2:5] = 3
        values = np.where(labels == 1, 100, 10) + random.normal(size=labels.shape)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), images / f"{id}.nii.gz")
        (folder / id).mkdir()
        nib.save(nib.Nifti1Image(labels, affine), folder / id / "segmentation.nii.gz")
        voxels = {"liver": int((labels == 1).sum()), "spleen": int((labels == 3).sum())}
        volumes = {name: count * 0.002 for name, count in voxels.items()}
        if number == 4:
            volumes["liver"] *= 9
        sha256 = {"segmentation.nii.gz": sha256_of(folder / id / "segmentation.nii.gz")}
        document = {
            "id": id,
            "labels": {"liver": 1, "spleen": 3},
            "sha256": sha256,
            "bundle": bundle,
            "runtime": "openvino",
            "source": "nifti",
            "regions": 0,
            "voxels": voxels,
            "volumes_ml": volumes,
            "notes": [],
            "decision": "hold" if number == 7 else "ok",
            "reasons": ["far from the calibration cases"] if number == 7 else [],
            "quality": {"p_value": 0.01 if number == 7 else 0.5, "distance": 0.7, "dice": {"liver": 0.9}},
        }
        (folder / id / "result.json").write_text(json.dumps(document))
        with (folder / "predictions.jsonl").open("a") as stream:
            stream.write(json.dumps({"time": 1000.0 + number, "event": "done", "id": id, "seconds": 1.0}) + "\n")
        with (folder / "mapping.jsonl").open("a") as stream:
            stream.write(json.dumps({"id": id, "paths": [str(images / f"{id}.nii.gz")]}) + "\n")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_page_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    october, november = (write_results(tmp_path / name, seed=n) for n, name in enumerate(("october", "november")))
    words = ["report", str(october), str(november), "-o", str(tmp_path / "out"), "--statistics", "--meshes", "stl"]
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["decisions"] == {"ok": 22, "look": 0, "hold": 2, "released": 0, "not_judged": 0}
    assert document["outliers"] == 2
    assert document["without_statistics"] == {}
    page = (tmp_path / "out/cohort.html").read_text()
    assert "24 cases of 2 result folders" in page
    assert page.index("case_7") < page.index("case_4") < page.index("case_2")  # held, then unusual, then the others
    assert "unusual volume of liver" in page
    assert str(tmp_path) not in page
    cases = rows_of(tmp_path / "out/cases.csv")
    assert [row["unusual_volumes"] for row in cases if row["case"] == "case_4"] == ["liver", "liver"]
    statistics = rows_of(tmp_path / "out/statistics.csv")
    assert len(statistics) == 48
    liver = next(row for row in statistics if row["label"] == "liver")
    assert float(liver["mean"]) == pytest.approx(100, abs=0.5)
    missing = next(row for row in statistics if row["case"] == "case_1" and row["label"] == "spleen")
    assert (missing["voxels"], missing["mean"]) == ("0", "")
    assert (tmp_path / "out/surfaces/october/case_0/surface_2.stl").is_file()
    assert not (tmp_path / "out/surfaces/october/case_1/surface_2.stl").exists()

    assert run(["report", str(october), "-o", str(tmp_path / "out")]) == 0  # nothing of before passes for a part of it
    assert len(rows_of(tmp_path / "out/cases.csv")) == 12
    assert not (tmp_path / "out/statistics.csv").exists()
    assert not list((tmp_path / "out/surfaces").rglob("*.stl"))


def test_a_file_of_a_name_of_ours_stays_where_there_was_no_report(tmp_path: Path) -> None:
    october, out = write_results(tmp_path / "october", seed=0), tmp_path / "out"
    out.mkdir()
    (out / "statistics.csv").write_text("mine")
    assert run(["report", str(october), "-o", str(out)]) == 0
    assert (out / "statistics.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "organs 1.0.0 (bbbbbbbb), openvino"),
        (
            {"precision": "float32", "mirror": [], "ensemble": [], "masks_given": False},
            "organs 1.0.0 (bbbbbbbb), openvino",
        ),
        ({"mirror": ["x", "y"]}, "organs 1.0.0 (bbbbbbbb), openvino, mirrored along x, y"),
        ({"precision": "bfloat16"}, "organs 1.0.0 (bbbbbbbb), openvino, bfloat16"),
        ({"masks_given": True}, "organs 1.0.0 (bbbbbbbb), openvino, masks given"),
        (
            {"ensemble": [{"name": "fold_2", "version": "1.0.0", "sha256": "c" * 64}]},
            "organs 1.0.0 (bbbbbbbb) + fold_2 1.0.0 (cccccccc), openvino",
        ),
    ],
)
def test_cases_that_were_computed_otherwise_are_of_another_model(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    results = write_results(tmp_path / "october", 1)
    path = results / "case_0/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert [case.model for case in read_cohort([results])] == [words]


def test_a_released_case_counts_as_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write_results(tmp_path / "october", 9)
    path = results / "case_7/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"released": {"time": 1.0, "report": None}}))
    assert run(["report", str(results), "-o", str(tmp_path / "out"), "--json"]) == 0
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    assert decisions == {"ok": 8, "look": 0, "hold": 0, "released": 1, "not_judged": 0}
    decided = {row["case"]: row["decision"] for row in rows_of(tmp_path / "out/cases.csv")}
    assert (decided["case_7"], decided["case_0"]) == ("released", "ok")
    page = " ".join((tmp_path / "out/cohort.html").read_text().split())
    assert "released by a person" in page


def test_a_report_into_a_result_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for place in (tmp_path / "out", tmp_path / "out/report"):
        assert run(["report", str(tmp_path / "out"), "-o", str(place)]) == 2
        assert "does not go into a result folder" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_gone_images_leave_columns_empty_and_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "may", 2)
    next((tmp_path / "may images").glob("case_0*")).unlink()
    (folder / "case_1/segmentation.nii.gz").unlink()
    assert run(["report", str(folder), "-o", str(tmp_path / "out"), "--statistics"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 cases could not be measured whole" in said
    assert "may/case_0: its image is no longer where it was: no intensities" in said
    assert "--format nifti" in said
    row = rows_of(tmp_path / "out/statistics.csv")[0]
    assert (row["mean"], row["volume_ml"] != "") == ("", True)


def test_a_label_map_that_was_changed_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "may", 2)
    labels = np.zeros((16, 14, 12), np.uint8)
    labels[:2, :2, :2] = 1
    labels[4:6, :2, :2] = 3
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 2.0, 1.0])), folder / "case_0/segmentation.nii.gz")
    assert run(["report", str(folder), "-o", str(tmp_path / "out"), "--statistics"]) == 0
    assert "may/case_0: its segmentation.nii.gz was changed" in " ".join(capsys.readouterr().err.split())
    assert {row["case"] for row in rows_of(tmp_path / "out/statistics.csv")} == {"case_1"}


def test_only_cases_of_one_model_are_compared(tmp_path: Path) -> None:
    folders = [
        write_results(tmp_path / "a", 5),
        write_results(tmp_path / "b", 5, bundle={**BUNDLE, "sha256": "c" * 64}),
    ]
    cases = read_cohort(folders)
    assert len({case.model for case in cases}) == 2
    assert outlying(cases) == {}  # five of each are too few to call one unusual
    assert ("a", "case_4") in outlying(read_cohort([write_results(tmp_path / "c"), folders[0]]))


@pytest.mark.parametrize("what", ["missing", "empty", "broken", "no results"])
def test_what_is_no_result_folder_is_refused(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    if what != "missing":
        folder.mkdir()
    if what in ("broken", "no results"):
        (folder / "predictions.jsonl").write_text("")
    if what == "broken":
        (folder / "case").mkdir()
        (folder / "case/result.json").write_text('{"id": "case"}')
    assert run(["report", str(folder), "-o", str(tmp_path / "out")]) == (3 if what == "broken" else 2)
    assert "segpipe predict" in " ".join(capsys.readouterr().err.split())


def test_a_drift_is_seen_and_none_is_where_there_is_none() -> None:
    random = np.random.default_rng(0)
    alike = random.random(400)
    assert (running_mean(alike, 20) > 0.5 - control_limit(20)).mean() > 0.98
    drifted = running_mean(random.random(40) * 0.3, 20)
    assert (drifted < 0.5 - control_limit(20)).all()
    np.testing.assert_allclose(running_mean([1.0, 2.0, 3.0], 2), [1.5, 2.5])
    assert robust_scores([1.0, 1.0, 1.0, 9.0]) == [0.0] * 4


@pytest.mark.parametrize("words", [".", "..", "case_0/..", "../october"])
def test_a_folder_is_called_by_its_name_however_it_is_named(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_results(tmp_path / "october", cases=1)
    monkeypatch.chdir(folder / "case_0" if words == ".." else folder)
    assert {case.run for case in read_cohort([Path(words)])} == {"october"}
