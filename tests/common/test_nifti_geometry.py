"""Where voxels lie: grids that agree or not, headers that are refused, and SimpleITK as the second opinion."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from segpipe.common.nifti import FORMS_TOLERANCE_MM, Header, grid_difference, read_header, read_volume, require_3d
from segpipe.errors import DataError, UsageError

Affine = NDArray[np.float64]
SHAPE = (4, 5, 6)
QUATERN_B, QOFFSET_X, PIXDIM_1, SROW_X_0 = 256, 268, 80, 280  # offsets in bytes of the NIfTI-1 header

shapes = st.tuples(*[st.integers(2, 300)] * 3)
lengths = st.floats(0.1, 10)


@st.composite
def orthogonal(draw: st.DrawFn) -> Affine:
    """A rotated, possibly mirrored grid with any spacing and origin."""
    turn = Rotation.random(random_state=draw(st.integers(0, 2**32 - 1))).as_matrix()
    scale = [draw(lengths) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn * scale
    affine[:3, 3] = draw(arrays(float, 3, elements=st.floats(-500, 500)))
    return affine


def grid(affine: Affine, shape: tuple[int, ...] = SHAPE) -> Header:
    return Header(Path("x.nii"), shape, affine, (1.0, 1.0, 1.0), "uint8")


def image(affine: Affine | None, shape: tuple[int, ...] = SHAPE, kind: Any = nib.Nifti1Image) -> Any:
    return kind(np.zeros(shape, np.uint8), affine)


def saved(path: Path, picture: Any) -> Path:
    nib.save(picture, path)
    return path


def patched(path: Path, offset: int, value: float) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = struct.pack("<f", value)
    path.write_bytes(content)
    return path


@settings(max_examples=40)
@given(affine=orthogonal(), shape=shapes)
def test_a_grid_does_not_differ_from_itself(affine: Affine, shape: tuple[int, ...]) -> None:
    assert grid_difference(grid(affine, shape), grid(affine.copy(), shape)) is None


@settings(max_examples=40)
@given(affine=orthogonal(), other=orthogonal(), shape=shapes, tolerance_mm=st.floats(0, 1000))
def test_the_difference_is_symmetric(
    affine: Affine, other: Affine, shape: tuple[int, ...], tolerance_mm: float
) -> None:
    one, two = grid(affine, shape), grid(other, shape)
    assert grid_difference(one, two, tolerance_mm) == grid_difference(two, one, tolerance_mm)


@settings(max_examples=40)
@given(affine=orthogonal(), direction=arrays(float, 3, elements=st.floats(-1, 1)), apart_mm=st.floats(0, 1))
def test_a_shift_is_found_exactly_where_it_exceeds_the_tolerance(
    affine: Affine, direction: Affine, apart_mm: float
) -> None:
    length = np.linalg.norm(direction)
    moved = affine.copy()
    moved[:3, 3] += apart_mm * direction / length if length > 1e-3 else [apart_mm, 0, 0]
    found = grid_difference(grid(affine), grid(moved), 0.5)
    if abs(apart_mm - 0.5) > 1e-9:
        assert (found is not None) == (apart_mm > 0.5)
    told = re.search(r"([\d.e-]+) mm", found or "")  # in three digits, where a half may be rounded either way
    assert (told is None) == (found is None)
    assert told is None or float(told[1]) == pytest.approx(apart_mm, abs=6e-4)


@settings(max_examples=40)
@given(affine=orthogonal(), shape=shapes, turn=st.floats(1e-4, 0.5), axis=st.integers(0, 2))
def test_a_turn_about_the_origin_moves_the_far_corner_by_its_arc(
    affine: Affine, shape: tuple[int, ...], turn: float, axis: int
) -> None:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(turn * np.eye(3)[axis]).as_matrix()
    corners = nib.affines.apply_affine(affine, np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1))
    radius = np.linalg.norm(np.delete(corners, axis, axis=1), axis=1).max()
    expected = 2 * radius * np.sin(turn / 2)  # the chord
    one, two = grid(affine, shape), grid(turned @ affine, shape)
    assert grid_difference(one, two, expected * (1 + 1e-6) + 1e-9) is None
    assert grid_difference(one, two, expected * (1 - 1e-6) - 1e-9) is not None


def test_the_tolerance_itself_is_allowed() -> None:
    moved = np.eye(4)
    moved[2, 3] = 0.5
    assert grid_difference(grid(np.eye(4)), grid(moved), 0.5) is None
    assert grid_difference(grid(np.eye(4)), grid(moved), np.nextafter(0.5, 0)) is not None


def test_shapes_nan_and_flat_grids() -> None:
    assert grid_difference(grid(np.eye(4)), grid(np.eye(4), (4, 5, 7))) == "shape (4, 5, 6) against (4, 5, 7)"
    assert grid_difference(grid(np.eye(4)), grid(np.full((4, 4), np.nan))) is not None
    assert grid_difference(grid(np.eye(4), (4, 5)), grid(np.eye(4), (4, 5))) is None
    assert grid_difference(grid(np.eye(4), (4, 5)), grid(2 * np.eye(4), (4, 5))) is not None


@pytest.mark.parametrize("seed", range(6))
def test_spacing_and_orientation_are_those_of_simpleitk(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    scale = random.uniform(0.3, 4, 3) * random.choice([-1, 1], 3)
    turn = Rotation.from_rotvec(random.uniform(-0.3, 0.3, 3)).as_matrix()
    affine[:3, :3] = (turn * scale)[:, random.permutation(3)]
    affine[:3, 3] = random.uniform(-200, 200, 3)
    path = saved(tmp_path / "a.nii.gz", image(affine))
    header, oracle = read_header(path), SimpleITK.ReadImage(str(path))
    np.testing.assert_allclose(header.spacing_mm, oracle.GetSpacing(), rtol=1e-5)
    codes = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(oracle.GetDirection())
    assert header.orientation == codes
    corner = np.array(oracle.TransformIndexToPhysicalPoint([size - 1 for size in SHAPE]))
    far = header.affine @ [*(size - 1 for size in SHAPE), 1]
    np.testing.assert_allclose(far[:3] * [-1, -1, 1], corner, atol=1e-3)  # LPS against RAS
    assert header.shape == oracle.GetSize() == SHAPE
    second = read_header(saved(tmp_path / "b.nii", image(affine, kind=nib.Nifti2Image)))  # unknown to SimpleITK
    np.testing.assert_allclose(second.affine, affine)
    assert grid_difference(header, second) is None
    assert (second.dtype, second.orientation) == (header.dtype, header.orientation)


def test_a_sheared_grid_is_read_as_it_is(tmp_path: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 2] = 1.5
    sheared = image(affine)
    sheared.header.set_qform(None, 0)
    header = read_header(saved(tmp_path / "a.nii", sheared))
    np.testing.assert_allclose(header.affine, affine)
    np.testing.assert_allclose(header.spacing_mm, (1, 2, np.hypot(1.5, 3)))


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((4, 5, 6, 1), SHAPE),
        ((4, 5, 6, 1, 1), SHAPE),
        ((4, 5, 1), (4, 5, 1)),
        ((4, 5, 6, 2), (4, 5, 6, 2)),
        ((4, 5, 6, 1, 3), (4, 5, 6, 1, 3)),
    ],
)
def test_trailing_axes_of_one_are_dropped_beyond_the_third(
    shape: tuple[int, ...], read: tuple[int, ...], tmp_path: Path
) -> None:
    header = read_header(saved(tmp_path / "a.nii", image(np.eye(4), shape)))
    assert header.shape == read_volume(header).shape == read
    if read == SHAPE:
        require_3d(header)
    else:
        with pytest.raises(DataError) as caught:
            require_3d(header)
        assert str(read) in str(caught.value.found)


def test_what_is_not_there_or_not_nifti(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    for name, words in (("missing.nii", "no such file"), ("folder.nii", "not a file")):
        with pytest.raises(UsageError, match=words):
            read_header(tmp_path / name)
    (tmp_path / "text.nii").write_text("no image " * 100)
    with pytest.raises(DataError, match="cannot read"):
        read_header(tmp_path / "text.nii")
    mgh = saved(tmp_path / "a.mgz", nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)))
    with pytest.raises(DataError, match="cannot read the NIfTI"):
        read_header(mgh.rename(tmp_path / "a.nii.gz"))


@pytest.mark.parametrize("kept", [0, 100, 347])
def test_a_header_cut_short(kept: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", image(np.eye(4)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError):
        read_header(path)


@pytest.mark.parametrize(("ending", "kept"), [("nii", 352), ("nii", 471), ("nii.gz", -9)])
def test_voxels_cut_short(ending: str, kept: int, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{ending}", image(np.eye(4)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cannot read"):
        read_volume(read_header(path))


@pytest.mark.parametrize("number", [-4, 0])
def test_an_axis_without_voxels(number: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", image(np.eye(4)))
    content = bytearray(path.read_bytes())
    content[42:44] = struct.pack("<h", number)
    path.write_bytes(content)
    with pytest.raises(DataError, match="no voxels"):
        read_header(path)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_sform_that_is_singular_or_not_finite(value: float, tmp_path: Path) -> None:
    path = patched(saved(tmp_path / "a.nii", image(np.eye(4))), SROW_X_0, value)
    with pytest.raises(DataError, match="affine cannot be used"):
        read_header(path)


@pytest.mark.parametrize("offset", [QUATERN_B, QOFFSET_X, PIXDIM_1])
@pytest.mark.parametrize("with_sform", [False, True])
def test_a_qform_that_is_not_finite(offset: int, with_sform: bool, tmp_path: Path) -> None:
    picture = image(np.eye(4))
    picture.set_qform(np.eye(4), 1)
    picture.set_sform(np.eye(4), int(with_sform))
    path = patched(saved(tmp_path / "a.nii", picture), offset, float("nan"))
    with pytest.raises(DataError):
        read_header(path)


@pytest.mark.parametrize(("apart_mm", "fine"), [(0, True), (0.0999, True), (0.1001, False), (5, False)])
def test_qform_and_sform_may_differ_by_a_tenth_of_a_millimetre(apart_mm: float, fine: bool, tmp_path: Path) -> None:
    assert FORMS_TOLERANCE_MM == 0.1
    moved = np.eye(4)
    moved[:3, 3] = apart_mm / np.sqrt(3)
    picture = image(np.eye(4))
    picture.set_qform(moved, 1)
    picture.set_sform(np.eye(4), 2)
    path = saved(tmp_path / "a.nii", picture)
    if fine:
        np.testing.assert_array_equal(read_header(path).affine, np.eye(4))  # the sform's
    else:
        with pytest.raises(DataError, match="qform and sform") as caught:
            read_header(path)
        assert f"{apart_mm:.3g} mm" in str(caught.value.found)


@pytest.mark.parametrize("edge", [0.03, 0.1, 0.5, 3.0])
def test_limits_are_parts_of_small_voxels(edge: float, tmp_path: Path) -> None:
    affine = np.diag([edge, edge, edge, 1.0])
    for share, same in ((0.05, edge <= 0.1), (0.15, False)):
        moved = affine.copy()
        moved[0, 3] = share * edge
        assert (grid_difference(grid(affine), grid(moved)) is None) is same
    for share, fine in ((0.4, 0.4 * edge <= 0.1), (0.6, False)):
        picture = image(affine)
        moved = affine.copy()
        moved[0, 3] = share * edge
        picture.set_qform(moved, 1)
        picture.set_sform(affine, 2)
        path = saved(tmp_path / f"{share}.nii", picture)
        if fine:
            read_header(path)
        else:
            with pytest.raises(DataError, match="qform and sform"):
                read_header(path)


def test_a_form_whose_code_is_zero_has_no_say(tmp_path: Path) -> None:
    far = np.diag([3.0, 3.0, 3.0, 1.0])
    for sform_code, qform_code, expected in ((1, 0, far), (0, 1, np.eye(4))):
        picture = image(np.eye(4))
        picture.set_qform(np.eye(4), qform_code)
        picture.set_sform(far, sform_code)
        np.testing.assert_allclose(read_header(saved(tmp_path / "a.nii", picture)).affine, expected)
