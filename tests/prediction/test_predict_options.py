"""`segpipe predict` with limits of memory and with probabilities, through its own worker process."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.result_folder import OVERLAY, PROBABILITIES, RESULT, SEGMENTATION
from segpipe.errors import OK, SOME_FAILED, USAGE
from tiny_bundle import write_scan


@pytest.mark.slow
def test_probabilities_lie_beside_the_labels(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    assert run(["predict", str(tiny_bundle), str(scan), str(tmp_path / "out"), "--probabilities", "all"]) == OK
    folder = tmp_path / "out" / "a"
    names = {path.name for path in folder.iterdir()}
    assert {PROBABILITIES, RESULT, SEGMENTATION} <= names
    assert not [name for name in names if name.startswith(".")]
    image, labels = nib.load(folder / PROBABILITIES), nib.load(folder / SEGMENTATION)
    assert image.shape == (*labels.shape, 2)
    np.testing.assert_allclose(image.affine, labels.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj).argmax(-1), np.asarray(labels.dataobj))
    assert json.loads((folder / RESULT).read_text())["engine"] == "streaming"


@pytest.mark.slow
def test_no_overlay_writes_no_picture_and_says_so(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    words = ["predict", str(tiny_bundle), str(scan), str(out), "--no-overlay"]
    assert run(words) == OK
    assert "no overlay: it was not asked for" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in (out / "a").iterdir()) == [RESULT, SEGMENTATION]
    result = json.loads((out / "a" / RESULT).read_text())
    assert result["not_written"] == {"overlay": "it was not asked for"}
    assert "it was not asked for" in (out / "report.html").read_text()
    assert run(words[:-1]) == OK
    assert (out / "a" / OVERLAY).is_file()


@pytest.mark.slow
def test_a_case_that_cannot_fit_fails_with_the_numbers(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    arguments = ["predict", str(tiny_bundle), str(scan), str(tmp_path / "out"), "--max-memory", "20M", "--json"]
    assert run(arguments) == SOME_FAILED
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["id"] == "a"
    assert "more memory" in case["reason"]
    assert "0.02 GiB (--max-memory)" in case["detail"]


def test_an_amount_that_is_none_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    assert run(["predict", str(tiny_bundle), str(scan), str(tmp_path / "out"), "--max-memory", "much"]) == USAGE
