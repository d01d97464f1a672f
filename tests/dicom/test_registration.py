"""Channels in different frames of reference, joined by a DICOM registration object where it is rigid and alone.

Objects are made with pydicom; where voxels go is what SimpleITK makes of the same matrix.
"""

from __future__ import annotations

import json
from pathlib import Path

import make
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from registered import DEFORMABLE, STUDY, around, item, reg, rigid

from segpipe.common.resampling import covered
from segpipe.dicom.channels import join_channels, parse_channels
from segpipe.dicom.model import Series
from segpipe.dicom.registration import open_registrations
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_channels, load_series

CT = make.Grid(rows=20, columns=24, slices=12, spacing=(1.5, 1.25), step=2.0, origin=(-12.0, -11.0, 3.0))
RULES = parse_channels(["CT", "PET"])
FIXED, MOVING, THIRD = (generate_uid() for _ in range(3))


def write(folder: Path, *objects: Dataset) -> tuple[Path, tuple[str, ...]]:
    """A CT, a PET in another frame of reference, and registration objects."""
    make.write(make.series(CT, "CT", seed=1, StudyInstanceUID=STUDY, FrameOfReferenceUID=FIXED), folder / "ct")
    images = make.series(PET, "PT", seed=2, StudyInstanceUID=STUDY, FrameOfReferenceUID=MOVING)
    make.write(images, folder / "pet")
    for number, each in enumerate(objects):
        make.write([each], folder / "reg", f"reg{number}")
    return folder, tuple(image.SOPInstanceUID for image in images)


def joined(folder: Path) -> Series:
    scanned = scan(folder)
    (case,) = join_channels(scanned.series, RULES, None, open_registrations(scanned.passed_over)).cases
    return case


def by_simpleitk(first: Series, moved: Series, matrix: np.ndarray) -> np.ndarray:
    """The moved series on the grid of the first, by a transform from points of the grid to points of the series."""
    images = []
    for series in (first, moved):
        volume = load_series(series)
        image = SimpleITK.GetImageFromArray(volume.array.transpose(2, 1, 0).astype(np.float32))
        axes = np.diag([-1.0, -1, 1, 1]) @ volume.affine_ras
        edges = np.linalg.norm(axes[:3, :3], axis=0)
        image.SetSpacing(edges.tolist())
        image.SetOrigin(axes[:3, 3].tolist())
        image.SetDirection((axes[:3, :3] / edges).ravel().tolist())
        images.append(image)
    back = np.linalg.inv(matrix)
    transform = SimpleITK.AffineTransform(back[:3, :3].ravel().tolist(), back[:3, 3].tolist())
    lowest = float(SimpleITK.GetArrayViewFromImage(images[1]).min())
    found = SimpleITK.Resample(images[1], images[0], transform, SimpleITK.sitkLinear, lowest)
    return np.asarray(SimpleITK.GetArrayFromImage(found).transpose(2, 1, 0))


