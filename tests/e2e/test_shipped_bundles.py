"""Every bundle in the repository: intact, small, runs with stock MONAI alone, and gives the figure that it states."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from segpipe.bundle.open import open_bundle
from segpipe.cli.app import run
from segpipe.data.manifest import load_manifest, save_manifest

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/metadata.json"))
HIPPOCAMPUS = ROOT / "data_manifests/msd_task04_hippocampus.json"
SCHEMA = ROOT / "pipeline/segpipe/schemas/bundle_metadata.schema.json"


def test_there_is_a_bundle() -> None:
    assert [bundle.name for bundle in BUNDLES] == ["hippocampus_mri", "hippocampus_mri_all"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_opens_intact_and_within_the_closed_list(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.intact
    assert not bundle.unsupported
    assert bundle.weights.stat().st_size < 20 * 2**20
    state = torch.load(bundle.weights, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    text = "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md", ".txt"))
    assert not [place for place in (str(ROOT), str(Path.home()), "/home/", "/Users/") if place in text]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_metadata_and_network_pass_the_checks_of_monai(folder: Path) -> None:
    from monai.bundle import verify_metadata, verify_net_in_out

    meta = str(folder / "configs/metadata.json")
    verify_metadata(meta_file=meta, filepath=str(SCHEMA))
    verify_net_in_out(
        net_id="network_def",
        meta_file=meta,
        config_file=str(folder / "configs/inference.json"),
        device="cpu",
        extra_forward_args={},
    )


@pytest.mark.slow
@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_verify_replays_the_golden_case(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bundle", "verify", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["status"] for check in printed["checks"]}
    assert states["network"] == "passed"
    if (folder / "golden").exists():
        assert printed["verdict"] == "static checks and replay passed"
        assert printed["replay"]["within_tolerance"] and printed["replay"]["voxels_that_differ"] == 0
    else:
        assert "golden" not in open_bundle(folder).metadata and states["replay"] == "absent"


def _hippocampus() -> Path:
    return Path(os.environ["SEGPIPE_DATA"]) / "Task04_Hippocampus"


@pytest.mark.slow
@pytest.mark.realdata
def test_hippocampus_test_cases_give_the_stated_dice_here_and_with_stock_monai(tmp_path: Path) -> None:
    folder, shipped = (ROOT / "bundles/hippocampus_mri", HIPPOCAMPUS)
    manifest, manifest_path = (
        load_manifest(shipped),
        Path(shutil.copy(shipped, tmp_path)),
    )  # a ledger comes to lie beside
    arguments = [str(manifest_path), str(tmp_path / "ours"), "--split", "test", "--data", str(_hippocampus())]
    assert run(["predict", str(folder), *arguments]) == 0
    evaluate = ["evaluate", str(manifest_path), str(tmp_path / "ours"), "--split", "test"]
    assert run([*evaluate, "--data", str(_hippocampus()), "--out", str(tmp_path / "metrics")]) == 0
    report = json.loads((tmp_path / "metrics/metrics.json").read_text())
    assert report["test_readings"]["count"] == 1
    summary = report["summary"]
    measured = summary["overall"]["metrics"]["dice"]["mean"]
    stated = open_bundle(folder).metadata["eval_metrics"]["test_mean_dice"]
    assert measured == pytest.approx(stated, abs=1e-3)
    assert measured >= 0.875

    scans = tmp_path / "scans"
    scans.mkdir()
    for case in manifest.test:
        (scans / f"{case.id}.nii.gz").symlink_to(_hippocampus() / case.images[0])
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs/inference.json")]
    words += ["--bundle_root", str(folder), "--dataset_dir", str(scans), "--output_dir", str(tmp_path / "stock")]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    for case in manifest.test:
        ours = nib.load(tmp_path / "ours" / case.id / "segmentation.nii.gz")
        theirs = nib.load(tmp_path / "stock" / f"{case.id}_seg.nii.gz")
        assert theirs.get_data_dtype() == np.uint8
        assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
        assert np.mean(np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)) >= 0.9999


def test_the_bundle_of_all_cases_states_no_test_figure_and_was_trained_on_every_case() -> None:
    folder = ROOT / "bundles/hippocampus_mri_all"
    trained = json.loads((folder / "provenance.json").read_text())["split"]["training"]
    assert set(trained) == {case.id for case in load_manifest(HIPPOCAMPUS).cases()} and len(trained) == 200
    assert "test_mean_dice" not in open_bundle(folder).metadata.get("eval_metrics", {})
    whole, split = (
        {case.id: (case.images, case.label, case.sha256) for case in load_manifest(path).cases()}
        for path in (ROOT / "data_manifests/msd_task04_hippocampus_all.json", HIPPOCAMPUS)
    )
    assert whole == split


@pytest.mark.slow
@pytest.mark.realdata
def test_test_cases_of_another_split_are_no_test_of_the_bundle_of_all_cases(tmp_path: Path, capsys) -> None:
    manifest = load_manifest(HIPPOCAMPUS)
    save_manifest(manifest.model_copy(update={"training": [], "test": manifest.test[:2]}), tmp_path / "m.json")
    words = [str(tmp_path / "m.json"), str(tmp_path / "out"), "--data", str(_hippocampus())]
    assert run(["predict", str(ROOT / "bundles/hippocampus_mri_all"), *words]) == 0
    capsys.readouterr()
    assert run(["evaluate", *words, "--out", str(tmp_path / "metrics")]) == 5
    assert "2 of 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.realdata
def test_cases_that_it_was_trained_on_are_not_called_test_cases(tmp_path: Path, capsys) -> None:
    folder = ROOT / "bundles/hippocampus_mri"
    manifest = load_manifest(HIPPOCAMPUS)
    trained = json.loads((folder / "provenance.json").read_text())["split"]["training"]
    seen = next(case for case in manifest.training if case.id in trained).model_copy(update={"id": "as_if_new"})
    save_manifest(manifest.model_copy(update={"training": [], "test": [seen, manifest.test[0]]}), tmp_path / "m.json")
    words = [str(tmp_path / "m.json"), str(tmp_path / "out"), "--data", str(_hippocampus())]
    assert run(["predict", str(folder), *words]) == 0
    said = {
        path.parent.name: json.loads(path.read_text())["training"] for path in (tmp_path / "out").glob("*/result.json")
    }
    assert said["as_if_new"]["image"] == "training" and said[manifest.test[0].id]["image"] is None
    capsys.readouterr()
    assert run(["evaluate", *words, "--out", str(tmp_path / "metrics")]) == 5
    assert "1 of 2: as_if_new" in capsys.readouterr().err
    assert run(["evaluate", *words, "--out", str(tmp_path / "metrics"), "--split", "all", "--no-figures"]) == 0
