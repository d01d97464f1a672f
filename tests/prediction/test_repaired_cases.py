"""`--repair` and `--secondary-capture` in `predict`: such cases are marked everywhere, none has a DICOM result."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import segpipe
from dicom import make
from segpipe.cli.app import run
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.errors import UsageError
from tiny_bundle import THRESHOLD

pytestmark = pytest.mark.usefixtures("one_worker")


def uneven() -> list[make.Dataset]:
    images = make.series(make.Grid(slices=8), "MR")
    for number, image in enumerate(images):
        image.ImagePositionPatient[2] = float(image.ImagePositionPatient[2]) + 0.25 * number**1.5
    return images


def tilted(modality: str = "MR") -> list[make.Dataset]:
    images = make.series(make.Grid(slices=8), modality)
    for number, image in enumerate(images):
        image.ImagePositionPatient[1] = float(image.ImagePositionPatient[1]) + number
    return images


def test_resampled_cases_say_so_everywhere(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gap = make.series(make.Grid(slices=8), "MR")
    del gap[3]
    for name, images in (("tilted", tilted()), ("uneven", uneven()), ("gap", gap)):
        make.write(images, tmp_path / "in" / name)
    by_reason = {one.reason: one for one in scan(tmp_path / "in").series}
    out = tmp_path / "out"
    words = ["--repair", "tilt,spacing", "--format", "nifti,seg,rtstruct,sr"]
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(out), *words]) == 4
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    rows = {row["id"]: row for row in csv.DictReader((out / "summary.csv").open())}
    page = (out / "report.html").read_text()
    for reason, word in (("gantry_tilt", "tilt"), ("variable_spacing", "spacing")):
        series = by_reason[reason]
        folder = out / series.case_id
        volume = load_series(series, repair=word)
        labels = nib.load(folder / "segmentation.nii.gz")
        np.testing.assert_array_equal(np.asarray(labels.dataobj), volume.array > THRESHOLD)
        np.testing.assert_allclose(labels.affine, volume.affine_ras, atol=1e-4)
        result = json.loads((folder / "result.json").read_text())
        assert result["notes"][0].startswith(f"repaired: {word}; resampled linearly to slices")
        assert set(result["not_written"]) == {"seg", "rtstruct", "sr"} and set(result["files"]) == {"nifti"}
        assert f"resampled to a regular grid (repaired: {word})" in result["not_written"]["seg"]
        for text in (rows[series.case_id]["notes"], page, said):
            assert f"repaired: {word}; resampled linearly" in text
    assert rows[by_reason["gap"].case_id]["state"] == "refused"
    assert "Find the missing files" in rows[by_reason["gap"].case_id]["detail"]


def test_the_advice_of_predict_can_be_followed_in_predict(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.write(tilted(), tmp_path / "in")
    words = ["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "out")]
    assert run(words) == 4
    assert "--repair tilt" in " ".join(capsys.readouterr().out.split())
    assert run([*words, "--repair", "spacing"]) == 4
    assert run([*words, "--repair", "tilt"]) == 0
    assert run([*words, "--repair", "tilt"]) == 0  # and is skipped then


def test_python_takes_it_too(tiny_bundle: Path, tmp_path: Path) -> None:
    make.write(tilted(), tmp_path / "in")
    batch = segpipe.predict(tiny_bundle, tmp_path / "in", tmp_path / "out", repair="tilt")
    (outcome,) = batch.outcomes
    assert outcome.status == "done" and outcome.result["notes"][0].startswith("repaired: tilt")
    with pytest.raises(UsageError, match="no such repair"):
        segpipe.predict(tiny_bundle, tmp_path / "in", tmp_path / "out", repair="gap")


def test_a_secondary_capture_is_taken_by_the_name_in_its_refusal(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make.series(make.Grid(slices=8), "MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    make.write(images, tmp_path / "in")
    out = tmp_path / "out"
    words = ["predict", str(tiny_bundle), str(tmp_path / "in"), str(out)]
    assert run(words) == 4
    (row,) = csv.DictReader((out / "summary.csv").open())
    assert row["reason"] == "secondary_capture" and images[0].SeriesInstanceUID not in row["detail"]
    (name,) = re.findall(r"--secondary-capture (\S+)\.", row["detail"])
    assert run([*words, "--secondary-capture", name]) == 0
    note = "Secondary Capture: values may have been windowed"
    assert note in " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    (case,) = json.loads((out / "summary.json").read_text())["cases"]
    assert note in case["notes"] and note in (out / "report.html").read_text() and "seg" in case["not_written"]
    assert (
        run(
            [
                "predict",
                str(tiny_bundle),
                str(tmp_path / "in"),
                str(tmp_path / "by UID"),
                "--secondary-capture",
                images[0].SeriesInstanceUID,
            ]
        )
        == 0
    )
