"""Ignored voxels, regions that overlap and cases annotated in part, from the import to the bundle and stock MONAI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dicom import make
from segpipe.cli.app import run
from segpipe.dicom.labels import read_labels
from segpipe.dicom.scanning import scan
from segpipe.errors import OK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHAPE = (24, 22, 20)
AFFINE = np.diag([-1.5, 1.5, 2.0, 1.0])
SMALL = ["network_def#channels=[8,16]", "network_def#strides=[2]", "network_def#num_res_units=0", "patch_divisor=2"]
NESTED = {"whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]}


def ball(centre: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    inside: NDArray[np.bool_] = ((places - centre) ** 2).sum(-1) <= radius**2
    return inside


def phantom(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Three balls within each other, each brighter than the one around it: labels 1, 2, 3 from the outside."""
    random = np.random.default_rng(seed)
    centre = np.array(SHAPE) / 2 + random.uniform(-3, 3, 3)
    label = np.zeros(SHAPE, np.uint8)
    for value, radius in ((1, 8.0), (2, 5.5), (3, 3.5)):
        label[ball(centre, radius)] = value
    image = np.array([0.0, 100, 200, 300])[label] + random.normal(0, 12, SHAPE)
    return image.astype(np.float32), label


def write_nnunet(root: Path, labels: dict[str, Any], change: Any = None) -> Path:
    for number in range(6):
        image, label = phantom(number)
        label = label if change is None else change(number, label)
        for folder, name, values in (("imagesTr", f"c_{number}_0000", image), ("labelsTr", f"c_{number}", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, AFFINE), root / folder / f"{name}.nii.gz")
    document = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def trained(root: Path, fold: str = "0", epochs: int = 12) -> Path:
    """Split, plan, train and export; returns the bundle."""
    manifest, task = str(root / "manifest.json"), str(root / "task.yaml")
    assert run(["check", manifest]) == OK
    assert run(["split", manifest, "--test", "2", "--folds", "2"]) == OK
    assert run(["plan", manifest, "--network", "unet", "--memory", "1G", "-o", task]) == OK
    overrides = [word for each in [*SMALL, "val_interval=4", "steps_per_epoch=8"] for word in ("--set", each)]
    fixed = ["--network", "unet", "--fold", fold, "--epochs", str(epochs), "--threads", "1"]
    assert run(["train", manifest, "--task", task, *fixed, *overrides, "--out", str(root / "run")]) == OK
    assert run(["export", str(root / "run"), str(root / "model")]) == OK
    return root / "model"


