"""`segpipe predict` with a bundle of two channels: DICOM series and files on different grids, in every route."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

import segpipe
from dicom import make
from dicom.registered import STUDY, around, item, reg, rigid
from segpipe.cli.app import run
from segpipe.common.resampling import resample
from segpipe.data.manifest import Manifest, save_manifest
from segpipe.dicom.labels import read_labels
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.errors import DataError
from tiny_bundle import DETERMINISTIC, THRESHOLD, write_bundle

pytestmark = pytest.mark.usefixtures("one_worker")
CT = make.Grid(rows=12, columns=14, slices=7, spacing=(1.5, 1.25), step=3.0)
PET = make.Grid(rows=8, columns=9, slices=7, spacing=(3.0, 3.0), step=3.5, origin=(-22.0, 30.0, 4.0))


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("two") / "bundle", channels=("CT", "PET"))


def write_study(folder: Path, pet: make.Grid = PET, **attributes: Any) -> None:
    here = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    for seed, (modality, grid) in enumerate((("CT", CT), ("PT", pet))):
        own = attributes if modality == "PT" else {}
        make.write(make.series(grid, modality, seed=seed, **{**here, **own}), folder / modality)


def expected_labels(first: np.ndarray, onto: np.ndarray, second: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where the sum of both channels is above the threshold of the tiny network."""
    x, y, z = first.shape
    total = first.astype(np.float32) + resample(second, affine, (x, y, z), onto)
    assert (np.abs(total - THRESHOLD) > 1e-3).all()
    return total > THRESHOLD


