"""Headers and packings that readers understand in different ways: read right, or refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpipe.common.nifti import read_header, read_volume, read_voxels
from segpipe.errors import DataError, SegpipeError, UsageError

FIELDS = {  # name to offset and format in a NIfTI-1 header
    "sizeof_hdr": (0, "i"),
    "dim0": (40, "h"),
    "dim1": (42, "h"),
    "dim3": (46, "h"),
    "dim4": (48, "h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "qfac": (76, "f"),
    "pixdim1": (80, "f"),
    "pixdim3": (88, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
    "quatern_d": (264, "f"),
    "qoffset_x": (268, "f"),
    "srow_x0": (280, "f"),
    "srow_z3": (324, "f"),
    "magic": (344, "4s"),
    "extension": (348, "B"),
}
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.5, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])
VALUES = np.random.default_rng(5).integers(100, 900, (5, 6, 7)).astype(np.int16)


def plain(path: Path, sform: int = 1, qform: int = 1) -> Path:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_sform(AFFINE, sform)
    image.set_qform(AFFINE, qform)
    nib.save(image, path)
    return path


def patch(path: Path, order: str = "<", **values: object) -> Path:
    content = bytearray(path.read_bytes())
    for name, value in values.items():
        at, kind = FIELDS[name]
        content[at : at + struct.calcsize(kind)] = struct.pack(order + kind, value)
    path.write_bytes(content)
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(read_header(path))
    if len(path.stem) > 3:
        assert path.stem not in f"{caught.value.message}{caught.value.found}{caught.value.expected}"
    return caught.value


@pytest.mark.parametrize("offset", [0, 1, 348, 351, 352.5, -352, 368, 1e9, float("nan"), float("inf")])
def test_voxels_begin_where_the_header_ends(offset: float, tmp_path: Path) -> None:
    error = refused(patch(plain(tmp_path / "scan.nii"), vox_offset=offset))
    assert ("vox_offset" in str(error.found)) == (offset != 368 and offset != 1e9)
    packed = tmp_path / "scan.nii.gz"
    packed.write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes()))
    refused(packed)


def test_the_hint_about_the_offset_can_be_followed(tmp_path: Path) -> None:
    path = patch(plain(tmp_path / "a.nii"), vox_offset=0)
    error = refused(path)
    assert "its length fits voxels from byte 352" in str(error.found)
    assert "set vox_offset to 352" in str(error.hint)
    np.testing.assert_array_equal(read_volume(read_header(patch(path, vox_offset=352))), VALUES)


def test_room_before_the_voxels_is_allowed(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.nii")
    content = path.read_bytes()
    for more in (1, 16, 48):  # also where it is no multiple of 16
        path.write_bytes(content[:352] + bytes(more) + content[352:])
        np.testing.assert_array_equal(read_volume(read_header(patch(path, vox_offset=352 + more))), VALUES)


@pytest.mark.parametrize(("length", "room"), [(32, 16), (0, 16), (4, 32), (-16, 16), (1 << 30, 64)])
def test_extensions_end_where_voxels_begin(length: int, room: int, tmp_path: Path) -> None:
    path = plain(tmp_path / "a.nii")
    content = path.read_bytes()
    extension = struct.pack("<ii", length, 6) + bytes(room - 8)
    path.write_bytes(content[:352] + extension + content[352:])
    assert "extension" in str(refused(patch(path, vox_offset=352 + room, extension=1)).found)
    whole = nib.Nifti1Image(VALUES, AFFINE)
    whole.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(whole, tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(read_header(tmp_path / "b.nii.gz")), VALUES)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim0": 0}, "dim[0]"),
        ({"dim0": 8}, "dim[0]"),
        ({"dim0": 768}, "dim[0]"),  # 3 in the other byte order
        ({"dim0": 2}, "bytes"),
        ({"dim3": 6}, "bytes"),
        ({"dim3": 8}, "bytes"),
        ({"dim0": 4, "dim4": 32767}, "bytes"),
        ({"datatype": 2}, "bytes"),
        ({"datatype": 64}, "bytes"),
        ({"datatype": 1536}, "float128"),
        ({"datatype": 32}, "complex64"),
        ({"datatype": 128}, "RGB24"),
        ({"datatype": 1}, "single bits"),
        ({"datatype": 3}, "datatype 3"),
        ({"scl_slope": float("inf")}, "scl_slope"),
        ({"scl_slope": 2.0, "scl_inter": float("nan")}, "scl_inter"),
        ({"pixdim1": 0.0}, "pixdim"),
        ({"pixdim1": -2.0}, "pixdim"),
        ({"pixdim3": float("nan")}, "pixdim"),
        ({"qfac": -3.0}, "pixdim[0]"),
        ({"qfac": float("nan")}, "pixdim[0]"),
        ({"sform_code": 7}, "sform_code"),
        ({"qform_code": 300}, "qform_code"),
        ({"quatern_b": 1.2}, "w2"),
        ({"qoffset_x": 31.0}, "mm apart"),
        ({"srow_x0": 2.0}, "mm apart"),
        ({"srow_z3": float("nan")}, "nan"),
        ({"xyzt_units": 1}, "metres"),
        ({"xyzt_units": 3}, "micrometres"),
        ({"magic": b"ni1\0"}, ".img"),
    ],
)
def test_a_header_that_contradicts_itself(fields: dict[str, object], words: str, tmp_path: Path) -> None:
    error = refused(patch(plain(tmp_path / "scan.nii"), **fields))
    assert words in str(error.found)
    assert error.hint


@pytest.mark.parametrize(
    "fields",
    [
        {"scl_slope": float("nan"), "scl_inter": float("nan")},  # as nibabel wrote what is not scaled
        {"scl_slope": 0.0, "scl_inter": 5.0},
        {"qfac": 0.0},
        {"bitpix": 7},
        {"xyzt_units": 0},
        {"dim0": 4},  # one volume of a series
    ],
)
def test_what_every_reader_understands_alike_is_read(fields: dict[str, object], tmp_path: Path) -> None:
    header = read_header(patch(plain(tmp_path / "a.nii"), **fields))
    np.testing.assert_array_equal(read_volume(header), VALUES)
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-5)


def test_edges_that_nothing_is_made_of_do_not_matter(tmp_path: Path) -> None:
    header = read_header(patch(plain(tmp_path / "a.nii", qform=0), pixdim1=0.0, pixdim3=float("nan")))
    np.testing.assert_allclose(header.affine, AFFINE)
    refused(patch(plain(tmp_path / "b.nii", sform=0, qform=0), pixdim1=0.0))


@pytest.mark.parametrize("excess", [2e-7, 4.8e-7, 1e-5, 4e-4])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_quaternion_that_rounding_made_longer_is_shortened(excess: float, kind: type, tmp_path: Path) -> None:
    turned = np.diag([2.0, -1.5, -3.0, 1.0])  # half a turn about x: (0, 1, 0, 0)
    image = kind(VALUES, turned)
    image.set_sform(None, 0)
    image.set_qform(turned, 1)
    image.header["quatern_b"] = 1 + excess
    path = tmp_path / "a.nii"
    path.write_bytes(image.to_bytes())
    header = read_header(path)
    np.testing.assert_allclose(header.affine, turned, atol=1e-5)
    if kind is nib.Nifti1Image:
        oracle = SimpleITK.ReadImage(str(path))
        np.testing.assert_allclose(oracle.GetDirection(), (-1, 0, 0, 0, 1, 0, 0, 0, -1), atol=1e-5)
        np.testing.assert_allclose(header.spacing_mm, oracle.GetSpacing(), atol=1e-5)


def test_a_quaternion_just_below_length_one_is_not_changed(tmp_path: Path) -> None:
    turned = np.diag([2.0, -1.5, -3.0, 1.0])
    image = nib.Nifti1Image(VALUES, turned)
    image.set_sform(None, 0)
    image.header["quatern_b"] = np.sqrt(1 - 4e-4)
    image.header["qform_code"] = 1
    nib.save(image, tmp_path / "a.nii")
    oracle = SimpleITK.ReadImage(str(tmp_path / "a.nii"))
    direction = np.diag([-1, -1, 1]) @ np.reshape(oracle.GetDirection(), (3, 3)) * oracle.GetSpacing()
    np.testing.assert_allclose(read_header(tmp_path / "a.nii").affine[:3, :3], direction, atol=1e-4)


def _as_zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.nii", content)


def _as_tar(path: Path, _content: bytes) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "plain.nii", "a.nii")


PACKINGS: dict[str, tuple[str, Callable[[Path, bytes], object], str, str]] = {
    "gzip": ("nii", lambda path, content: path.write_bytes(gzip.compress(content)), "packed with gzip", ".nii.gz"),
    "plain": ("nii.gz", lambda path, content: path.write_bytes(content), "that is not packed", ".nii"),
    "bzip2": ("nii.gz", lambda path, content: path.write_bytes(bz2.compress(content)), "bzip2", "bzip2 -dc"),
    "xz": ("nii", lambda path, content: path.write_bytes(lzma.compress(content)), "xz", "xz -dc"),
    "zstd": ("nii.gz", lambda path, _: path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(90)), "zstd", "zstd -dc"),
    "zip": ("nii", _as_zip, "zip archive", "unzip -p"),
    "tar": ("nii.gz", _as_tar, "tar archive", "tar -xf"),
    "twice": (
        "nii.gz",
        lambda path, content: path.write_bytes(gzip.compress(gzip.compress(content))),
        "twice",
        "gzip -dc",
    ),
    "pointer": ("nii.gz", lambda path, _: path.write_bytes(b"version https://git-lfs.github.com"), "LFS", "lfs pull"),
    "annex": ("nii", lambda path, _: path.write_bytes(b"/annex/objects/MD5E-s1--x.nii"), "annex", "annex get"),
    "page": ("nii.gz", lambda path, _: path.write_bytes(b"\n<!DOCTYPE html><html>"), "web page", "download"),
    "dicom": ("nii", lambda path, _: path.write_bytes(bytes(128) + b"DICM" + bytes(400)), "DICOM", "folder"),
    "zeros": ("nii", lambda path, content: path.write_bytes(bytes(len(content))), "zeros", "copy it again"),
    "empty": ("nii.gz", lambda path, _: path.touch(), "empty", "copy it again"),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_what_is_under_the_name_is_said(name: str, tmp_path: Path) -> None:
    ending, write, words, remedy = PACKINGS[name]
    content = plain(tmp_path / "plain.nii").read_bytes()
    write(tmp_path / f"scan.{ending}", content)
    error = refused(tmp_path / f"scan.{ending}")
    assert words in str(error.found)
    assert remedy in str(error.hint)


def test_renaming_is_what_helps(tmp_path: Path) -> None:
    packed, unpacked = tmp_path / "a.nii", tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(plain(tmp_path / "c.nii").read_bytes()))
    unpacked.write_bytes((tmp_path / "c.nii").read_bytes())
    assert "rename it to end in .nii.gz" in str(refused(packed).hint)
    assert "rename it to end in .nii" in str(refused(unpacked).hint)
    for path in (packed.rename(tmp_path / "a.nii.gz"), unpacked.rename(tmp_path / "b.nii")):
        np.testing.assert_array_equal(read_volume(read_header(path)), VALUES)


@pytest.mark.parametrize("rest", [b"garbage", b"\x1f\x8bgarbage and more of it", b"\x1f\x8b\x08"])
def test_what_follows_the_packed_image_is_named_and_can_be_taken_off(rest: bytes, tmp_path: Path) -> None:
    path, values = tmp_path / "a.nii.gz", np.random.default_rng(1).normal(size=(40, 40, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "b.nii")
    path.write_bytes(gzip.compress((tmp_path / "b.nii").read_bytes()) + rest)
    for read in (read_volume, read_voxels):
        with pytest.raises(DataError) as caught:
            read(read_header(path))
    assert "after the end of the packed image" in str(caught.value.found)
    assert "`gzip -dc FILE > NEW.nii`" in str(caught.value.hint)
    (tmp_path / "c.nii").write_bytes(subprocess.run(["gzip", "-dc", path], capture_output=True, check=False).stdout)
    np.testing.assert_array_equal(read_volume(read_header(tmp_path / "c.nii")), values)


def test_a_packing_of_several_parts_is_one_image_and_two_images_are_none(tmp_path: Path) -> None:
    content = plain(tmp_path / "a.nii").read_bytes()
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:]) + bytes(100))  # as bgzip and tape do
    np.testing.assert_array_equal(read_volume(read_header(packed)), VALUES)
    packed.write_bytes(gzip.compress(content) * 2)
    error = refused(packed)
    assert f"{len(content)} bytes more" in str(error.found)
    two = tmp_path / "two.nii"
    two.write_bytes(gzip.decompress(packed.read_bytes()))
    error = refused(two)
    assert (f"{2 * len(content)} bytes", f"truncate -s {len(content)}") == (error.found, str(error.hint)[-21:-6])
    subprocess.run(["truncate", "-s", str(len(content)), two], check=True)
    np.testing.assert_array_equal(read_volume(read_header(two)), VALUES)


@pytest.mark.parametrize("damage", ["cut", "checksum", "inside"])
def test_a_damaged_packing(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    packed = bytearray(gzip.compress(plain(tmp_path / "b.nii").read_bytes()))
    if damage == "checksum":
        packed[-5] ^= 255
    elif damage == "inside":
        packed[len(packed) // 2] ^= 255
    path.write_bytes(packed[:-20] if damage == "cut" else packed)
    assert ("cut short" if damage == "cut" else "") in str(refused(path).found)


def test_every_kind_of_entry_that_is_no_file_has_words(tmp_path: Path) -> None:

    (tmp_path / "dangling.nii").symlink_to("gone.nii")
    (tmp_path / "circle.nii").symlink_to("circle.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    words = {
        "gone.nii": "no such file",
        "dangling.nii": "is not there",
        "circle.nii": "in a circle",
        "pipe.nii": "a pipe",
        "x" * 300: "too long",
    }
    for name, expected in words.items():
        with pytest.raises(UsageError) as caught:
            read_header(tmp_path / name)
        assert expected in f"{caught.value.message} {caught.value.found}"


numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 16, 64, 255, 352, 32767]),
    st.sampled_from([0.5, 1e30, -3.4e38, 352.5, float("nan"), float("inf")]),
    st.integers(-32768, 32767),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(sorted(set(FIELDS) - {"magic"})), numbers, min_size=1, max_size=3),
    qform_only=st.booleans(),
)
def test_whatever_a_field_says_voxels_are_those_of_the_file_or_refused(
    tmp_path: Path, fields: dict[str, float], qform_only: bool
) -> None:
    path = plain(tmp_path / "a.nii", sform=0 if qform_only else 1)
    for name, value in fields.items():
        try:
            patch(path, **{name: value if FIELDS[name][1] == "f" else int(value)})
        except (struct.error, ValueError, OverflowError):
            continue
    try:
        header = read_header(path)
        values = read_volume(header)
    except SegpipeError:
        return
    raw = path.read_bytes()[352:]
    kind = np.dtype(nib.load(path).header.get_data_dtype())
    stored = np.frombuffer(raw, kind).reshape(header.shape, order="F")
    slope, inter = (struct.unpack_from("<f", path.read_bytes(), at)[0] for at in (112, 116))
    with np.errstate(all="ignore"):
        expected = stored * slope + inter if np.isfinite(slope) and slope else stored
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    try:
        oracle = SimpleITK.ReadImage(str(path))
    except RuntimeError:  # it takes fewer headers, such as none that shears
        return
    lengths_from_sform = header.sform_code and {"pixdim1", "pixdim3", "srow_x0"} & set(fields)  # ITK takes pixdim's
    if not header.is_oriented or oracle.GetDimension() < 3 or lengths_from_sform:
        return
    last = [size - 1 for size in header.shape[:3]]
    index = [*last, *[0] * (oracle.GetDimension() - 3)]
    corner = np.array(oracle.TransformIndexToPhysicalPoint(index))[:3] * [-1, -1, 1]
    np.testing.assert_allclose((header.affine @ [*last, 1])[:3], corner, rtol=1e-3, atol=0.11)  # of either form


@pytest.mark.realdata
def test_samples_from_the_field() -> None:
    field = Path(os.environ["SEGPIPE_DATA"]) / "field"
    words = {
        "voxoff0.nii.gz": "where the voxels begin",
        "isgz.nii": "does not say how the file is packed",
        "gz_garbage.nii.gz": "cannot read the NIfTI file",
    }
    for name, expected in words.items():
        with pytest.raises(DataError, match=expected):
            read_voxels(read_header(field / "nifti" / name))
    header = read_header(field / "nifti/quat_round.nii.gz")
    np.testing.assert_allclose(np.abs(header.affine[:3, :3]), np.eye(3), atol=1e-6)
    assert header.orientation == "RPI"
