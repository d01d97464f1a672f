"""`segpipe import` of channels on different grids: NIfTI that somebody says is registered, and DICOM that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid
from test_dicom_import import write_labels

from dicom import make
from dicom.registered import around, item, reg, rigid
from segpipe.bundle.exporting.bundle_metadata import _registered
from segpipe.cli.app import run
from segpipe.data import import_dataset
from segpipe.data.manifest import load_manifest
from segpipe.dicom.scanning import scan
from segpipe.errors import DataError, SegpipeError, UsageError

FINE, COARSE = np.diag([1.0, 1.0, 2.0, 1.0]), np.array([[4.0, 0, 0, -1], [0, 4, 0, -2], [0, 0, 4, 0], [0, 0, 0, 1]])


def write_folders(root: Path, pet: np.ndarray = COARSE, label: tuple[int, int, int] = (5, 6, 3)) -> tuple[Path, Path]:
    """One case: channel 0 of 12 x 12 x 8 voxels, channel 1 on another grid, and a label map of one voxel."""
    random = np.random.default_rng(1)
    labels = np.zeros((12, 12, 8), np.uint8)
    labels[label] = 1
    files = {
        "images/a_0000.nii.gz": (random.integers(-100, 100, (12, 12, 8)).astype(np.int16), FINE),
        "images/a_0001.nii.gz": (random.integers(0, 50, (4, 4, 4)).astype(np.int16), pet),
        "labels/a.nii.gz": (labels, FINE),
    }
    for name, (voxels, affine) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, affine), root / name)
    return root / "images", root / "labels"


def test_registered_channels_are_put_on_the_first_grid(tmp_path: Path) -> None:
    images, labels = write_folders(tmp_path)
    before = (images / "a_0001.nii.gz").read_bytes()
    words: dict[str, Any] = {"images": images, "labels": labels, "modality": ["CT", "PET"], "overwrite": True}
    plain = import_dataset(**words)
    assert run(["check", str(plain.path)]) == 3  # different grids, as before
    made = import_dataset(**words, registered=True)
    (case,) = load_manifest(made.path).training
    assert case.registered is True and case.images == ["images/a_0000.nii.gz", "channels_for_segpipe/a_0001.nii.gz"]
    assert case.notes == ["channel 1 is said to be registered: resampled linearly to the grid of channel 0"]
    assert load_manifest(made.path).schema_version == 2
    written = nib.load(tmp_path / case.images[1])
    assert written.shape == (12, 12, 8) and (written.affine == FINE).all()
    coarse = np.asarray(nib.load(images / "a_0001.nii.gz").dataobj).astype(float)
    # (3, 6, 4) lies at (3, 6, 8) mm: on the voxel (1, 2, 2) of channel 1; (5, 6, 4) half way to (2, 2, 2)
    assert written.dataobj[3, 6, 4] == coarse[1, 2, 2]
    assert written.dataobj[5, 6, 4] == pytest.approx(coarse[1:3, 2, 2].mean())
    assert (images / "a_0001.nii.gz").read_bytes() == before
    assert run(["check", str(made.path)]) == 0
    assert "1 cases had channels on different grids, said to be registered" in made.notes[0]


def test_another_import_leaves_the_channels_of_an_earlier_manifest(tmp_path: Path) -> None:
    images, labels = write_folders(tmp_path)
    words: dict[str, Any] = {"images": images, "labels": labels, "modality": ["CT", "PET"], "registered": True}
    made = import_dataset(**words, output=tmp_path / "one.json")
    (first,) = made.manifest.training
    seen = (tmp_path / first.images[1]).read_bytes()
    write_folders(tmp_path, pet=COARSE + np.diag([0.5, 0, 0, 0]))
    (second,) = import_dataset(**words, output=tmp_path / "two.json").manifest.training
    assert second.images[1] != first.images[1] and (tmp_path / first.images[1]).read_bytes() == seen
    assert (tmp_path / second.images[1]).read_bytes() != seen


def test_labels_where_a_channel_was_not_scanned_are_refused(tmp_path: Path) -> None:
    away = COARSE.copy()
    away[0, 3] = 5.0
    images, labels = write_folders(tmp_path / "a", pet=away)
    made = import_dataset(images=images, labels=labels, registered=True)
    (case,) = load_manifest(made.path).training
    assert case.notes is not None and "does not cover 25 %" in case.notes[0]
    images, labels = write_folders(tmp_path / "b", pet=away, label=(1, 6, 3))
    with pytest.raises(DataError, match="labels lie where channel 1 was not scanned") as caught:
        import_dataset(images=images, labels=labels, registered=True)
    assert caught.value.case_id == "a"


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    images, labels = write_folders(tmp_path)
    with pytest.raises(UsageError, match="go with DICOM"):
        import_dataset(images=images, labels=labels, channel=["CT", "PET"])
    make.write(make.series(), tmp_path / "in")
    with pytest.raises(UsageError, match="goes with NIfTI"):
        import_dataset(tmp_path / "in", registered=True)
    with pytest.raises(UsageError, match="exclude each other"):
        import_dataset(tmp_path / "in", channel=["CT", "PET"], modality=["CT"])
    with pytest.raises(DataError, match="no series is the channel PET"):
        import_dataset(tmp_path / "in", channel=["PET", "CT"])


CT = make.Grid(rows=12, columns=14, slices=7, spacing=(1.5, 1.25), step=3.0)
PET = make.Grid(rows=7, columns=8, slices=7, spacing=(3.0, 3.0), step=3.5, origin=(-22.0, 30.0, 4.0))


def add_patient(folder: Path, pet: make.Grid = PET, moved_to: str = "") -> None:
    """A CT with labels, and a PET with labels of its own, in one frame of reference, or the PET in another."""
    here = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "PatientID": folder.name}
    for modality, grid in (("CT", CT), ("PT", pet)):
        if modality == "PT" and moved_to:
            make.write([reg(here["FrameOfReferenceUID"], item(moved_to, rigid()))], folder / "reg")
            here["FrameOfReferenceUID"] = moved_to
        make.write(make.series(grid, modality, seed=len(str(folder)), **here), folder / modality)
        (series,) = scan(folder / modality).series
        write_labels(series, {1: f"GTV {modality}"}, folder / f"{modality}/labels.dcm")


def test_ct_and_pet_become_two_channels_of_a_case(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add_patient(tmp_path / "in" / name)
    made = import_dataset(
        tmp_path / "in", channel=["CT", "PET"], label_rules=["GTV*=1:tumour"], output=tmp_path / "m.json"
    )
    assert made.manifest.modality == {"0": "CT", "1": "PET"}
    assert any("2 label files of other series than the first channel" in note for note in made.notes)
    for case in made.manifest.training:
        assert case.registered is None  # the headers say so
        first, second, label = (nib.load(made.root / path) for path in case.paths)
        assert first.shape == second.shape == label.shape == (14, 12, 7)
        np.testing.assert_array_equal(first.affine, second.affine)
        assert first.get_data_dtype() == np.int16 and second.get_data_dtype() == np.float32
    assert len({case.patient_id for case in made.manifest.training}) == 2
    assert run(["check", str(made.path)]) in (0, 3)
    again = import_dataset(
        tmp_path / "in",
        channel=["CT", "PET"],
        label_rules=["GTV*=1:tumour"],
        output=tmp_path / "m.json",
        overwrite=True,
    )
    assert again.manifest.dump() == made.manifest.dump()


def test_a_pet_that_a_registration_object_moves_is_recorded_and_shown_on_the_card(tmp_path: Path) -> None:
    middle = np.array([-20.0 + 6.5 * 1.25, 31.0 + 5.5 * 1.5, 5.0 + 3 * 3.0, 1.0])  # of the CT
    moved = around((np.linalg.inv(rigid()) @ middle)[:3])
    add_patient(tmp_path / "in/one", moved, generate_uid())
    add_patient(tmp_path / "in/two")
    words: dict[str, Any] = {"channel": ["CT", "PET"], "label_rules": ["GTV*=1:tumour"], "output": tmp_path / "m.json"}
    made = import_dataset(tmp_path / "in", **words)
    by_registered = {case.registered: case for case in made.manifest.training}
    assert set(by_registered) == {None, "a rigid DICOM registration object"}
    case = by_registered["a rigid DICOM registration object"]
    assert case.notes is not None and "turned by 12 degrees, its middle by" in case.notes[0]
    first, second, _ = (nib.load(made.root / path) for path in case.paths)
    np.testing.assert_array_equal(first.affine, second.affine)
    (limit,) = _registered(made.manifest)
    assert limit.startswith("the channels of 1 of 2 cases are registered by a rigid DICOM registration object")
    make.write([reg("1.2.3", item("1.2.4", rigid()))], tmp_path / "in/one/reg")  # now it speaks of other frames
    with pytest.raises(SegpipeError, match="no registration object maps one to the other"):
        import_dataset(tmp_path / "in", **words, overwrite=True)


def test_labels_beside_the_pet_refuse_their_case(tmp_path: Path) -> None:
    add_patient(tmp_path / "in/one")
    beside = make.Grid(rows=7, columns=8, slices=7, spacing=(3.0, 3.0), step=3.5, origin=(-22.0, 38.0, 4.0))
    add_patient(tmp_path / "in/two", beside)
    words: dict[str, Any] = {"channel": ["CT", "PET"], "label_rules": ["GTV*=1:tumour"], "output": tmp_path / "m.json"}
    with pytest.raises(SegpipeError) as caught:
        import_dataset(tmp_path / "in", **words)
    assert "labels lie where channel PET was not scanned" in str(caught.value)
    made = import_dataset(tmp_path / "in", **words, skip_bad=True)
    assert len(made.manifest.training) == 1
