"""The shipped bundle gives one mask for one scan, whether it comes as NIfTI or as DICOM."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dicom import make
from segpipe.cli.app import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUNDLE = Path(__file__).resolve().parents[2] / "bundles/hippocampus_mri"


def blobs(path: Path) -> Path:
    """Smooth bright blobs in noise, whole numbers, on a grid that is turned in the plane."""
    random = np.random.default_rng(4)
    shape = (35, 50, 34)
    values = ndimage.gaussian_filter(random.random(shape), 3)
    values = (values - values.min()) / np.ptp(values) * 400 + random.random(shape) * 40
    affine = np.array([[0.98, -0.2, 0, -17], [0.2, 0.98, 0, 30], [0, 0, 1.0, 5], [0, 0, 0, 1]])
    affine[:2, :2] /= np.linalg.norm(affine[:2, 0])
    nib.save(nib.Nifti1Image(values.astype(np.int16), affine), path)
    return path


def as_dicom(path: Path, folder: Path) -> None:
    """The very voxels and places of a NIfTI file as an MR series: a row runs along its first axis."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    np.testing.assert_array_equal(voxels, voxels.astype("<i2"), "the case is not integer-valued")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    along_row, along_column = lps[:3, 0] / edges[0], lps[:3, 1] / edges[1]
    columns, rows, slices = voxels.shape
    images = make.series(make.Grid(rows=rows, columns=columns, slices=slices), "MR")
    if np.linalg.det(lps[:3, :3]) < 0:  # slices are sorted along row x column
        voxels, lps = (voxels[:, :, ::-1], lps @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, slices - 1], [0, 0, 0, 1]])
    for k, each in enumerate(images):
        each.ImageOrientationPatient = make.decimal([*along_row, *along_column])
        each.PixelSpacing = make.decimal([edges[1], edges[0]])
        each.ImagePositionPatient = make.decimal((lps @ [0, 0, k, 1])[:3])
        each.PixelData = voxels[:, :, k].T.astype("<i2").tobytes()
    make.write(images, folder)


def labels_of(folder: Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.load(folder / "segmentation.nii.gz"))


def compare(scan: Path, tmp_path: Path) -> None:
    as_dicom(scan, tmp_path / "in" / "dicom")
    (tmp_path / "in" / "n.nii.gz").symlink_to(scan)
    assert run(["predict", str(BUNDLE), str(tmp_path / "in"), str(tmp_path / "out"), "--threads", "1"]) in (0, 6)
    (series,) = (tmp_path / "out").glob("dcm-*")
    one, other = labels_of(tmp_path / "out" / "n"), labels_of(series)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    assert np.asarray(one.dataobj).any()
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_a_generated_scan(tmp_path: Path) -> None:
    compare(blobs(tmp_path / "blobs.nii.gz"), tmp_path)


@pytest.mark.realdata
def test_a_real_scan(tmp_path: Path) -> None:
    folder = Path(os.environ["SEGPIPE_DATA"]) / "Task04_Hippocampus" / "imagesTr"
    for path in sorted(folder.glob("[!.]*.nii.gz")):
        voxels = np.asarray(nib.load(path).dataobj)
        if np.array_equal(voxels, voxels.astype(np.int16)):
            return compare(path, tmp_path)
    raise AssertionError("no case has whole numbers")
