"""Stored values against arrays that the tests made and other writers encoded, and against pydicom's own decoding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import GDCM_OPTIONS, LOSSLESS, by_dcmtk, encode
from make import enhanced, series
from pydicom import Dataset, dcmread

from oracles import program
from segpipe.dicom.headers import Header, read_header
from segpipe.dicom.pixels import frame_values, open_pixels
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.scanning import walk
from segpipe.errors import DataError

RNG = np.random.default_rng(3)


def image_of(values: np.ndarray, stored: int | None = None, high: int | None = None) -> Dataset:
    image = series()[0]
    bits = values.dtype.itemsize * 8
    image.Rows, image.Columns = values.shape
    image.BitsAllocated, image.BitsStored = bits, stored or bits
    image.HighBit = (stored or bits) - 1 if high is None else high
    image.PixelRepresentation = int(values.dtype.kind == "i")
    image.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes() + b"\0" * (values.nbytes % 2)
    return image


def smooth(dtype: str, low: int, high: int) -> np.ndarray:
    """(14, 12), both ends of the range in it."""
    values = np.linspace(low, high, 14 * 12).reshape(14, 12)
    return values.round().clip(low, high).astype(dtype)


TYPES = [("u2", 16), ("i2", 16), ("u2", 12), ("i2", 12), ("i2", 13), ("u2", 10), ("u1", 8), ("i1", 8)]
NOT_WRITTEN_BY_GDCM = [(syntax, "i1") for syntax in GDCM_OPTIONS]
CASES = [(syntax, *kind) for syntax in LOSSLESS for kind in TYPES if (syntax, kind[0]) not in NOT_WRITTEN_BY_GDCM]


@pytest.mark.parametrize(("syntax", "dtype", "stored"), CASES)
def test_stored_values_are_exact(syntax: str, dtype: str, stored: int, tmp_path: Path) -> None:
    low = -(1 << (stored - 1)) if dtype[0] == "i" else 0
    values = smooth(dtype, low, low + (1 << stored) - 1)
    file = open_pixels(encode(image_of(values, stored), syntax, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(file.stored(), values)
    assert file.stored().dtype.kind == dtype[0]


@pytest.mark.parametrize("dtype", ["u4", "i4"])
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian", "deflated"])
def test_32_bits(syntax: str, dtype: str, tmp_path: Path) -> None:
    values = smooth(dtype, -(2**31) if dtype == "i4" else 0, 2**31 - 1)
    np.testing.assert_array_equal(open_pixels(encode(image_of(values), syntax, tmp_path / "a.dcm")).stored(), values)


@pytest.mark.parametrize(("name", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_real_numbers(name: str, dtype: str, tmp_path: Path) -> None:
    image = series()[0]
    values = RNG.normal(size=(image.Rows, image.Columns)).astype(dtype)
    del image.PixelData, image.BitsStored, image.HighBit, image.PixelRepresentation
    image.BitsAllocated = values.itemsize * 8
    setattr(image, name, values.tobytes())
    image.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    file = open_pixels(tmp_path / "a.dcm")
    np.testing.assert_array_equal(file.stored(), values)
    assert file.header.bits == 0


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_the_stored_ones_are_no_part_of_a_value(signed: bool, tmp_path: Path) -> None:
    values = smooth("i2", -2048, 2047) if signed else smooth("u2", 0, 4095)
    overlay = (RNG.integers(0, 16, values.shape) << 12).astype("u2")
    raw = (values.view("u2") & 0x0FFF) | overlay
    image = image_of(raw.view(values.dtype), 12)
    image.PixelRepresentation = int(signed)
    path = encode(image, "explicit", tmp_path / "a.dcm")
    np.testing.assert_array_equal(open_pixels(path).stored(), values)
    np.testing.assert_array_equal(dcmread(path).pixel_array, values)


def test_a_high_bit_that_is_not_the_last_stored_one(tmp_path: Path) -> None:
    values = smooth("u2", 0, 4095)
    path = encode(image_of((values << 4).astype("u2"), 12, 15), "explicit", tmp_path / "a.dcm")
    np.testing.assert_array_equal(open_pixels(path).stored(), values)


def test_frames_of_a_compressed_multi_frame_file(tmp_path: Path) -> None:
    for syntax in LOSSLESS:
        image = enhanced()
        values = np.frombuffer(image.PixelData, "<i2").reshape(-1, image.Rows, image.Columns)
        file = open_pixels(encode(image, syntax, tmp_path / f"{syntax}.dcm"))
        for number, frame in enumerate(values):
            np.testing.assert_array_equal(file.stored(number), frame, err_msg=syntax)
        with pytest.raises(DataError, match="frame is missing"):
            file.stored(len(values))


@pytest.mark.slow  # not for its time: the fast tests ask no Debian package
@pytest.mark.parametrize("option", ["+eb", "+ee"])
def test_lossy_jpeg_is_near(option: str, tmp_path: Path) -> None:
    bits = 8 if option == "+eb" else 12
    y, x = np.indices((64, 64))
    values = ((np.sin(x / 9) + np.cos(y / 7) + 2) / 4 * ((1 << bits) - 1)).astype("u1" if bits == 8 else "u2")
    path = encode(image_of(values, bits), "explicit", tmp_path / "a.dcm")
    by_dcmtk(path, program("dcmcjpeg"), option, "+q", "95")
    file = open_pixels(path)
    assert file.header.transfer_syntax.endswith(".50" if bits == 8 else ".51")
    assert np.abs(file.stored().astype(int) - values).max() <= 0.02 * (1 << bits)


def cut(path: Path, syntax: str) -> None:
    image = dcmread(path)
    if syntax == "native":
        image.PixelData = image.PixelData[:-20]
        image.save_as(path)
        return
    from pydicom.encaps import encapsulate, get_frame

    frame = get_frame(image.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    image.PixelData = encapsulate([frame[: len(frame) * 2 // 3]])
    image.save_as(path)


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000"])
def test_pixels_that_were_cut_are_refused(syntax: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 4095, (40, 30)).astype("u2")
    path = encode(image_of(values, 12), syntax, tmp_path / "a.dcm")
    cut(path, "native" if syntax == "explicit" else syntax)
    with pytest.raises(DataError) as caught:
        open_pixels(path).stored()
    assert caught.value.reason == "truncated" and caught.value.path == str(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SamplesPerPixel": 3}, "color"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "color"),
        ({"PixelData": b""}, "truncated"),
        ({"Rows": 0}, "truncated"),
    ],
)
def test_what_is_no_grey_image(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    image = series()[0]
    for name, value in change.items():
        setattr(image, name, value)
    image.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    with pytest.raises(DataError) as caught:
        open_pixels(tmp_path / "a.dcm").stored()
    assert caught.value.reason == reason


def test_a_syntax_that_nothing_here_decodes(tmp_path: Path) -> None:
    path = encode(series()[0], "rle", tmp_path / "a.dcm")
    image = dcmread(path)
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    image.save_as(path)
    with pytest.raises(DataError) as caught:
        open_pixels(path).stored()
    assert caught.value.reason == "transfer_syntax"


def test_a_file_that_is_not_there_or_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no dicom at all")
    for name in ("a", "b"):
        with pytest.raises(DataError):
            open_pixels(tmp_path / name)


def test_the_error_crosses_processes(tmp_path: Path) -> None:
    import pickle

    error = DataError("wrong", path=tmp_path, reason="color", hint="look")
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.message, again.path, again.hint) == ("color", "wrong", str(tmp_path), "look")


@pytest.mark.realdata
def test_real_files_give_what_pydicom_decodes() -> None:
    _, files, _ = walk([Path(os.environ["SEGPIPE_DATA"]) / "dicom"])
    compared = 0
    with no_header_text():
        for path in files:
            try:
                image = dcmread(path)
            except Exception:  # noqa: BLE001 - what pydicom cannot read is of no use here
                continue
            if image.get("BitsAllocated") == 16 and image.get("SamplesPerPixel") == 1:
                expected = image.pixel_array.reshape(-1, image.Rows, image.Columns)
                file = open_pixels(path)
                for number, frame in enumerate(expected):
                    np.testing.assert_array_equal(file.stored(number), frame)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_what_the_scan_found_is_enough_to_read_the_values(syntax: str, tmp_path: Path) -> None:
    image = image_of(smooth("<i2", -2000, 2000), 13)
    image.PixelPaddingValue, image.RescaleSlope, image.RescaleIntercept = -2000, "2", "-3"
    path = encode(image, syntax, tmp_path / "a.dcm")
    header = read_header(path)
    assert isinstance(header, Header)
    assert bool(header.pixels.attributes) == (syntax not in ("big_endian", "deflated"))
    short, whole = (frame_values(open_pixels(path, known)) for known in (header.pixels, None))
    np.testing.assert_array_equal(short.stored, whole.stored)
    np.testing.assert_array_equal(short.padding, whole.padding)
    assert (short.slope, short.intercept, short.stored.dtype) == (2, -3, whole.stored.dtype)


def test_a_file_that_changed_after_the_scan_is_read_again(tmp_path: Path) -> None:
    path = encode(image_of(smooth("<i2", 0, 99)), "explicit", tmp_path / "a.dcm")
    header = read_header(path)
    assert isinstance(header, Header)
    other = image_of(smooth("<i2", 0, 50))
    other.PatientComments = "longer"
    encode(other, "explicit", path)
    np.testing.assert_array_equal(open_pixels(path, header.pixels).stored(), smooth("<i2", 0, 50))


@pytest.mark.parametrize("signed", [True, False])
def test_run_lengths_against_a_plain_reading_of_the_standard(signed: bool, tmp_path: Path) -> None:
    kind = "i" if signed else "u"
    values = RNG.integers(-3 if signed else 0, 4, (14, 12)).astype(f"<{kind}2")
    file = open_pixels(encode(image_of(values), "pydicom_rle", tmp_path / "a.dcm"))
    np.testing.assert_array_equal(file.stored(), values)
    dataset = dcmread(tmp_path / "a.dcm")
    dataset.PixelData = dataset.PixelData[:90] + b"\x80" * (len(dataset.PixelData) - 98) + dataset.PixelData[-8:]
    dataset.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError):
        open_pixels(tmp_path / "b.dcm").stored()
