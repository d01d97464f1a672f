"""`segpipe predict --precision`: what a case was computed in is written down, and noted where it is unproven."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segpipe.bundle import open_bundle
from segpipe.cli.app import run
from segpipe.common.files import write_json
from segpipe.common.result_folder import RESULT
from segpipe.errors import OK, USAGE
from segpipe.inference import precision
from tiny_bundle import write_bundle, write_scan

PROOF = {
    "cases": 3,
    "runtime": ["torch"],
    "mirror": [],
    "mean_dice_lost": 0.0,
    "case_dice_lost": 0.0,
    "labels_lost": 0,
    "volume_changed": 0.0,
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_worker")
def test_what_a_case_was_computed_in_is_written_down(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    for wanted, used, reason in (("auto", "float32", "no proof"), ("bfloat16", "bfloat16", "not proven")):
        out = tmp_path / wanted
        assert run(["predict", str(tiny_bundle), str(scan), str(out), "--precision", wanted]) == OK
        result = json.loads((out / "a" / RESULT).read_text())
        assert result["precision"] == used and reason in result["precision_reason"]
        printed = " ".join(capsys.readouterr().out.split())
        noted = [note for note in result["notes"] if "unproven" in note]
        assert bool(noted) == ("computed in bfloat16: asked for" in printed) == (used == "bfloat16")


def test_a_precision_that_is_none_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    command = ["predict", str(tiny_bundle), str(scan), str(tmp_path / "out"), "--precision", "float16"]
    assert run(command) == USAGE
    assert not (tmp_path / "out").exists()


def test_a_bundle_with_a_proof_is_computed_in_bfloat16_where_that_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_bundle(tmp_path / "bundle")
    metadata = json.loads((root / "configs/metadata.json").read_text())
    write_json(root / "configs/metadata.json", {**metadata, "precision": PROOF})
    image = np.zeros((16, 16, 16), np.float32)
    image[:8] = 100.2  # between two numbers of bfloat16, of which 100 is no label
    found = {}
    for kind in ("amx", "neither"):
        monkeypatch.setattr(precision, "cpu_kind", lambda kind=kind: kind)
        segmentation = open_bundle(root).segment(image, affine_ras=np.eye(4), device="cpu")
        found[kind] = segmentation.volumes_ml["bright"]
        assert segmentation.notes == ()
    assert found["neither"] == pytest.approx(16**3 / 2000) and found["amx"] == 0
    options = {"precision": "bfloat16", "mirror": "x", "mirror_untrained": True}
    asked = open_bundle(root).segment(image, affine_ras=np.eye(4), device="cpu", **options)
    (note,) = [note for note in asked.notes if "unproven" in note]
    assert note.endswith("the bundle's proof of bfloat16 is of other mirrored axes")


def test_a_bundle_whose_own_inferer_calls_the_network_is_computed_in_float32(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    config = json.loads((root / "configs/inference.json").read_text())
    config["inferer"] = {"_target_": "SimpleInferer"}
    write_json(root / "configs/inference.json", config)
    image = np.zeros((16, 16, 16), np.float32)
    image[:8] = 200
    bundle = open_bundle(root, allow_unisolated=True)
    assert bundle.segment(image, affine_ras=np.eye(4), device="cpu").volumes_ml["bright"] > 0
    with pytest.raises(Exception, match="computed in float32 alone") as caught:
        bundle.segment(image, affine_ras=np.eye(4), device="cpu", precision="bfloat16")
    assert "predict without --precision bfloat16" in str(caught.value)
