"""An organ that is larger than a patch: planned, trained and exported as two stages, and run as one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

import segpipe
from segpipe.cli.app import run
from segpipe.common.subprocesses import Ended
from segpipe.data.manifest import load_manifest, save_manifest
from segpipe.data.phantom import make_phantom
from tiny_data import SMALL, InThisProcess, write_data

MEMORY = "4.2M"  # two patches of 16 voxels a side
TEST, EPOCHS = "case_6", 50


class Here(InThisProcess):
    """Makes all calls of a cross-validation in this process."""

    def call(self, name: str, arguments: dict[str, Any], on_line: Callable[[str], object] = len) -> Ended:
        if name == "segpipe.train":
            return super().call(name, arguments, on_line)
        getattr(segpipe, name.removeprefix("segpipe."))(**arguments)
        return Ended(0, {})


def with_test_case(root: Path) -> Path:
    """Write six cases of two folds and one to test on, on grids of 52 x 48 x 44 voxels."""
    path = write_data(root, cases=7)
    for number in range(7):
        phantom = make_phantom(number, shape=(52, 48, 44), spacing_mm=(1.3, 1.3, 1.4))
        phantom.write(root / f"images/case_{number}.nii.gz", root / f"labels/case_{number}.nii.gz")
    manifest = load_manifest(path)
    *training, last = manifest.training
    split = {"training": training, "test": [last.model_copy(update={"fold": None})]}
    save_manifest(manifest.model_copy(update=split), path)
    return path


def trained(manifest: Path, task: Path, out: Path, *more: str) -> None:
    changed = [item for item in SMALL if not item.startswith(("val_interval", "network_def#channels"))]
    changed += ["network_def#channels=[8,16]", f"val_interval={EPOCHS}", "learning_rate=0.01"]
    small = [word for item in changed for word in ("--set", item)]
    words = ["train", str(manifest), "--task", str(task), "--out", str(out), "--threads", "1", "--augment", "none"]
    assert run([*words, *small, "--epochs", str(EPOCHS), *more]) == 0


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean Dice of liver and kidney."""
    pairs = [(found == value, truth == value) for value in (1, 2)]
    return float(np.mean([2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in pairs]))


def edges(task: Path) -> list[float]:
    steps = yaml.safe_load(task.read_text())["deterministic_transforms"]
    return next(step["pixdim"] for step in steps if "pixdim" in step)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_stages_from_plan_to_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import monai.bundle

    manifest = with_test_case(tmp_path / "data")
    full, coarse, last = (tmp_path / f"{name}.yaml" for name in ("full", "coarse", "last"))
    assert run(["plan", str(manifest), "-o", str(full), "--memory", MEMORY, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert any("`segpipe plan --first-stage`" in note for note in planned["notes"])
    assert run(["plan", str(manifest), "-o", str(coarse), "--memory", MEMORY, "--first-stage", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert "--folds all" in planned["next"] and not any("--first-stage" in note for note in planned["notes"])
    assert all(wide > 1.3 * narrow for narrow, wide in zip(edges(full), edges(coarse), strict=True))

    here = Here()
    for module in ("several_runs", "out_of_fold"):
        monkeypatch.setattr(f"segpipe.training.{module}.Subprocesses", lambda: here)
    evaluate = functools.partial(segpipe.evaluate, figures=False)
    monkeypatch.setattr("segpipe.training.out_of_fold.evaluate", evaluate)
    trained(manifest, coarse, tmp_path / "first", "--folds", "all")
    second = tmp_path / "data" / "second.json"
    assert run(["import", str(manifest), "--first-stage", str(tmp_path / "first"), "-o", str(second)]) == 0
    assert run(["plan", str(second), "-o", str(last), "--memory", MEMORY]) == 0
    trained(second, last, tmp_path / "second", "--fold", "0")
    trained(manifest, full, tmp_path / "alone", "--fold", "0")
    words = ["export", str(tmp_path / "second"), str(tmp_path / "both"), "--first-stage", str(tmp_path / "first")]
    assert run(words) == 0

    again = ["reproduce", str(tmp_path / "both"), "--data", str(tmp_path / "data"), "--dry-run"]
    assert run(again) == 0
    both = ["predict", str(tmp_path / "both"), str(manifest), str(tmp_path / "out"), "--split", "test"]
    assert run([*both, "--threads", "1", "--runtime", "torch"]) == 0
    ours = np.asarray(nib.load(tmp_path / "out" / TEST / "segmentation.nii.gz").dataobj)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / f"{TEST}_0000.nii.gz").hardlink_to(tmp_path / "data" / "images" / f"{TEST}.nii.gz")
    places = {"bundle_root": str(tmp_path / "both"), "dataset_dir": str(tmp_path / "scans")}
    configs = tmp_path / "both" / "configs"
    monai.bundle.run(config_file=str(configs / "first_stage.json"), output_dir=str(tmp_path / "masks"), **places)
    monai.bundle.run(
        config_file=str(configs / "inference.json"),
        output_dir=str(tmp_path / "stock"),
        first_stage_dir=str(tmp_path / "masks"),
        **places,
    )
    stock = np.asarray(nib.load(tmp_path / "stock" / f"{TEST}_0000_seg.nii.gz").dataobj)
    assert (ours == stock).mean() > 0.9999
    truth = np.asarray(nib.load(tmp_path / "data" / "labels" / f"{TEST}.nii.gz").dataobj)
    best = {
        name: json.loads((tmp_path / name / "run.json").read_text())["best"]["val_mean_dice"]
        for name in ("second", "alone")
    }
    print(f"mean Dice of fold 0: {best['second']:.3f} with a first stage, {best['alone']:.3f} alone")
    print(f"mean Dice of liver and kidney, test case: {dice(ours, truth):.3f}")
    assert dice(ours, truth) > 0.25  # it has learnt something