def test_ct_and_pet_of_a_study_are_segmented_as_one_case(
    two_channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "in/a")
    write_study(tmp_path / "in/b", FrameOfReferenceUID="1.2.3")
    words = [
        "predict",
        str(two_channels),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--format",
        "nifti,seg,rtstruct",
    ]
    assert run([*words, "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    done, refused = sorted(document["cases"], key=lambda case: case["status"])
    series = {one.case_id: one for one in scan(tmp_path / "in").series}
    ct = series[done["id"]]
    assert ct.modality == "CT" and set(done["files"]) == {"nifti", "seg", "rtstruct"}
    assert done["notes"] == []  # it covers all of the CT
    assert refused["reason"] == "channels" and "another frame of reference" in refused["detail"]
    assert [left_out["rule"] for left_out in document["not_selected"]] == ["not-a-channel"]
    (pet,) = [one for one in series.values() if one.modality == "PT" and one.study_uid == ct.study_uid]
    first, second = load_series(ct), load_series(pet)
    expected = expected_labels(first.array, first.affine_ras, second.array, second.affine_ras)
    image = nib.load(tmp_path / "out" / ct.case_id / "segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    for name in ("seg.dcm", "rtstruct.dcm"):
        (mask,) = read_labels(tmp_path / "out" / ct.case_id / name, ct).values()
        np.testing.assert_array_equal(mask, expected, name)
    capsys.readouterr()
    assert run([*words, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["counts"]["skipped"] == 1


def test_a_registered_channel_is_moved_and_every_result_says_so(
    two_channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = rigid(9.0)
    middle = np.array([-20.0 + 6.5 * 1.25, 31.0 + 5.5 * 1.5, 5.0 + 3 * 3.0, 1.0])  # of the CT
    pet = around((np.linalg.inv(matrix) @ middle)[:3])
    fixed, moving = generate_uid(), generate_uid()
    for seed, (modality, grid, frame) in enumerate((("CT", CT, fixed), ("PT", pet, moving))):
        uids = {"StudyInstanceUID": STUDY, "FrameOfReferenceUID": frame}
        make.write(make.series(grid, modality, seed=seed, **uids), tmp_path / "in" / modality)
    make.write([reg(fixed, item(moving, matrix))], tmp_path / "in" / "reg")
    words = ["predict", str(two_channels), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    assert run([*words, "--format", "nifti,seg"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["notes"][0].startswith("channel PET lies in another frame of reference: moved by the rigid matrix")
    result = json.loads((tmp_path / "out" / case["id"] / "result.json").read_text())
    assert "turned by 9 degrees" in " ".join(result["notes"])
    series = {one.modality: one for one in scan(tmp_path / "in").series}
    first, second = load_series(series["CT"]), load_series(series["PT"])
    flip = np.diag([-1.0, -1, 1, 1])
    moved = flip @ matrix @ flip @ second.affine_ras
    expected = expected_labels(first.array, first.affine_ras, second.array, moved)
    found = np.asarray(nib.load(tmp_path / "out" / case["id"] / "segmentation.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)
    make.write([reg(fixed, item(moving, rigid(10.0)))], tmp_path / "in" / "reg")  # another matrix, another input
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["skipped"] == 0 and "turned by 10 degrees" in document["cases"][0]["notes"][0]


def test_rules_say_which_series_is_which(
    two_channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "in", SeriesDescription="whole body")
    words = ["predict", str(two_channels), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    assert run([*words, "--channel", "CT", "--channel", "PET=PT:brain"]) == 4
    assert "has no channel PET" in json.loads(capsys.readouterr().out)["cases"][0]["detail"]
    assert run([*words, "--channel", "CT"]) == 2
    assert "--channel does not name the channels of the bundle" in capsys.readouterr().out
    assert run([*words, "--channel", "CT", "--channel", "PET=PT:body$"]) == 0


def write_files(folder: Path) -> list[Path]:
    random = np.random.default_rng(4)
    paths = [folder / f"a_000{index}.nii.gz" for index in range(2)]
    affines = np.diag([1.0, 1.0, 2.0, 1.0]), np.array([[4.0, 0, 0, -1], [0, 4, 0, 2], [0, 0, 4, 0], [0, 0, 0, 1]])
    folder.mkdir(parents=True, exist_ok=True)
    for path, affine, shape in zip(paths, affines, ((12, 12, 8), (4, 4, 4)), strict=True):
        nib.save(nib.Nifti1Image((200 * random.random(shape)).astype(np.float32), affine), path)
    return paths


def test_files_on_different_grids_have_to_be_said_to_be_registered(
    two_channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_files(tmp_path / "in")
    words = ["predict", str(two_channels), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    assert run(words) == 4
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["reason"] == "the channels lie on different grids" and "--registered" in case["detail"]
    assert run([*words, "--registered"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["notes"] == ["channel 1 is said to be registered: resampled linearly to the grid of channel 0"]
    first, second = map(nib.load, paths)
    expected = expected_labels(first.get_fdata(), first.affine, second.get_fdata(), second.affine)
    found = nib.load(tmp_path / "out/a/segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    bundle = segpipe.open_bundle(two_channels)
    for images in (paths, [first, second]):
        with pytest.raises(DataError, match="the channels lie on different grids"):
            bundle.segment(images, device="cpu")
        in_python = bundle.segment(images, device="cpu", registered=True)
        np.testing.assert_array_equal(in_python.array, expected)
    manifest = {
        "name": "x",
        "modality": {"0": "CT", "1": "PET"},
        "labels": {"0": "background", "1": "bright"},
        "test": [{"id": "a", "image": [f"in/{path.name}" for path in paths], "registered": True}],
    }
    save_manifest(Manifest.model_validate(manifest), tmp_path / "m.json")
    assert run(["predict", str(two_channels), str(tmp_path / "m.json"), str(tmp_path / "again")]) == 0
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "again/a/segmentation.nii.gz").dataobj), np.asarray(found.dataobj)
    )


@pytest.mark.slow
def test_the_stock_route_gives_the_same_labels(two_channels: Path, tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "stock",
        channels=("CT", "PET"),
        deterministic=[*DETERMINISTIC, {"_target_": "ScaleIntensityd", "keys": "image", "minv": None, "maxv": None}],
    )
    write_study(tmp_path / "in/dicom")
    write_files(tmp_path / "in/files")
    for name, opened in (("typed", two_channels), ("other", bundle)):
        batch = segpipe.predict(opened, tmp_path / "in", tmp_path / name, device="cpu", registered=True)
        assert [outcome.status for outcome in batch.outcomes] == ["done", "done"], name
        assert {outcome.result["route"] for outcome in batch.outcomes} == {"typed" if name == "typed" else "stock"}
    for case in ("a", next(one.case_id for one in scan(tmp_path / "in/dicom").series if one.modality == "CT")):
        typed, stock = (nib.load(tmp_path / name / case / "segmentation.nii.gz") for name in ("typed", "other"))
        np.testing.assert_array_equal(np.asarray(typed.dataobj), np.asarray(stock.dataobj))
        np.testing.assert_allclose(typed.affine, stock.affine, atol=1e-4)


@pytest.mark.slow
def test_pet_is_converted_to_the_unit_that_the_bundle_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GML is SUVbw here; BQML without what SUV takes, and a data set in BQML, are refused."""
    bundle = write_bundle(tmp_path / "bundle", channels=("CT", "PET"))
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    (bundle / "configs/metadata.json").write_text(json.dumps({**metadata, "units": {"1": "SUVbw"}}))
    corrected = {"CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START"}
    write_study(tmp_path / "in/a", Units="GML", **corrected)
    write_study(tmp_path / "in/b", Units="BQML", **corrected)
    write_study(tmp_path / "in/c", Units="PROPCPS", **corrected)
    assert run(["predict", str(bundle), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == 4
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert sorted(case["status"] for case in cases) == ["done", "refused", "refused"]
    details = {case["detail"] for case in cases if case["status"] == "refused"}
    assert {case["reason"] for case in cases if case["status"] == "refused"} == {"pet_unit"}
    assert any("RadiopharmaceuticalInformationSequence (0054,0016): 0 injections" in detail for detail in details)
    assert any("no unit that is known (Units (0054,1001)), expected SUVbw" in detail for detail in details)
    manifest = {
        "name": "x",
        "modality": {"0": "CT", "1": "PET"},
        "labels": {"0": "background", "1": "bright"},
        "units": {"1": "BQML"},
        "test": [{"id": "a", "image": ["a.nii.gz", "b.nii.gz"]}],
    }
    save_manifest(Manifest.model_validate(manifest), tmp_path / "m.json")
    assert run(["predict", str(bundle), str(tmp_path / "m.json"), str(tmp_path / "again"), "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["found"], error["expected"]) == ("channel 1 in BQML", "SUVbw")
