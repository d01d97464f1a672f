"""The generated anatomy: equal bytes for equal seeds, plausible content, geometry that can be believed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.common.nifti import read_header, read_volume
from segpipe.data import phantom

SMALL = (24, 24, 24)
SPACING = (1.2, 1.2, 1.6)


def test_one_seed_gives_one_volume_and_another_seed_another() -> None:
    one, same, other = (phantom.make_phantom(seed, SMALL, SPACING) for seed in (3, 3, 4))
    assert np.array_equal(one.image, same.image) and np.array_equal(one.label, same.label)
    assert np.array_equal(one.affine, same.affine)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("seed", range(8))
def test_every_case_has_every_label_and_the_promised_types(seed: int) -> None:
    case = phantom.make_phantom(seed, SMALL, SPACING)
    assert case.image.dtype == np.int16 and case.label.dtype == np.uint8
    assert case.image.shape == case.label.shape == SMALL
    assert set(np.unique(case.label)) == set(phantom.PHANTOM_LABELS)
    assert case.image.min() >= 0


def test_a_patient_can_be_scanned_twice() -> None:
    one, again, other = (
        phantom.make_phantom(scan, SMALL, SPACING, tilt_deg=0.0, patient_seed=patient)
        for scan, patient in ((1, 5), (2, 5), (3, 6))
    )
    volume = [np.bincount(case.label.ravel(), minlength=4)[1:] for case in (one, again, other)]
    assert not np.array_equal(one.image, again.image)
    assert np.abs(volume[0] / volume[1] - 1).max() < np.abs(volume[0] / volume[2] - 1).max()


def test_without_lesions_there_is_none() -> None:
    assert phantom.make_phantom(1, SMALL, SPACING, lesions=0).label.max() == 2


def test_boundaries_are_blended() -> None:
    """Without noise, voxels between fat and air hold every eighth of the way: the partial volume."""
    image = phantom.make_phantom(5, SMALL, SPACING, noise=0.0).image.astype(float)
    rim = image[(image > 0.05 * image.max()) & (image < 0.2 * image.max())]
    assert len(rim) > 20


def test_noise_is_rician() -> None:
    """In air the magnitude of complex noise follows Rayleigh: mean over deviation is sqrt(pi / (4 - pi))."""
    clean = phantom.make_phantom(2, (48, 48, 24), (1.2, 1.2, 2.5), noise=0.0).image
    noisy = phantom.make_phantom(2, (48, 48, 24), (1.2, 1.2, 2.5), noise=40.0).image
    air = noisy[clean == 0].astype(float)
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


@settings(max_examples=15, deadline=None)
@given(
    orientation=st.sampled_from(["RAS", "LPS", "LAS", "PSR", "SLA"]),
    spacing=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    seed=st.integers(0, 2**31),
)
def test_affine_is_a_rotation_times_the_spacing(
    orientation: str, spacing: tuple[float, float, float], seed: int
) -> None:
    affine = phantom.make_phantom(seed, (4, 4, 4), spacing, orientation).affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    assert np.allclose(lengths, spacing, rtol=1e-5)
    unit = affine[:3, :3] / lengths
    assert np.allclose(unit.T @ unit, np.eye(3), atol=1e-5)
    assert "".join(nib.orientations.aff2axcodes(affine)) == orientation


def test_anatomy_stands_in_the_world_and_not_in_the_grid() -> None:
    """However the axes are stored, every organ is at the same place in millimetres."""
    centres = {}
    for orientation in ("RAS", "LPS", "PSR"):
        case = phantom.make_phantom(11, (32, 32, 32), (1.2, 1.2, 1.2), orientation)
        centres[orientation] = [
            nib.affines.apply_affine(case.affine, np.argwhere(case.label == value)).mean(axis=0) for value in (1, 2, 3)
        ]
    assert np.allclose(centres["RAS"], centres["LPS"], atol=0.3)
    assert np.allclose(centres["RAS"], centres["PSR"], atol=0.3)
    liver, kidneys, _ = centres["RAS"]
    assert liver[0] > kidneys[0] and liver[2] > kidneys[2]  # to the right of their middle, and above


def test_files_repeat_byte_for_byte_and_read_back(tmp_path) -> None:
    case = phantom.make_phantom(7, SMALL, SPACING, "LPS")
    case.write(tmp_path / "a.nii.gz", tmp_path / "la.nii.gz")
    case.write(tmp_path / "b.nii.gz", tmp_path / "lb.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    header = read_header(tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(header), case.image)
    assert np.allclose(header.affine, case.affine, atol=1e-5)
    assert header.orientation == "LPS" and header.dtype == "int16"
    assert np.array_equal(read_volume(read_header(tmp_path / "la.nii.gz")), case.label)


def test_uncompressed_files_are_written_too(tmp_path) -> None:
    case = phantom.make_phantom(7, SMALL, SPACING)
    case.write(tmp_path / "a.nii")
    assert np.array_equal(read_volume(read_header(tmp_path / "a.nii")), case.image)
