"""Headers and voxels of odd files: read right, or refused without naming the file in the words."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.common.folder_walk import find_images
from segpipe.common.nifti import grid_difference, read_header, read_volume, require_3d
from segpipe.errors import DataError, UsageError


def _save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype), path)
    return path


def test_files_are_found_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    for name in ("a.nii", "B.NII.GZ", "sub/c.Nii.gz", ".hidden.nii", ".cache/d.nii", "e.nii.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path).images] == [
        "B.NII.GZ",
        "a.nii",
        "sub/c.Nii.gz",
    ]


@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "uint64", "float32", "float64"])
def test_every_type_of_real_numbers_is_read_exactly(kind: str, tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(kind)
    header = read_header(_save(tmp_path / "UPPER.NII.GZ", values))
    assert header.dtype == kind
    np.testing.assert_array_equal(read_volume(header), values)


@pytest.mark.parametrize("kind", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colours_and_complex_numbers_are_refused(kind: object, tmp_path: Path) -> None:
    path = _save(tmp_path / "odd.nii", np.zeros((3, 4, 5), kind))  # type: ignore[call-overload]
    with pytest.raises(DataError, match="not plain numbers"):
        read_header(path)


def test_words_about_a_broken_file_do_not_name_it(tmp_path: Path) -> None:
    whole = _save(tmp_path / "Smith_John.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)))
    cut, empty, text = (tmp_path / f"Smith_{name}.nii.gz" for name in ("cut", "empty", "text"))
    cut.write_bytes(whole.read_bytes()[:2000])
    empty.touch()
    text.write_bytes(gzip.compress(b"no image at all" * 100))
    for path in (cut, empty, text):
        with pytest.raises(DataError) as caught:
            read_volume(read_header(path))
        assert caught.value.path == str(path)
        assert "Smith" not in caught.value.message + str(caught.value.found)


def test_missing_files_flat_images_and_series_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_header(tmp_path / "missing.nii")
    for shape in ((5, 5), (5, 5, 1), (5, 5, 5, 2)):
        with pytest.raises(DataError):
            require_3d(read_header(_save(tmp_path / "flat.nii", np.zeros(shape, np.uint8))))
    require_3d(read_header(_save(tmp_path / "volume.nii", np.zeros((5, 5, 5, 1), np.uint8))))


def test_grids_differ_by_shape_or_by_place(tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.02
    values = np.zeros((5, 5, 5), np.uint8)
    one, same = (read_header(_save(tmp_path / name, values)) for name in ("a.nii", "b.nii"))
    assert grid_difference(one, same) is None
    assert "mm apart" in str(grid_difference(one, read_header(_save(tmp_path / "c.nii", values, moved))))
    assert "shape" in str(grid_difference(one, read_header(_save(tmp_path / "d.nii", values[:4]))))


@pytest.mark.parametrize("unit", ["meter", "micron", 5])
def test_lengths_in_another_unit_are_refused(unit: object, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header["xyzt_units"] = unit if isinstance(unit, int) else nib.nifti1.unit_codes.code[unit]
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="not in mm"):
        read_header(tmp_path / "a.nii")


@pytest.mark.parametrize("unit", [0, 2, 8, 10, 2 + 16])
def test_mm_and_no_unit_are_mm_whatever_the_unit_of_time(unit: int, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header["xyzt_units"] = unit
    nib.save(image, tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").spacing_mm == (1.0, 1.0, 1.0)
