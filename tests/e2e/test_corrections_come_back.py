"""The whole round: predict, correct, import, and train on with what was corrected."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.data.phantom import make_phantom
from tiny_data import SMALL, train_arguments, write_data

pytestmark = pytest.mark.slow


def test_corrected_cases_are_trained_on_and_nothing_is_measured_on_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = write_data(tmp_path / "data", 4)
    assert run(train_arguments(manifest, tmp_path / "run", "--epochs", "1", "--set", "keep_weights=last")) == 0
    assert run(["export", "run", "organs"]) == 0
    Path("scans").mkdir()
    for number in (7, 8):
        make_phantom(number, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5)).write(
            Path(f"scans/new_{number}.nii.gz"), Path(f"true_{number}.nii.gz")
        )
    assert run(["predict", "organs", "scans", "out", "--threads", "1"]) == 0
    Path("corrected").mkdir()
    for number in (7, 8):  # somebody draws the truth over it
        drawn = nib.load(f"out/new_{number}/segmentation.nii.gz")
        truth = np.asarray(nib.load(f"true_{number}.nii.gz").dataobj).astype(np.uint8)
        nib.save(nib.Nifti1Image(truth, drawn.affine), f"corrected/new_{number}.nii.gz")
    words = ["import", "out", "--corrections", "corrected", "--annotator", "reader-2", "--into", "data/manifest.json"]
    assert run(words) == 0
    small = [word for item in SMALL[3:] for word in ("--set", item)]
    again = ["--from", "organs", "--epochs", "1", "--threads", "1", "--fold", "0", *small]
    assert run(["check", "data/manifest_2.json"]) == 0
    assert run(["train", "data/manifest_2.json", *again, "--out", "tuned"]) == 0
    about = json.loads(Path("tuned/run.json").read_text())
    assert about["cases"] == {"training": ["case_1", "case_3", "new_7", "new_8"], "validation": ["case_0", "case_2"]}
    assert about["parent"]["name"] == "organs" and about["parent"]["overlap"]["cases"] == {}
