"""`segpipe predict --runtime`: what computed a case is written down, and why it is not OpenVINO is said."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.result_folder import RESULT, SEGMENTATION
from segpipe.errors import OK, USAGE
from tiny_bundle import write_scan


@pytest.mark.slow
def test_what_computed_a_case_is_written_down(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    labels = []
    for runtime, used in (("auto", "torch"), ("openvino", "openvino"), ("torch", "torch")):
        out = tmp_path / runtime
        assert run(["predict", str(tiny_bundle), str(scan), str(out), "--runtime", runtime]) == OK
        result = json.loads((out / "a" / RESULT).read_text())
        assert (result["runtime"], bool(result["runtime_reasons"])) == (used, runtime == "auto")
        said = "computed with torch: the network is too small" in " ".join(capsys.readouterr().out.split())
        assert said == (runtime == "auto")
        labels.append(np.asarray(nib.load(out / "a" / SEGMENTATION).dataobj))
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_a_runtime_that_is_none_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    command = ["predict", str(tiny_bundle), str(scan), str(tmp_path / "out"), "--runtime", "tensorflow"]
    assert run(command) == USAGE
    assert not (tmp_path / "out").exists()
