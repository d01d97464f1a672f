"""The MONAI reader gives what NIfTI gives, refuses what the scan refuses, and lets no other reader try."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import AXIAL, CORONAL, FLIPPED, MARKER, OBLIQUE, SAGITTAL, Grid, plant, series, write
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged, Orientationd

from segpipe.dicom.conversion import write_volume
from segpipe.dicom.monai_reader import DicomReader
from segpipe.dicom.volume import load
from segpipe.errors import DataError, UsageError

NAME = "segpipe.dicom.monai_reader.DicomReader"


def loaded(path: Path | list[Path], reader: Any = None, codes: str = "RAS", **options: Any) -> Any:
    names = [str(each) for each in path] if isinstance(path, list) else str(path)
    found = LoadImaged("image", reader, ensure_channel_first=True, **options)({"image": names})
    return Orientationd("image", codes, labels=None)(found)["image"]


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, FLIPPED, OBLIQUE])
def test_the_same_as_from_nifti(orientation: Sequence[float], tmp_path: Path) -> None:
    write(series(Grid(orientation, spacing=(1.5, 0.7))), tmp_path / "in")
    write_volume(load(tmp_path / "in")[0], tmp_path / "a.nii.gz")
    for codes in ("RAS", "LPS", "SAR"):
        image, nifti = loaded(tmp_path / "in", NAME, codes), loaded(tmp_path / "a.nii.gz", None, codes)
        np.testing.assert_array_equal(image, nifti)
        np.testing.assert_allclose(image.affine, nifti.affine, atol=1e-4)
        assert image.meta["space"] == nifti.meta["space"]


def test_a_config_can_name_it(tmp_path: Path) -> None:
    write(series(), tmp_path)
    config = {"load": {"_target_": "LoadImaged", "keys": "image", "reader": NAME, "repair": "tilt"}}
    image = ConfigParser(config).get_parsed_content("load")({"image": str(tmp_path)})["image"]
    assert image.shape == (10, 12, 6)


def test_one_file_stands_for_its_series(tmp_path: Path) -> None:
    paths = write(series(), tmp_path)
    write(series(seed=1), tmp_path, "other")
    image = loaded(paths[3], DicomReader())
    expected = next(volume for volume in load(tmp_path) if paths[3] in volume.series.files)
    write_volume(expected, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image, loaded(tmp_path / "a.nii.gz"))


def test_several_folders_are_channels_on_one_grid(tmp_path: Path) -> None:
    for number in range(2):
        write(series(seed=number), tmp_path / str(number))
    image = loaded([tmp_path / "0", tmp_path / "1"], NAME)
    assert image.shape == (2, 10, 12, 6)
    np.testing.assert_array_equal(image[1], loaded(tmp_path / "1", NAME)[0])
    write(series(Grid(step=2)), tmp_path / "2")
    with pytest.raises(DataError, match="different grids"):
        loaded([tmp_path / "0", tmp_path / "2"], NAME)


def test_what_is_refused_is_read_by_no_other_reader(tmp_path: Path) -> None:
    images = series()
    write(images[:3] + images[4:], tmp_path)
    with pytest.raises(DataError, match="refused: gap"):
        loaded(tmp_path, NAME)
    with pytest.raises(DataError, match="refused: gap"):
        LoadImaged("image", reader=DicomReader())({"image": str(tmp_path)})
    assert loaded(tmp_path, NAME, repair="spacing").shape[1:] == (10, 12, 6)


def test_a_choice_is_made_by_name_alone(tmp_path: Path) -> None:
    for number in range(2):
        write(series(seed=number), tmp_path / str(number))
    with pytest.raises(DataError, match="not one DICOM series"):
        loaded(tmp_path, NAME)
    volume = load(tmp_path)[1]
    for name in (volume.series.series_uid, volume.series.case_id):
        write_volume(volume, tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(loaded(tmp_path, NAME, series_uid=name), loaded(tmp_path / "a.nii.gz"))


def test_metadata_has_no_text_of_the_header(tmp_path: Path) -> None:
    images = series()
    for image in images:
        plant(image)
    write(images, tmp_path / "in")
    meta = loaded(tmp_path / "in", NAME).meta
    assert MARKER not in repr(meta) and "0815" not in repr(meta)


def test_a_nifti_file_goes_to_its_own_reader(tmp_path: Path) -> None:
    write(series(), tmp_path / "in")
    write_volume(load(tmp_path / "in")[0], tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(loaded(tmp_path / "a.nii.gz", NAME), loaded(tmp_path / "in", NAME))


def test_wrong_options(tmp_path: Path) -> None:
    for options in ({"series": "1.2.3"}, {"repair": "twist"}):
        with pytest.raises(UsageError):
            DicomReader(**options)
        with pytest.raises(UsageError):
            LoadImaged("image", reader=NAME, **options)
    with pytest.raises(DataError, match="not one"):
        loaded(tmp_path, NAME)


@pytest.mark.realdata
def test_real_series_through_monai(tmp_path: Path) -> None:
    root = Path(os.environ["SEGPIPE_DATA"]) / "ibsi_STS_003"
    image = loaded(root / "dicom" / "CT" / "image", NAME)
    nifti = loaded(root / "nifti" / "CT_image.nii.gz")
    np.testing.assert_array_equal(image, nifti)
    np.testing.assert_allclose(image.affine, nifti.affine, atol=1e-3)
