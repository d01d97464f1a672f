"""Whole volumes against the standard's formula for place (PS3.3 C.7.6.2.1.1) and value."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from encode import LOSSLESS, encode
from make import AXIAL, CORONAL, FLIPPED, OBLIQUE, SAGITTAL, Grid, enhanced, position, series, write
from pydicom import dcmread

from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load, load_series
from segpipe.errors import DataError, UsageError

ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "flipped": FLIPPED, "oblique": OBLIQUE}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_is_where_and_what_the_standard_says(name: str, tmp_path: Path) -> None:
    images = series(Grid(ORIENTATIONS[name], spacing=(1.5, 0.7)), RescaleSlope="2", RescaleIntercept="-1024")
    write([images[number] for number in (3, 0, 5, 1, 4, 2)], tmp_path)
    (volume,) = load(tmp_path)
    assert volume.array.dtype == np.int16 and volume.array.shape == (10, 12, 6)
    assert volume.spacing_mm == pytest.approx((0.7, 1.5, 3))
    for k, image in enumerate(images):
        expected = dcmread(volume.series.frames[k].path).pixel_array.T.astype(int) * 2 - 1024
        np.testing.assert_array_equal(volume.array[:, :, k], expected)
        for column, row in ((0, 0), (9, 0), (0, 11), (4, 7)):
            here = (volume.affine_ras @ [column, row, k, 1])[:3] * [-1, -1, 1]
            assert np.linalg.norm(here - position(image, column, row)) < 0.01


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_the_same_volume_in_every_transfer_syntax(syntax: str, tmp_path: Path) -> None:
    images = series(RescaleIntercept="-1024")
    for number, image in enumerate(images):
        encode(image, syntax, tmp_path / "coded" / f"{number}.dcm")
    (volume,) = load(tmp_path / "coded")
    stored = [np.frombuffer(image.PixelData, "<i2").reshape(12, 10).T for image in images]
    np.testing.assert_array_equal(volume.array, np.stack(stored, axis=2) - 1024)


def test_a_different_rescale_in_every_slice(tmp_path: Path) -> None:
    images = series(modality="PT")
    for number, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = f"{0.00123 * (number + 1):.8g}", "0"
    write(images, tmp_path)
    (volume,) = load(tmp_path)
    assert volume.array.dtype == np.float32
    for number, image in enumerate(images):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(12, 10).T
        np.testing.assert_array_equal(
            volume.array[:, :, number], (stored * float(image.RescaleSlope)).astype(np.float32)
        )


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_frames(shared: bool, tmp_path: Path) -> None:
    image = enhanced(shared=shared)
    write([image], tmp_path)
    (volume,) = load(tmp_path)
    stored = np.frombuffer(image.PixelData, "<i2").reshape(6, 12, 10)
    np.testing.assert_array_equal(volume.array, stored.transpose(2, 1, 0))


def padded(values: tuple[int, ...], modality: str = "CT", offset: int = 0) -> list:
    """Slices of which the first row is padding; the rest is ``values`` and more."""
    images = series(modality=modality)
    for image in images:
        stored = np.abs(np.frombuffer(image.PixelData, "<i2").reshape(12, 10)) + offset
        stored[0] = image.PixelPaddingValue = values[0]
        stored[1, : len(values) - 1] = values[1:]
        image.PixelData = stored.astype("<i2").tobytes()
        image.RescaleIntercept = "-1024"
    return images


def test_padding_has_the_smallest_measured_value(tmp_path: Path) -> None:
    write(padded((-2000, 7), offset=10), tmp_path)
    (volume,) = load(tmp_path)
    assert volume.array.min() == 7 - 1024
    assert (volume.array[:, 0] == 7 - 1024).all()
    assert any("padding" in note for note in volume.notes)


def test_padding_above_everything_is_not_the_brightest(tmp_path: Path) -> None:
    write(padded((30000, 7), offset=10), tmp_path)
    (volume,) = load(tmp_path)
    assert (volume.array[:, 0] == 7 - 1024).all() and volume.array.max() < 1010


def test_padding_of_zero_stays_where_nothing_is_negative(tmp_path: Path) -> None:
    images = padded((0, 7), "MR", offset=10)
    for image in images:
        image.RescaleIntercept = "0"
    write(images, tmp_path)
    (volume,) = load(tmp_path)
    assert (volume.array[:, 0] == 0).all() and not any("padding" in note for note in volume.notes)


def test_a_volume_of_padding_alone(tmp_path: Path) -> None:
    images = series()
    for image in images:
        image.PixelPaddingValue = -2000
        image.PixelData = np.full((12, 10), -2000, "<i2").tobytes()
    write(images, tmp_path)
    (volume,) = load(tmp_path)
    assert np.unique(volume.array).size == 1


def test_int16_only_where_it_is_exact(tmp_path: Path) -> None:
    for name, top, dtype in (("a", 32767, np.int16), ("b", 32768, np.float32)):
        images = series(PixelRepresentation=0)
        for image in images:
            stored = np.zeros((12, 10), "<u2")
            stored[5, 5] = top
            image.PixelData = stored.tobytes()
        write(images, tmp_path / name)
        (volume,) = load(tmp_path / name)
        assert volume.array.dtype == dtype and volume.array.max() == top


def test_numbers_too_long_for_float32_are_said(tmp_path: Path) -> None:
    images = series(BitsAllocated=32, BitsStored=32, HighBit=31)
    for image in images:
        image.PixelData = np.full((12, 10), 2**24 + 1, "<i4").tobytes()
    write(images, tmp_path)
    (volume,) = load(tmp_path)
    assert any("rounded" in note for note in volume.notes)


def test_what_is_refused_is_not_loaded(tmp_path: Path) -> None:
    images = series()
    write(images[:2] + images[4:], tmp_path)
    with pytest.raises(DataError, match="no series can be loaded") as caught:
        load(tmp_path)
    assert "gap" in str(caught.value)
    (refused,) = scan(tmp_path).series
    with pytest.raises(DataError, match="refused: gap"):
        load_series(refused)


def test_a_frame_that_was_cut_is_named(tmp_path: Path) -> None:
    paths = [encode(image, "jpeg_2000", tmp_path / f"{number}.dcm") for number, image in enumerate(series())]
    (judged,) = scan(tmp_path).series
    image = dcmread(paths[2])
    image.PixelData = image.PixelData[: len(image.PixelData) // 2] + b"\xfe\xff\xdd\xe0\0\0\0\0"
    image.save_as(paths[2])
    with pytest.raises(DataError) as caught:
        load_series(judged)
    assert caught.value.path == str(paths[2]) and caught.value.case_id == judged.case_id
    assert caught.value.reason == "truncated"


def test_no_such_repair(tmp_path: Path) -> None:
    write(series(), tmp_path)
    with pytest.raises(UsageError, match="no such repair"):
        load(tmp_path, repair="twist")


@pytest.mark.realdata
def test_real_series() -> None:
    root = Path(os.environ["SEGPIPE_DATA"]) / "dicom"
    shapes = {
        "01_ct_axial": (512, 512, 12),
        "04_mr_coronal": (256, 256, 16),
        "05_double_oblique_nonsquare": (100, 50, 3),
        "06_flipped_iop": (88, 128, 17),
        "40_enh_siemens_3d": (256, 256, 8),
        "50_comp_jpegls": (256, 256, 4),
        "52_pet_rescale_per_slice": (29, 30, 51),
        "62_nonimage_sr_rt_dicomdir": (512, 512, 12),
    }
    for name, shape in shapes.items():
        (volume,) = load(root / name)
        assert volume.array.shape == shape
        for k, frame in enumerate(volume.series.frames):
            image = dcmread(frame.path)
            stored = image.pixel_array.reshape(-1, image.Rows, image.Columns)[frame.number].T
            known = stored != image.get("PixelPaddingValue", None)
            expected = stored * float(image.get("RescaleSlope") or 1) + float(image.get("RescaleIntercept") or 0)
            np.testing.assert_array_equal(volume.array[:, :, k][known], expected[known].astype(volume.array.dtype))


@pytest.mark.realdata
@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_the_same_scan_as_nifti(modality: str) -> None:
    import nibabel as nib

    root = Path(os.environ["SEGPIPE_DATA"]) / "ibsi_STS_003"
    (volume,) = load(root / "dicom" / modality / "image")
    nifti = nib.load(root / "nifti" / f"{modality}_image.nii.gz")
    np.testing.assert_allclose(volume.affine_ras, nifti.affine, atol=1e-3)
    np.testing.assert_allclose(volume.array, np.asarray(nifti.dataobj), rtol=2e-7)
