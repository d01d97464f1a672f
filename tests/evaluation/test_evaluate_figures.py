"""What `segpipe evaluate` draws, and what it refuses before the work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tiny_study import Study, cube, save

from segpipe.cli import evaluate_ as verb
from segpipe.data.manifest import load_manifest
from segpipe.evaluation import cohort

SCHEMA = Path(__file__).parents[2] / "docs/schemas/evaluate.schema.json"


@pytest.fixture
def scans(tmp_path: Path) -> Study:
    """Three cases with images; the second is the worst."""
    study = Study(tmp_path, draws=True)
    for id, at in (("good", 2), ("poor", 5), ("fair", 3)):
        study.add(id, cube(), cube(at=at) + cube(2, at=9, size=1))
        save(study.root / f"images/{id}.nii.gz", np.random.default_rng(0).normal(size=(10, 10, 8)))
    return study


def document(printed: str) -> dict[str, object]:
    parsed = json.loads(printed, parse_constant=pytest.fail)
    jsonschema.validate(parsed, json.loads(SCHEMA.read_text()))
    return parsed


def test_the_page_and_its_pictures(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert scans.run("--json", "--gif", "good", "--gif", "fair", "--gif", "good") == 0
    files = ["dice.png", "dice_labels.png", "gallery.png", "good.gif", "fair.gif", "report.html"]
    assert document(capsys.readouterr().out)["figures"] == {"files": files, "notes": []}
    assert {path.name for path in scans.out.iterdir()} == {*files, "metrics.csv", "metrics.json"}
    assert Image.open(scans.out / "good.gif").n_frames == 8
    page = (scans.out / "report.html").read_text()
    assert page.count("data:image/png") == 3 and page.count("data:image/gif") == 2
    assert "2 |A and B|" in page and "95 % interval" in page and "to 1.0000" in page
    assert str(scans.root) not in page and ".nii" not in page


def test_the_gallery_holds_the_worst(scans: Study) -> None:
    heights = []
    for worst in ("1", "3", "50"):
        assert scans.run("--worst", worst) == 0
        heights.append(Image.open(scans.out / "gallery.png").height)
    assert heights[0] < heights[1] == heights[2]
    assert scans.run("--worst", "0") == 0
    assert not (scans.out / "gallery.png").exists(), "the older one would be of other cases"


def test_no_figures(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert scans.run("--no-figures", "--json") == 0
    assert "figures" not in document(capsys.readouterr().out)
    assert {path.name for path in scans.out.iterdir()} == {"metrics.csv", "metrics.json"}
    assert scans.run("--no-figures", "--gif", "good") == 2
    assert "leave --no-figures out" in capsys.readouterr().err


def test_without_images_there_is_no_gallery_and_it_is_said(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (scans.root / "images/poor.nii.gz").unlink()
    assert scans.run("--json") == 0
    assert document(capsys.readouterr().out)["figures"]["notes"] == ["poor not drawn: the image is not there"]
    assert (scans.out / "gallery.png").exists()
    save(scans.root / "images/good.nii.gz", cube(), np.diag([1.0, 1.0, 2.5, 1.0]))
    (scans.root / "images/fair.nii.gz").write_bytes(b"nonsense")
    assert scans.run("--gif", "poor") == 0
    printed = capsys.readouterr()
    assert "good not drawn: the image is not on the grid of the truth" in printed.out
    assert printed.out.count("poor not drawn") == 1 and printed.err == ""
    page = (scans.out / "report.html").read_text()
    assert "fair not drawn" in page and str(scans.root) not in page
    assert not (scans.out / "gallery.png").exists() and not (scans.out / "poor.gif").exists()


def test_a_missing_prediction_is_no_picture(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    scans.add("lost", cube(), None)
    assert scans.run("--gif", "lost") == 4
    assert "lost not drawn: there is no prediction" in capsys.readouterr().out
    assert "no prediction" in (scans.out / "report.html").read_text()


def test_of_several_channels_it_says_which_is_drawn(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    scans.run("--no-figures")
    path = scans.root / "manifest.json"
    path.write_text(path.read_text().replace('{"0": "MRI"}', '{"0": "T1", "1": "T2"}'))
    assert load_manifest(path).n_channels == 2
    for id in ("good", "poor", "fair"):
        image = np.random.default_rng(0).normal(size=(10, 10, 8, 2))
        nib.save(nib.Nifti1Image(image, np.diag([1.0, 1.0, 2.0, 1.0])), scans.root / f"images/{id}.nii.gz")
    capsys.readouterr()
    verb.command(path, scans.predictions, scans.out, gif=None)
    assert "of 2 channels the first is drawn: T1" in capsys.readouterr().out


def test_learning_curves_of_the_run(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    run = scans.root / "run"
    assert scans.run("--run", str(run)) == 2
    assert "the run has no history" in capsys.readouterr().err and not scans.out.exists()
    run.mkdir()
    (run / "history.csv").write_text("epoch,train_loss,val_loss,val_mean_dice\n")
    assert scans.run("--run", str(run)) == 2
    with (run / "history.csv").open("a") as stream:
        csv.writer(stream).writerows([[1, 0.9, "", ""], [2, 0.5, 0.6, 0.7]])
    assert scans.run("--run", str(run), "--json") == 0
    assert "curves.png" in document(capsys.readouterr().out)["figures"]["files"]
    assert "Losses and validation Dice" in (scans.out / "report.html").read_text()


def test_an_unknown_case_is_refused_before_the_work(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert scans.run("--gif", "nobody") == 2
    printed = capsys.readouterr().err
    assert "--gif nobody" in printed and "fair, good, poor" in printed and not scans.out.exists()


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    scans: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "evaluate_cases", lambda *_: pytest.fail("it measured"))
    scans.out.write_text("a file")
    assert scans.run() == 2


@pytest.mark.parametrize("split", ["test", "all"])
def test_a_fold_where_there_is_none_to_choose(scans: Study, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scans.run("--split", split, "--fold", "0") == 2
    assert "--split validation --fold 0" in capsys.readouterr().err and not scans.out.exists()


def test_two_predictions_of_one_case_are_refused(scans: Study, capsys: pytest.CaptureFixture[str]) -> None:
    save(scans.predictions / "good_seg.nii.gz", cube())
    assert scans.run() == 2
    assert "several label maps" in capsys.readouterr().err