def stock(bundle: Path, config: str, data: Path, out: Path) -> None:
    words = ["--config_file", str(bundle / "configs" / config), "--bundle_root", str(bundle)]
    words += ["--dataset_dir", str(data), "--output_dir", str(out)]
    done = subprocess.run([sys.executable, "-m", "monai.bundle", "run", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def stock_dice(out: Path) -> float:
    return float((out / "metrics.csv").read_text().replace(",", " ").split()[-1])


def voxels(path: Path) -> NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


def test_regions_within_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": 3}
    root = write_nnunet(tmp_path / "data", labels)
    assert run(["import", str(root)]) == OK
    bundle = trained(root)
    config = json.loads((root / "run" / "config.json").read_text())
    assert (config["activation"], config["out_channels"], config["regions"]) == ("sigmoid", 3, NESTED)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == dict(zip("012", NESTED, strict=True))
    assert metadata["training_data"]["regions"] == NESTED
    assert "a mask of 0 and 1 for each region" in " ".join((bundle / "docs" / "README.md").read_text().split())
    assert run(["bundle", "verify", str(bundle)]) == OK

    manifest, out = str(root / "manifest.json"), tmp_path / "out"
    assert run(["predict", str(bundle), manifest, str(out), "--data", str(root)]) == OK
    test = [case["id"] for case in json.loads(Path(manifest).read_text())["test"]]
    stock(bundle, "inference.json", root / "imagesTr", tmp_path / "stock")
    for case in test:
        ours = voxels(out / case / "segmentation.nii.gz")
        assert ours.shape == (*SHAPE, 3) and ours.any()
        assert np.array_equal(ours, voxels(tmp_path / "stock" / f"{case}_0000_seg.nii.gz"))

    capsys.readouterr()
    assert run(["evaluate", manifest, str(out), "--out", str(tmp_path / "metrics"), "--json"]) == OK
    measured = json.loads(capsys.readouterr().out)["summary"]["labels"]
    assert [part["name"] for part in measured.values()] == list(NESTED)
    for number, values in enumerate(NESTED.values()):
        dice = []
        for case in test:
            truth = np.isin(voxels(root / "labelsTr" / f"{case}.nii.gz"), values)
            found = voxels(out / case / "segmentation.nii.gz")[..., number] == 1
            dice.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
        assert measured[str(number + 1)]["metrics"]["dice"]["mean"] == pytest.approx(np.mean(dice))
        assert np.mean(dice) > 0.3
    stock(bundle, "evaluate.json", root, tmp_path / "stock_eval")
    overall = np.mean([part["metrics"]["dice"]["mean"] for part in measured.values()])
    assert stock_dice(tmp_path / "stock_eval") == pytest.approx(overall, abs=1e-4)
    check_cleaned(root, out, tmp_path / "cleaned", test)


def check_cleaned(root: Path, out: Path, folder: Path, test: list[str]) -> None:
    """A bundle with rules for its regions gives what SciPy's components make of the masks, and stock MONAI the same."""
    folder.mkdir()
    rules = {
        "1": {"keep_largest": True, "min_volume_ml": None},
        "2": {"keep_largest": False, "min_volume_ml": 1000},  # all of it, so that there is something to remove
        "3": {"keep_largest": False, "min_volume_ml": 0.05},
    }
    (folder / "rules.json").write_text(json.dumps({"schema_version": 1, "rules": rules}))
    bundle = folder / "model"
    assert run(["export", str(root / "run"), str(bundle), "--postprocessing", str(folder / "rules.json")]) == OK
    card = (bundle / "docs/README.md").read_text()
    assert "Of whole tumour, only the largest" in card and "Of enhancing tumour, components below 0.05 mL" in card
    cleaned = folder / "out"
    assert run(["predict", str(bundle), str(root / "manifest.json"), str(cleaned), "--data", str(root)]) == OK
    stock(bundle, "inference.json", root / "imagesTr", folder / "stock")
    for case in test:
        before, found = (voxels(each / case / "segmentation.nii.gz") for each in (out, cleaned))
        sizes = [components(before[..., number]) for number in range(3)]
        expected = before.copy()
        expected[..., 0][sizes[0] < sizes[0].max()] = 0
        expected[..., 1] = 0
        expected[..., 2][sizes[2] * 0.0045 < 0.05] = 0
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, voxels(folder / "stock" / f"{case}_0000_seg.nii.gz"))
        assert before[..., 1].any()


def components(mask: NDArray[Any]) -> NDArray[np.int64]:
    """The size of the component that each voxel belongs to, 0 outside."""
    numbers, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    return np.asarray(sizes[numbers])


def test_voxels_that_nobody_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hidden(number: int, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The upper third of each volume is ignored; below it all labels are seen."""
        changed = label.copy()
        changed[:, :, 13:] = 4
        return changed

    labels = {"background": 0, "rim": 1, "core": 2, "heart": 3, "ignore": 4}
    root = write_nnunet(tmp_path / "data", labels, hidden)
    assert run(["import", str(root)]) == OK
    bundle = trained(root)
    config = json.loads((root / "run" / "config.json").read_text())
    assert config["ignore_label"] == 4
    assert "segpipe.components.AnnotatedToIndicesd" in [step["_target_"] for step in config["random_transforms"]]
    assert "which nobody annotated, were left out" in (bundle / "docs" / "README.md").read_text()

    manifest, out = str(root / "manifest.json"), tmp_path / "out"
    assert run(["predict", str(bundle), manifest, str(out), "--data", str(root)]) == OK
    capsys.readouterr()
    assert run(["evaluate", manifest, str(out), "--out", str(tmp_path / "metrics"), "--json"]) == OK
    measured = json.loads(capsys.readouterr().out)["summary"]["labels"]
    test = [case["id"] for case in json.loads(Path(manifest).read_text())["test"]]
    for value in (1, 2, 3):
        dice = []
        for case in test:
            truth, found = voxels(root / "labelsTr" / f"{case}.nii.gz"), voxels(out / case / "segmentation.nii.gz")
            here, there = truth[:, :, :13] == value, found[:, :, :13] == value
            dice.append(2 * (here & there).sum() / (here.sum() + there.sum()))
        assert measured[str(value)]["metrics"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    stock(bundle, "evaluate.json", root, tmp_path / "stock_eval")
    overall = np.mean([part["metrics"]["dice"]["mean"] for part in measured.values()])
    assert stock_dice(tmp_path / "stock_eval") == pytest.approx(overall, abs=1e-4)
    check_seg(bundle, tmp_path)


def check_seg(bundle: Path, folder: Path) -> None:
    """The SEG of a patient who comes as DICOM has the labels, no segment for what is ignored, and stock's voxels."""
    image = phantom(20)[0].astype(np.int16)
    grid = make.Grid((1, 0, 0, 0, 1, 0), SHAPE[1], SHAPE[0], SHAPE[2], (1.5, 1.5), 2.0, (0.0, 0.0, 0.0))
    slices = make.series(grid, "MR")
    for number, one in enumerate(slices):
        one.PixelData = np.ascontiguousarray(image[:, :, number].T).astype("<i2").tobytes()
    make.write(slices, folder / "patient")
    assert run(["predict", str(bundle), str(folder / "patient"), str(folder / "next"), "--format", "nifti,seg"]) == OK
    (series,) = scan(folder / "patient").series
    (result,) = (folder / "next").glob("dcm-*")
    found, masks = voxels(result / "segmentation.nii.gz"), read_labels(result / "seg.dcm", series)
    assert list(masks) == ["rim", "core", "heart"]
    assert found.any()
    for value, mask in enumerate(masks.values(), 1):
        np.testing.assert_array_equal(mask, found == value)
    (folder / "same").mkdir()
    nib.save(nib.Nifti1Image(image, np.diag([-1.5, -1.5, 2.0, 1.0])), folder / "same/next_0000.nii.gz")
    stock(bundle, "inference.json", folder / "same", folder / "stock_next")
    np.testing.assert_array_equal(voxels(next((folder / "stock_next").rglob("*.nii.gz"))), found)


def test_cases_in_which_not_every_label_was_looked_for(tmp_path: Path) -> None:
    def asked(number: int, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """In even cases nobody looked for label 1, in odd ones nobody for label 3."""
        return np.where(label == (1 if number % 2 == 0 else 3), 0, label).astype(np.uint8)

    labels = {"background": 0, "rim": 1, "core": 2, "heart": 3}
    root = write_nnunet(tmp_path / "data", labels, asked)
    annotated = ["--annotated", "c_[024]=core,heart", "--annotated", "c_[135]=rim,core"]
    assert run(["import", str(root), *annotated]) == OK
    trained(root, "none", epochs=20)
    out = tmp_path / "out"
    assert run(["predict", str(root / "model"), str(root / "manifest.json"), str(out), "--data", str(root)]) == OK
    dice = []
    for number in range(6):
        _, truth = phantom(number)  # all labels, as nobody who trained saw them
        found = voxels(out / f"c_{number}" / "segmentation.nii.gz")
        dice += [2 * ((truth == v) & (found == v)).sum() / ((truth == v).sum() + (found == v).sum()) for v in (1, 2, 3)]
    assert len(dice) == 18 and min(dice) > 0.3, dice


def test_every_fold_and_a_comparison_of_regions_with_ignored_voxels_annotated_in_part(tmp_path: Path) -> None:
    """All of it in one data set; out-of-fold and comparison measure what was looked for, where it counts."""

    def hidden(number: int, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        changed = np.where((label == 1) & (number % 2 == 0), 0, label).astype(np.uint8)
        changed[:, :, 14:] = 4
        return changed

    labels = {"background": 0, **NESTED, "enhancing tumour": 3, "ignore": 4}
    root = write_nnunet(tmp_path / "data", labels, hidden)
    # in even cases nobody looked for label 1, so nobody knows the whole tumour
    assert run(["import", str(root), "--annotated", "c_[024]=label_2,enhancing tumour"]) == OK
    manifest, task = str(root / "manifest.json"), str(root / "task.yaml")
    assert run(["check", manifest]) == OK
    assert run(["split", manifest, "--test", "0", "--folds", "2"]) == OK
    assert run(["plan", manifest, "--network", "unet", "--memory", "1G", "-o", task]) == OK
    overrides = [word for each in [*SMALL, "val_interval=1", "steps_per_epoch=2"] for word in ("--set", each)]
    fixed = ["--task", task, "--network", "unet", "--augment", "by_class", "--threads", "1", *overrides]
    assert run(["train", manifest, *fixed, "--folds", "all", "--epochs", "1", "--out", str(root / "folds")]) == OK
    known = {name: values for name, values in NESTED.items() if name != "whole tumour"}
    measured = json.loads((root / "folds/evaluation/metrics.json").read_text())["cases"]
    assert len(measured) == 6
    for case in measured:
        truth = voxels(root / "labelsTr" / f"{case['id']}.nii.gz")
        found = voxels(root / "folds/out_of_fold" / case["id"] / "segmentation.nii.gz")
        looked_for = known if int(case["id"][2:]) % 2 == 0 else NESTED
        dice = {part["name"]: part["dice"] for part in case["labels"] if part["dice"] is not None}
        assert set(dice) == set(looked_for), case["id"]
        for number, (name, values) in enumerate(NESTED.items()):
            if name in looked_for:
                true, predicted = np.isin(truth, values) & (truth != 4), (found[..., number] == 1) & (truth != 4)
                assert dice[name] == pytest.approx(2 * (true & predicted).sum() / (true.sum() + predicted.sum()))
    out = tmp_path / "compare"
    assert run(["compare", manifest, *fixed, "--loss", "dice_ce", "--steps", "2", "--out", str(out)]) == OK
    (row,) = json.loads((out / "compare.json").read_text())["results"]["rows"]
    assert list(row["labels"]) == list(NESTED) and row["runs"]["planned"] == 1
