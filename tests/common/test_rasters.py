"""NRRD, MetaImage, MGH and NIfTI pairs: one image in each is the same voxels at the same place."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from segpipe.common.folder_walk import find_images
from segpipe.common.nifti import Header, grid_difference, read_header, read_volume, read_voxels
from segpipe.errors import DataError, SegpipeError, UsageError

SHAPE = (5, 6, 7)
KINDS = {
    "uint8": SimpleITK.sitkUInt8,
    "int8": SimpleITK.sitkInt8,
    "int16": SimpleITK.sitkInt16,
    "uint16": SimpleITK.sitkUInt16,
    "int32": SimpleITK.sitkInt32,
    "uint32": SimpleITK.sitkUInt32,
    "int64": SimpleITK.sitkInt64,
    "float32": SimpleITK.sitkFloat32,
    "float64": SimpleITK.sitkFloat64,
}


def picture(kind: str = "int16", seed: int = 0) -> SimpleITK.Image:
    random = np.random.default_rng(seed)
    image = SimpleITK.GetImageFromArray(random.integers(0, 120, SHAPE[::-1]).astype(kind))
    turn = Rotation.random(random_state=seed).as_matrix() * random.choice([-1, 1], 3)
    image.SetDirection(turn.ravel())
    image.SetSpacing(random.uniform(0.3, 4, 3))
    image.SetOrigin(random.uniform(-200, 200, 3))
    return SimpleITK.Cast(image, KINDS[kind])


def require_same(path: Path, image: SimpleITK.Image) -> Header:
    header = read_header(path)
    assert header.shape == image.GetSize()
    assert header.dtype == str(SimpleITK.GetArrayViewFromImage(image).dtype)
    for read in (read_volume, read_voxels):
        np.testing.assert_array_equal(read(header), SimpleITK.GetArrayFromImage(image).T)
    last = [size - 1 for size in SHAPE]
    for index in ([0, 0, 0], last, [last[0], 0, 0], [0, last[1], 0]):
        corner = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((header.affine @ [*index, 1])[:3], corner, atol=1e-3)
    assert header.is_oriented
    return header


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd", "nii", "nii.gz", "hdr"])
def test_the_same_image_in_every_format(ending: str, compressed: bool, tmp_path: Path) -> None:
    for seed, kind in enumerate(KINDS):
        if ending == "hdr" and kind == "int64":
            continue
        image = picture(kind, seed)
        SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"), compressed and ending != "hdr")
        header = require_same(tmp_path / f"a.{ending}", image)
        SimpleITK.WriteImage(image, str(tmp_path / "b.nii.gz"))
        assert grid_difference(header, read_header(tmp_path / "b.nii.gz")) is None
    assert [path.name for path in find_images(tmp_path).images] == [f"a.{ending}", "b.nii.gz"]


@pytest.mark.parametrize("ending", ["mgz", "mgh"])
def test_freesurfer_volumes_are_those_of_nibabel(ending: str, tmp_path: Path) -> None:
    for seed, kind in enumerate(("uint8", "int16", "int32", "float32")):
        image = picture(kind, seed)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        values = SimpleITK.GetArrayFromImage(image).T
        path = tmp_path / f"a.{ending}"
        nib.save(nib.MGHImage(values, np.diag([-1, -1, 1, 1]) @ affine), path)
        header = require_same(path, image)
        np.testing.assert_allclose(header.affine, nib.load(path).affine, atol=1e-3)
    content = gzip.decompress(path.read_bytes()) if ending == "mgz" else path.read_bytes()
    tags = content + b"\0\0\0\1 tags that FreeSurfer writes behind"
    path.write_bytes(gzip.compress(tags) if ending == "mgz" else tags)
    require_same(path, image)
    for change, words in (
        (content[:28] + b"\0\0" + content[30:], "goodRASFlag"),
        (content[: 284 + values.nbytes - 1], "bytes of voxels"),
    ):
        path.write_bytes(gzip.compress(change) if ending == "mgz" else change)
        with pytest.raises(DataError) as caught:
            read_volume(read_header(path))
        assert words in str(caught.value.found)


def text(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


ODD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "space": ("nrrd", lambda path: text(path, "space: left-posterior-superior", "space dimension: 3"), "left and what"),
    "scanner": ("nrrd", lambda path: text(path, "left-posterior-superior", "scanner-xyz"), "scanner-xyz"),
    "directions": ("nrrd", lambda path: text(path, "space directions:", "spacings:"), "space directions"),
    "shear": ("nrrd", lambda path: text(path, "(1,0,0)", "(1,0.5,0)"), "right angles"),
    "units": ("nrrd", lambda path: text(path, "encoding", 'space units: "um" "um" "um"\nencoding'), "um"),
    "bzip2": ("nrrd", lambda path: text(path, "encoding: raw", "encoding: bzip2"), "bzip2"),
    "skip": ("nrrd", lambda path: text(path, "encoding", "byte skip: 4\nencoding"), "skipped"),
    "longer": ("nrrd", lambda path: path.write_bytes(path.read_bytes() + b"more"), "bytes of voxels"),
    "shorter": ("nrrd", lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes of voxels"),
    "sizes": ("nrrd", lambda path: text(path, "sizes: 5 6 7", "sizes: 5 6 6"), "bytes of voxels"),
    "away": ("nhdr", lambda path: text(path, "data file: a.raw", "data file: ../a.raw"), "another folder"),
    "absolute": ("nhdr", lambda path: text(path, "data file: a.raw", "data file: /etc/passwd"), "another folder"),
    "list": ("nhdr", lambda path: text(path, "data file: a.raw", "data file: LIST"), "several files"),
    "pattern": ("nhdr", lambda path: text(path, "data file: a.raw", "data file: a%d.raw 1 2 1"), "several files"),
    "matrix": ("mha", lambda path: text(path, "TransformMatrix", "Comment"), "how the voxels lie"),
    "spacing": ("mha", lambda path: text(path, "ElementSpacing", "Comment"), "how the voxels lie"),
    "zero": ("mha", lambda path: text(path, "ElementSpacing = 1 1 1", "ElementSpacing = 1 0 1"), "0 or not finite"),
    "metres": ("mha", lambda path: text(path, "DimSize", "DistanceUnits = m\nDimSize"), "DistanceUnits m"),
    "ascii": ("mha", lambda path: text(path, "BinaryData = True", "BinaryData = False"), "ElementType"),
    "meta away": ("mhd", lambda path: text(path, "= a.raw", "= ../../a.raw"), "another folder"),
    "meta list": ("mhd", lambda path: text(path, "= a.raw", "= LIST"), "several files"),
    "channels": ("mha", lambda path: text(path, "DimSize", "ElementNumberOfChannels = 3\nDimSize"), "3 channels"),
    "no header": ("mha", lambda path: path.write_bytes(bytes(500)), "no end of the header"),
    "another": ("nrrd", lambda path: path.write_bytes(b"\x89PNG\n\nsomething"), "at the start"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_certain_is_refused(name: str, tmp_path: Path) -> None:
    ending, change, words = ODD[name]
    image = SimpleITK.GetImageFromArray(np.arange(210, dtype=np.int16).reshape(SHAPE[::-1]))
    path = tmp_path / f"a.{ending}"
    SimpleITK.WriteImage(image, str(path))
    require_same(path, image)
    change(path)
    with pytest.raises(DataError) as caught:
        read_volume(read_header(path))
    assert words in str(caught.value.found)
    assert caught.value.hint


def test_voxels_that_are_not_there(tmp_path: Path) -> None:
    image = picture()
    for ending, data in (("mhd", "a.raw"), ("nhdr", "a.raw"), ("hdr", "a.img")):
        SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
        (tmp_path / data).unlink()
        with pytest.raises(UsageError, match="no such file"):
            read_header(tmp_path / f"a.{ending}")


def test_a_pair_is_one_image_by_either_name_and_analyze_is_refused_by_name(tmp_path: Path) -> None:
    image = picture()
    SimpleITK.WriteImage(image, str(tmp_path / "a.hdr"))
    require_same(tmp_path / "a.img", image)
    (tmp_path / "b.img").write_bytes(b"something else")
    (tmp_path / "c.hdr").write_bytes(b"a light probe")
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["a.hdr"]
    assert [path.name for path in found.others] == ["b.img", "c.hdr"]
    nib.save(nib.AnalyzeImage(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "d.img")
    with pytest.raises(DataError) as caught:
        read_header(tmp_path / "d.hdr")
    assert "Analyze 7.5" in str(caught.value.found)
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-1])
    with pytest.raises(DataError, match="cannot read"):
        read_header(tmp_path / "a.hdr")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=st.sampled_from(["nrrd", "mha", "mgh"]),
    places=st.lists(st.integers(0, 400), min_size=1, max_size=3),
    value=st.integers(0, 255),
)
def test_no_byte_of_a_header_ends_in_another_error(tmp_path: Path, ending: str, places: list[int], value: int) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "mgh":
        nib.save(nib.MGHImage(np.zeros(SHAPE, np.int16), np.eye(4)), path)
    else:
        SimpleITK.WriteImage(picture(), str(path))
    content = bytearray(path.read_bytes())
    for place in places:
        content[min(place, len(content) - 1)] = value
    path.write_bytes(content)
    try:
        values = read_volume(read_header(path))
    except SegpipeError:
        return
    assert values.ndim == 3
    assert path.stat().st_size == len(content)
