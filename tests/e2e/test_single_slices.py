"""A network of single slices, from thick slices to label maps: planned, trained, exported, run by MONAI and by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.cli.app import run
from segpipe.common.result_folder import find_segmentation
from segpipe.data.manifest import Manifest, save_manifest
from segpipe.data.phantom import make_phantom

pytestmark = pytest.mark.slow
SPACING_MM = (2.0, 2.5, 6.0)
LABELS = {"0": "background", "1": "liver", "2": "kidney", "3": "lesion"}
SMALL = ["network_def#channels=[8,16]", "network_def#strides=[2]", "learning_rate=0.01", "val_interval=1"]
FEW = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture(scope="module")
def thick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of CT with slices of 6 mm, sagittal ones among them as files have them, in two folds."""
    folder = tmp_path_factory.mktemp("thick")
    cases = []
    for number in range(6):
        image, label = folder / f"{number}.nii.gz", folder / f"{number}_label.nii.gz"
        made = make_phantom(number, shape=(36, 30, 12), spacing_mm=SPACING_MM)
        made.write(image, label)
        cases.append({"id": f"case_{number}", "image": image.name, "label": label.name, "fold": number % 2})
    manifest = {"name": "thick", "modality": {"0": "CT"}, "labels": LABELS, "training": cases}
    save_manifest(Manifest.model_validate(manifest), folder / "manifest.json")
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def bundle(thick: Path) -> segpipe.Bundle:
    """One that was planned, trained for some steps, and exported, each by its command."""
    folder = thick.parent
    assert run(["plan", str(thick), "--network", "unet_2d", "--memory", "1G", "-o", str(folder / "task.yaml")]) == 0
    words = ["--task", str(folder / "task.yaml"), "--runtime", str(folder / "task.runtime.yaml")]
    words += ["--network", "unet_2d", "--epochs", "6", "--threads", "1", *FEW]
    assert run(["train", str(thick), *words, "--out", str(folder / "run")]) == 0
    assert run(["export", str(folder / "run"), str(folder / "bundle")]) == 0
    return segpipe.open_bundle(folder / "bundle")


def test_the_bundle_is_stock_and_of_two_dimensions(bundle: segpipe.Bundle) -> None:
    config: dict[str, Any] = json.loads((bundle.root / "configs/inference.json").read_text())
    assert config["network_def"]["_target_"] == "monai.networks.nets.UNet"
    assert config["network_def"]["spatial_dims"] == 2
    assert config["inferer"]["_target_"] == "SliceInferer"
    assert config["inferer"]["roi_size"] == [40, 32] and config["inferer"]["spatial_dim"] == 2
    assert bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [40, 32]
    assert bundle.roi_size == (40, 32, 1) and bundle.slice_axis == 2
    assert not bundle.unsupported, "it streams"
    assert (bundle.root / "golden").is_dir()


def test_stock_monai_gives_the_labels_that_we_give(bundle: segpipe.Bundle, thick: Path, tmp_path: Path) -> None:
    import monai.bundle

    images = tmp_path / "images"
    images.mkdir()
    for number, axes in enumerate(("RAS", "LPS", "PIR")):  # the last one has its slices along the second axis
        image = nib.load(thick.parent / f"{number}.nii.gz")
        to = nib.orientations.axcodes2ornt(axes)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), to)
        nib.save(image.as_reoriented(turn), images / f"{axes}.nii.gz")
    for config in (["inference.json"], ["inference.json", "inference_fast.json"]):
        monai.bundle.run(
            config_file=[str(bundle.root / "configs" / name) for name in config],
            bundle_root=str(bundle.root),
            dataset_dir=str(images),
            output_dir=str(tmp_path / config[-1]),
        )
    assert run(["predict", str(bundle.root), str(images), str(tmp_path / "ours")]) == 0
    seen = set()
    for axes in ("RAS", "LPS", "PIR"):
        found = [
            np.asarray(nib.load(tmp_path / name / f"{axes}_seg.nii.gz").dataobj)
            for name in ("inference.json", "inference_fast.json")
        ]
        ours = np.asarray(nib.load(find_segmentation(tmp_path / "ours", axes)).dataobj)
        assert np.array_equal(found[0], ours) and np.array_equal(found[1], ours)
        seen |= set(np.unique(ours))
    assert len(seen) > 1, "something is found"


def test_it_is_inspected_and_verified(bundle: segpipe.Bundle) -> None:
    assert run(["bundle", "inspect", str(bundle.root)]) == 0
    assert run(["bundle", "verify", str(bundle.root)]) == 0


@pytest.mark.parametrize("network", ["unet", "unet_2d"])
def test_the_task_of_a_volume_serves_both_networks_that_the_plan_has_compared(
    network: str, thick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["plan", str(thick), "--memory", "1G", "-o", str(tmp_path / "task.yaml"), "--json"]
    assert run(task) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("segpipe compare --network unet,unet_2d --loss dice_ce" in note for note in notes)
    words = ["--task", str(tmp_path / "task.yaml"), "--network", network, "--dry-run", "--json"]  # as `compare` begins
    assert run(["train", str(thick), *words]) == 0
    tried = json.loads(capsys.readouterr().out)["dry_run"]
    assert (tried["batch_shape"][-1] == 1) == (network == "unet_2d")
