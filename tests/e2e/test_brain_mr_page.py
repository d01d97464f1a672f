"""The commands of the page on nested regions in MR, one after another, on generated brains: shortened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom import make
from docs.pages import blocks, commands
from segpipe.cli.app import run
from segpipe.data import BRAIN_REGIONS, BrainPhantom, make_brain_phantom
from segpipe.dicom.labels import read_labels
from segpipe.dicom.scanning import scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAGE = "docs/howto/brain_mr.md"
NETWORK = "network_def#channels=[8,16] network_def#strides=[2] network_def#num_res_units=0 patch_divisor=2"
SMALL = f"val_interval=6 steps_per_epoch=8 learning_rate=0.01 {NETWORK}"
SHORTER = {
    "plan": ["--memory", "1G"],
    "train": ["--epochs", "12", "--threads", "1", *[word for value in SMALL.split() for word in ("--set", value)]],
}
DESCRIPTIONS = {"T1Gd": "t1 axial gd", "T1": "t1 axial", "T2": "t2 tse", "FLAIR": "flair thick"}
LPS = np.diag([-1.0, -1, 1, 1])


def test_the_page_runs_from_files_to_seg_and_to_stock_monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        if block.page == PAGE:
            exec(compile(block.text, PAGE, "exec"), {})
    patient = make_brain_phantom(100)
    write_dicom(patient, tmp_path / "next_patient")
    verbs = []
    for block in blocks("sh"):
        if block.page == PAGE and block.mark == "tested":
            for words in commands(block.text):
                verbs.append(words[0])
                assert run([*words, *SHORTER.get(words[0], [])]) == 0, words
    assert verbs == ["import", "check", "split", "plan", "train", "export", "predict", "evaluate", "predict"]
    brains = tmp_path / "brains"
    manifest = json.loads((brains / "manifest.json").read_text())
    assert manifest["regions"] == BRAIN_REGIONS and all(case["registered"] for case in manifest["training"])
    assert len([*(brains / "pictures").glob("brain_*.png")]) == 8
    test = [case["id"] for case in manifest["test"]]
    check_figures(brains, test)
    card = " ".join((brains / "bundle/docs/README.md").read_text().split())
    assert "a mask of 0 and 1 for each region" in card and "registered" in card
    check_stock(tmp_path, manifest)
    check_next(tmp_path, patient)


def write_dicom(brain: BrainPhantom, folder: Path) -> None:
    """The four channels as series of one study and frame of reference, FLAIR on its own grid."""
    here = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    for name, image in brain.images.items():
        axes = LPS @ brain.affines[name]
        edges = np.linalg.norm(axes[:3, :3], axis=0)
        right, down = (axes[:3, axis] / edges[axis] for axis in (0, 1))
        columns, rows, slices = image.shape
        origin = tuple(axes[:3, 3])
        grid = make.Grid((*right, *down), rows, columns, slices, (edges[1], edges[0]), edges[2], origin)
        images = make.series(grid, "MR", SeriesDescription=DESCRIPTIONS[name], **here)
        for number, one in enumerate(images):
            one.PixelData = np.ascontiguousarray(image[:, :, number].T).astype("<i2").tobytes()
        make.write(images, folder / name)


def check_figures(brains: Path, test: list[str]) -> None:
    """Dice of each region is that of the masks, and better than chance."""
    labels = json.loads((brains / "metrics/metrics.json").read_text())["summary"]["labels"]
    for number, (name, values) in enumerate(BRAIN_REGIONS.items()):
        dice = []
        for case in test:
            truth = np.isin(voxels(brains / "labels" / f"{case}.nii.gz"), values)
            found = voxels(brains / "results" / case / "segmentation.nii.gz")[..., number] == 1
            dice.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
        assert labels[str(number + 1)]["name"] == name
        assert labels[str(number + 1)]["metrics"]["dice"]["mean"] == pytest.approx(np.mean(dice))
        assert np.mean(dice) > 0.3, (name, dice)


def check_stock(folder: Path, manifest: dict[str, Any]) -> None:
    """Stock MONAI gives the same masks of the files that the import put on one grid."""
    (folder / "one_grid").mkdir()
    for case in manifest["test"]:
        for index, image in enumerate(case["image"]):
            (folder / "one_grid" / f"{case['id']}_{index:04}.nii.gz").symlink_to(folder / "brains" / image)
    run_stock(folder, folder / "one_grid", folder / "brains/stock")
    for case in manifest["test"]:
        ours = voxels(folder / "brains/results" / case["id"] / "segmentation.nii.gz")
        (stock,) = (folder / "brains/stock").rglob(f"{case['id']}*.nii.gz")
        np.testing.assert_array_equal(ours, voxels(stock))


def check_next(folder: Path, patient: BrainPhantom) -> None:
    """The SEG has three segments nested in each other, which are those of stock MONAI on what SimpleITK resamples."""
    series = {one.description: one for one in scan(folder / "next_patient").series}
    first = series[DESCRIPTIONS["T1Gd"]]
    (result,) = (folder / "brains/next").glob("dcm-*")
    assert result.name == first.case_id
    seg = dcmread(result / "seg.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.series_uid
    masks = read_labels(result / "seg.dcm", first)
    assert list(masks) == list(BRAIN_REGIONS)
    found = voxels(result / "segmentation.nii.gz")
    for number, mask in enumerate(masks.values()):
        np.testing.assert_array_equal(mask, found[..., number] == 1)
    for name, mask in read_labels(result / "rtstruct.dcm", first).items():
        np.testing.assert_array_equal(mask, masks[name])
    both = masks["whole tumour"] & masks["tumour core"]
    assert both.sum() > 0.5 * masks["tumour core"].sum()  # overlap is kept
    (folder / "resampled").mkdir()
    grid = sitk_image(patient, "T1Gd")
    for index, name in enumerate(DESCRIPTIONS):
        image = sitk_image(patient, name)
        lowest = float(SimpleITK.GetArrayViewFromImage(image).min())
        onto = SimpleITK.Resample(image, grid, SimpleITK.Transform(), SimpleITK.sitkLinear, lowest)
        SimpleITK.WriteImage(onto, str(folder / "resampled" / f"next_{index:04}.nii.gz"))
    run_stock(folder, folder / "resampled", folder / "stock_next")
    (stock,) = (folder / "stock_next").rglob("*.nii.gz")
    assert (voxels(stock) != found).mean() < 1e-3


def sitk_image(brain: BrainPhantom, name: str) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(brain.images[name].transpose(2, 1, 0).astype(np.float32))
    axes = LPS @ brain.affines[name]
    edges = np.linalg.norm(axes[:3, :3], axis=0)
    image.SetSpacing(edges.tolist())
    image.SetOrigin(axes[:3, 3].tolist())
    image.SetDirection((axes[:3, :3] / edges).ravel().tolist())
    return image


def run_stock(folder: Path, data: Path, out: Path) -> None:
    """The page's command, with other folders."""
    (text,) = [one.text for one in blocks("sh") if one.page == PAGE and "monai.bundle" in one.text]
    words = text.replace("\\\n", " ").split()
    places = {"one_grid": str(data), "brains/stock": str(out), "python": sys.executable}
    done = subprocess.run([places.get(word, word) for word in words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def voxels(path: Path) -> NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)
