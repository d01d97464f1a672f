"""The commands of the page on CT and PET, one after another, on three real patients: shortened, and looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from docs.pages import blocks, commands
from segpipe.cli.app import run
from segpipe.dicom.labels import open_labels, read_labels
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan

DATA = Path(os.environ.get("SEGPIPE_DATA", "/nonexistent")) / "ibsi_sts"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.is_dir(), reason="SEGPIPE_DATA does not name a folder of real scans"),
]
PATIENTS = ("STS_008", "STS_019", "STS_025")
SMALL = (
    "steps_per_epoch=2 overlap=0.1 network_def#channels=[4,8] network_def#strides=[[2,2,1]] network_def#num_res_units=0"
)
KEY = f"{0:064d}"  # draws the split: STS_008, whose slices end within bytes, is the test case
SHORTER = {
    "split": ["--test", "1", "--folds", "2"],
    "plan": ["--memory", "200M"],
    "train": ["--epochs", "1", "--threads", "1", *[word for value in SMALL.split() for word in ("--set", value)]],
}


def test_the_page_runs_from_dicom_to_dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = tmp_path / "config" / "segpipe" / "pseudonyms.key"
    key.parent.mkdir(parents=True)
    key.write_text(KEY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for patient in PATIENTS:
        (tmp_path / "sarcoma").mkdir(exist_ok=True)
        (tmp_path / "sarcoma" / patient).symlink_to(DATA / patient)
    verbs = []
    for block in blocks("sh"):
        if block.page == "docs/howto/pet_ct.md" and block.mark == "tested":
            for words in commands(block.text):
                verbs.append(words[0])
                shorter = SHORTER.get(words[0]) or (of_the_test_case(tmp_path) if words[0] == "predict" else [])
                assert run([*words, *shorter]) == 0, words
    assert verbs == ["import", "check", "split", "plan", "train", "export", "predict", "evaluate"]
    manifest = json.loads((tmp_path / "pet_ct/manifest.json").read_text())
    assert (manifest["modality"], manifest["units"]) == ({"0": "CT", "1": "PET"}, {"1": "SUVbw"})
    assert len([*(tmp_path / "pet_ct/pictures").glob("dcm-*.png")]) == 3
    series = scan(tmp_path / "sarcoma").series
    by_id = {one.case_id: one for one in series}
    cases = [*manifest["training"], *manifest["test"]]
    assert {case["id"] for case in cases} == {one.case_id for one in series if one.modality == "CT"}
    for case in cases:
        check_case(tmp_path / "pet_ct", case, by_id)
    check_result(tmp_path / "pet_ct/results", by_id[manifest["test"][0]["id"]])
    metadata = json.loads((tmp_path / "pet_ct/bundle/configs/metadata.json").read_text())
    assert metadata["units"] == {"1": "SUVbw"}
    assert "SUVbw" in (tmp_path / "pet_ct/bundle/docs/README.md").read_text()
    (measured,) = json.loads((tmp_path / "pet_ct/metrics/metrics.json").read_text())["cases"]
    assert measured["id"] == manifest["test"][0]["id"]


def check_case(folder: Path, case: dict[str, object], by_id: dict[str, Series]) -> None:
    """The PET on the CT's grid has its own values, and the label is the CT's contour."""
    ct = by_id[str(case["id"])]
    (pet,) = [one for one in by_id.values() if one.study_uid == ct.study_uid and one.modality == "PT"]
    images = case["image"]
    assert isinstance(images, list)
    first, second = (nib.load(folder / path) for path in images)
    label = nib.load(folder / str(case["label"]))
    assert first.shape == second.shape == label.shape == ct.shape
    values = np.asarray(second.dataobj)
    slices = [dcmread(path) for path in pet.files]
    stored = np.stack([one.pixel_array * float(one.RescaleSlope) for one in slices])
    assert stored.min() - 1e-3 <= values.min() and values.max() <= stored.max() + 1e-3
    # where voxels of the PET have their centre, by each slice's own position, the nearest of the CT differ little
    to_index = np.linalg.inv(second.affine)
    differences = []
    for one, plane in zip(slices, stored, strict=True):
        row, column = np.unravel_index(int(plane.argmax()), plane.shape)
        down, right = (float(edge) for edge in one.PixelSpacing)
        axes = np.array(one.ImageOrientationPatient, float)
        place = np.array(one.ImagePositionPatient, float) + axes[:3] * right * column + axes[3:] * down * row
        index = to_index @ [-place[0], -place[1], place[2], 1]
        nearest = np.rint(index[:3]).astype(int)
        if ((nearest >= 0) & (nearest < values.shape)).all():
            differences.append(abs(float(values[tuple(nearest)]) - float(plane[row, column])) / float(stored.max()))
    assert len(differences) > 20 and float(np.median(differences)) < 0.03
    path = next(Path(ct.files[0]).parent.parent.glob("mask/*.dcm"))
    (contour,) = read_labels(path, ct).values()
    np.testing.assert_array_equal(np.asarray(label.dataobj) == 1, contour)


def of_the_test_case(folder: Path) -> list[str]:
    """Take one patient alone: contours of what two steps of training leave take long."""
    (case,) = json.loads((folder / "pet_ct/manifest.json").read_text())["test"]
    series = scan(folder / "sarcoma").series
    study = next(one.study_uid for one in series if one.case_id == case["id"])
    taken = [one.case_id for one in series if one.study_uid == study]
    return ["--threads", "1", *[word for id in taken for word in ("--series", id)]]


def check_result(folder: Path, ct: Series) -> None:
    """Results are on the CT."""
    assert [path.name for path in folder.glob("dcm-*")] == [ct.case_id]
    found = np.asarray(nib.load(folder / ct.case_id / "segmentation.nii.gz").dataobj)
    for mask in read_labels(folder / ct.case_id / "seg.dcm", ct).values():
        np.testing.assert_array_equal(mask, found == 1)
    contours = open_labels(folder / ct.case_id / "rtstruct.dcm")
    assert (contours.series_uid, contours.frame_of_reference_uid) == (ct.series_uid, ct.frame_of_reference_uid)