M, N = rigid(), rigid(-30.0, (11.0, 3.0, -9.0))
MIDDLE = np.array([-12.0 + 11.5 * 1.25, -11.0 + 9.5 * 1.5, 3.0 + 5.5 * 2.0, 1.0])  # of the CT
PET = around((np.linalg.inv(M) @ MIDDLE)[:3])  # so that it covers the CT only where it is moved
WAYS = {
    "to the first": [reg(FIXED, item(MOVING, M))],
    "to the first, which is named too": [reg(FIXED, item(FIXED, np.eye(4)), item(MOVING, M))],
    "to the other": [reg(MOVING, item(FIXED, np.linalg.inv(M)))],
    "both to a third": [reg(THIRD, item(FIXED, N), item(MOVING, N @ M))],
    "two that say the same": [reg(FIXED, item(MOVING, M)), reg(MOVING, item(FIXED, np.linalg.inv(M)))],
    "two matrices about one axis": [reg(FIXED, item(MOVING, M, np.eye(4)))],
    "and one of other frames": [reg(FIXED, item(MOVING, M)), reg(THIRD, item("1.2.3", N)), reg(FIXED, item(THIRD, N))],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_rigid_matrix_joins_two_frames_as_simpleitk_resamples(way: str, tmp_path: Path) -> None:
    folder, _ = write(tmp_path, *WAYS[way])
    case = joined(folder)
    assert case.state == "loaded", case.detail
    (pet,) = case.further
    assert case.notes[0].startswith(
        "channel PET lies in another frame of reference: moved by the rigid matrix of a registration object, "
        "turned by 12 degrees, its middle by "
    )
    again = Series.from_dict(json.loads(json.dumps(case.as_dict(), default=str)))
    for each in (case, again):
        first, second = load_channels(each)
        expected = by_simpleitk(case, pet, M)
        assert pet.affine_ras is not None and pet.shape is not None
        assert np.ptp(expected) > 1000
        inside = covered(pet.shape, pet.placed(pet.affine_ras), CT_SHAPE, first.affine_ras)
        assert 0.5 < inside.mean() <= 1
        off = np.abs(second.array - expected)
        assert np.quantile(off[inside], 0.99) < 0.5 and off[inside].mean() < 0.5  # of a range of 2,000
        assert (off > 0.5).mean() < 0.02  # voxels on the border of what is covered
    assert len(case.all_files) == 12 + 14 + 1


CT_SHAPE = (24, 20, 12)
SCALED = M @ np.diag([1.02, 1.02, 1.02, 1.0])
MIRRORED = M @ np.diag([-1.0, 1.0, 1.0, 1.0])
SHEARED = M @ np.array([[1, 0.05, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
REFUSED = {
    "none": ([], "no registration object maps one to the other"),
    "of another frame": ([reg(FIXED, item(THIRD, M))], "no registration object maps one to the other"),
    "over two objects": ([reg(FIXED, item(THIRD, M)), reg(THIRD, item(MOVING, N))], "no registration object maps"),
    "scaling": ([reg(FIXED, item(MOVING, SCALED, kind="RIGID_SCALE"))], "its matrix is RIGID_SCALE, expected RIGID"),
    "affine": ([reg(FIXED, item(MOVING, M, kind="AFFINE"))], "its matrix is AFFINE, expected RIGID"),
    "not what it says": ([reg(FIXED, item(MOVING, SCALED))], "says that it is rigid, and scales or shears"),
    "shearing": ([reg(FIXED, item(MOVING, SHEARED))], "says that it is rigid, and scales or shears"),
    "mirroring": ([reg(FIXED, item(MOVING, MIRRORED))], "its matrix mirrors"),
    "cut": ([reg(FIXED, item(MOVING, M[:3]))], "its matrix has not 16 numbers"),
    "without a matrix": ([reg(FIXED, item(MOVING))], "it has no matrix"),
    "matrices in an order": ([reg(FIXED, item(MOVING, M, N))], "2 matrices, whose order readers take differently"),
    "one frame twice": ([reg(FIXED, item(MOVING, M), item(MOVING, N))], "several matrices for one frame"),
    "deformable": ([reg(FIXED, item(MOVING, M), sop_class=DEFORMABLE)], "but it is deformable"),
    "deformable beside rigid": (
        [reg(FIXED, item(MOVING, M)), reg(FIXED, item(MOVING, M), sop_class=DEFORMABLE)],
        "but it is deformable",
    ),
    "two that differ": (
        [reg(FIXED, item(MOVING, M)), reg(FIXED, item(MOVING, rigid(12.0, (4.0, -6.0, 8.5))))],
        "2 registration objects map one to the other, and differ by 0.5 mm",
    ),
    "of other images": ([reg(FIXED, item(MOVING, M, images=("1.2.3.4",)))], "no registration object maps one"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_anything_else_is_refused_with_the_reason(why: str, tmp_path: Path) -> None:
    objects, words = REFUSED[why]
    folder, _ = write(tmp_path, *objects)
    case = joined(folder)
    assert (case.state, case.reason, case.further) == ("refused", "channels", ())
    assert words in case.detail and "another frame of reference" in case.detail and "REG" in case.detail


def test_an_item_may_name_images_instead_of_their_frame(tmp_path: Path) -> None:
    folder, uids = write(tmp_path)
    make.write([reg(FIXED, item("", M, images=uids))], folder / "reg")
    case = joined(folder)
    assert case.state == "loaded", case.detail
    other = np.abs(load_channels(case)[1].array - by_simpleitk(case, case.further[0], M))
    assert np.median(other) < 0.5


def test_a_damaged_object_is_said_to_be_there(tmp_path: Path) -> None:
    folder, _ = write(tmp_path)
    broken = reg(FIXED)
    del broken.FrameOfReferenceUID
    make.write([broken], folder / "reg")
    assert "no registration object that can be read maps one to the other" in joined(folder).detail


def test_a_channel_in_the_same_frame_goes_before_a_registered_one(tmp_path: Path) -> None:
    folder, _ = write(tmp_path, reg(FIXED, item(MOVING, M)))
    make.write(make.series(PET, "PT", seed=3, StudyInstanceUID=STUDY, FrameOfReferenceUID=FIXED), folder / "same")
    case = joined(folder)
    assert case.state == "loaded" and case.further[0].registration is None
    assert case.further[0].frame_of_reference_uid == FIXED
