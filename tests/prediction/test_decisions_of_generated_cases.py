"""Decisions by a real quality model: values in another unit are held, and how a batch is shared out changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from segpipe.bundle import LoadedBundle, open_bundle
from segpipe.cli.app import run
from segpipe.inference import ModelOptions
from segpipe.quality import AS_IT_IS, QUALITY, Row, fit
from tiny_bundle import DETERMINISTIC, write_bundle

pytestmark = pytest.mark.slow
SHAPE, AFFINE = (22, 20, 18), np.diag([2.0, 2.0, 3.0, 1.0])
WINDOWS = {"CT": (-160.0, 240.0), "PT": (0.0, 15.0)}  # HU, and SUV
TISSUE = {"CT": (-1000.0, 40.0, 160.0), "PT": (0.1, 1.5, 9.0)}  # outside, body, what is looked for
NOISE = {"CT": 12.0, "PT": 0.25}
USUAL = 6


def scan(seed: int, modality: str = "CT") -> np.ndarray:
    """A body with something bright in it, where and how large is drawn."""
    rng = np.random.default_rng(seed)
    outside, body, bright = TISSUE[modality]
    places = np.indices(SHAPE).reshape(3, -1).T / np.array(SHAPE)

    def ball(centre: Any, radius: Any) -> np.ndarray:
        return (np.linalg.norm((places - centre) / radius, axis=1) < 1).reshape(SHAPE)

    values = np.where(ball((0.5, 0.5, 0.5), (0.46, 0.42, 0.6)), body, outside)
    values[ball(rng.uniform(0.42, 0.58, 3), rng.uniform(0.15, 0.22, 3))] = bright * rng.uniform(0.95, 1.05)
    return (values + rng.normal(0, NOISE[modality], SHAPE)).astype(np.float32)


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), path)
    return path


def judging_bundle(folder: Path, modality: str) -> Path:
    """A bundle that marks what is bright in the window of its modality, with a quality model of 40 scans."""
    low, high = WINDOWS[modality]
    window = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high}
    window |= {"b_min": 0.0, "b_max": 1.0, "clip": True}
    weight = torch.zeros(2, 1, 1, 1, 1)
    weight[0], weight[1] = -30.0, 30.0
    threshold = (np.mean(TISSUE[modality][1:]) - low) / (high - low)
    state = {"weight": weight, "bias": torch.tensor([30.0 * threshold, -30.0 * threshold])}
    steps = [*DETERMINISTIC[:2], window, DETERMINISTIC[2]]
    root = write_bundle(folder / f"bundle_{modality}", state=state, deterministic=steps, channels=(modality,))
    bundle = open_bundle(root)
    loaded = LoadedBundle(bundle.recipe(ModelOptions(threads=1)), bundle.policy, bundle.is_foreign)
    rows = []
    for seed in range(40):
        path = write(folder / "calibration.nii.gz", scan(1000 + seed, modality))
        features = loaded.segment((str(path),), measured=True).features
        rows.append(Row(f"c{seed}", f"p{seed}", AS_IT_IS, 0, features, {"bright": 0.95}, {"bright": 1.0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.quality.regression.TREES", 3)
        (root / QUALITY).write_text(json.dumps(fit(rows, ["bright"]).as_dict()))
    return root


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT bundle, and scans as they should be and in another unit."""
    folder = tmp_path_factory.mktemp("generated")
    judging_bundle(folder, "CT")
    for seed in range(USUAL):
        write(folder / f"scans/usual_{seed}.nii.gz", scan(seed))
    values = scan(0)
    write(folder / "scans/thousandth.nii.gz", values * 0.001)
    write(folder / "scans/shifted.nii.gz", values + 1024)
    write(folder / "scans/negated.nii.gz", -values)
    write(folder / "scans/noise.nii.gz", np.random.default_rng(9).normal(40, 200, SHAPE))
    write(folder / "scans/beside.nii.gz", np.full(SHAPE, -1000.0) + np.random.default_rng(9).normal(0, 12, SHAPE))
    return folder


def predict(bundle: Path, scans: Path, out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Predict, and return what was decided and why, by case."""
    assert run(["predict", str(bundle), str(scans), str(out), "--no-overlay", "--threads", "1", *words]) in (0, 6)
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}
    return {
        id: {name: result[name] for name in ("decision", "reasons", "quality", "rules", "doubtful_slices")}
        for id, result in results.items()
    }


@pytest.fixture(scope="module")
def decided(room: Path) -> dict[str, dict[str, Any]]:
    return predict(room / "bundle_CT", room / "scans", room / "out")


def test_a_ct_in_another_unit_is_held_and_usual_ones_are_not(decided: dict[str, dict[str, Any]]) -> None:
    words = {id: case["decision"] for id, case in decided.items()}
    assert [words[f"usual_{seed}"] for seed in range(USUAL)].count("ok") >= USUAL - 1
    assert "hold" not in {words[f"usual_{seed}"] for seed in range(USUAL)}
    for name in ("thousandth", "shifted", "negated", "noise", "beside"):
        assert words[name] == "hold", (name, decided[name]["reasons"])


def test_a_pet_in_another_unit_is_held(tmp_path: Path) -> None:
    bundle = judging_bundle(tmp_path, "PT")
    write(tmp_path / "scans/suv.nii.gz", scan(0, "PT"))
    write(tmp_path / "scans/becquerel.nii.gz", scan(0, "PT") * 5000)
    write(tmp_path / "scans/kilo.nii.gz", scan(0, "PT") * 0.02)
    found = predict(bundle, tmp_path / "scans", tmp_path / "out")
    assert {id: case["decision"] for id, case in found.items()} == {"suv": "ok", "becquerel": "hold", "kilo": "hold"}


def test_several_processes_decide_alike(room: Path, decided: dict[str, Any]) -> None:
    assert predict(room / "bundle_CT", room / "scans", room / "out_workers", "--workers", "2") == decided


def test_shares_decide_alike(room: Path, decided: dict[str, Any]) -> None:
    for share in ("0/2", "1/2"):
        found = predict(room / "bundle_CT", room / "scans", room / "out_shares", "--shard", share)
    assert found == decided
    summary = json.loads((room / "out_shares/summary.json").read_text())
    assert summary["decisions"] == json.loads((room / "out/summary.json").read_text())["decisions"]


def test_an_ensemble_of_members_that_agree_decides_alike(room: Path, decided: dict[str, Any]) -> None:
    shutil.copytree(room / "bundle_CT", room / "again")
    weights = torch.load(room / "again/models/model.pt", weights_only=True)
    torch.save({**weights, "bias": weights["bias"] + 1e-5}, room / "again/models/model.pt")
    words = ("--ensemble", str(room / "again"))
    found = predict(room / "bundle_CT", room / "scans", room / "out_ensemble", *words)
    assert {id: case["decision"] for id, case in found.items()} == {
        id: case["decision"] for id, case in decided.items()
    }
    for id, case in found.items():
        assert case["quality"]["distance"] == pytest.approx(decided[id]["quality"]["distance"], rel=1e-3), id
