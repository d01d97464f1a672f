"""Values against the standard's formula, written here with pydicom's pixel_array and plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import enhanced, series
from pydicom import Dataset, dcmread

from segpipe.dicom.pixels import FrameValues, frame_values, is_inverted, notes_on, open_pixels, rescale
from segpipe.errors import DataError


def carried_out(frame: FrameValues) -> np.ndarray:
    values = np.empty(frame.stored.shape, np.float32)
    frame.write(values)
    return values


def saved(image: Dataset, folder: Path) -> Path:
    path = folder / "a.dcm"
    image.save_as(path, enforce_file_format=False)
    return path


@settings(max_examples=40)
@given(
    slope=st.one_of(st.integers(-5, 5).filter(bool), st.floats(1e-4, 50)),
    intercept=st.one_of(st.integers(-3000, 3000), st.floats(-3000, 3000)),
)
def test_rescale_is_slope_times_stored_plus_intercept(
    tmp_path_factory: pytest.TempPathFactory, slope: float, intercept: float
) -> None:
    image = series(RescaleSlope=f"{slope:.9g}", RescaleIntercept=f"{intercept:.9g}")[0]
    path = saved(image, tmp_path_factory.mktemp("a"))
    frame = frame_values(open_pixels(path))
    values = carried_out(frame)
    again = dcmread(path, force=True)
    again.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    expected = again.pixel_array * float(again.RescaleSlope) + float(again.RescaleIntercept)
    np.testing.assert_array_equal(values, expected.astype(np.float32))
    assert frame.padding is None
    assert frame.ends() == pytest.approx((expected.min(), expected.max()), rel=1e-12)
    if frame.is_whole and np.abs(expected).max() < 2**15:
        whole = np.empty(values.shape, np.int16)
        frame.write(whole)
        np.testing.assert_array_equal(whole, expected)


def test_whole_numbers_stay_whole_numbers(tmp_path: Path) -> None:
    assert frame_values(open_pixels(saved(series(RescaleIntercept="-1024")[0], tmp_path))).is_whole
    assert not frame_values(open_pixels(saved(series(RescaleIntercept="-0.5")[0], tmp_path))).is_whole


@pytest.mark.parametrize("slope", ["0", "nan", ""])
def test_a_slope_that_cannot_be_used(slope: str, tmp_path: Path) -> None:
    image = series()[0]
    image["RescaleSlope"].value = slope or None
    if not slope:  # an empty one is as good as none
        assert rescale(open_pixels(saved(image, tmp_path))) == (1, 0)
        return
    with pytest.raises(DataError) as caught:
        rescale(open_pixels(saved(image, tmp_path)))
    assert caught.value.reason == "missing_tag"


def transformation(slope: float, intercept: float) -> list[Dataset]:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = str(slope), str(intercept), "US"
    return [item]


def test_a_frame_has_its_own_rescale_or_the_shared_one(tmp_path: Path) -> None:
    image = enhanced()
    del image.RescaleSlope, image.RescaleIntercept
    image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = transformation(2, 10)
    frames = image.PerFrameFunctionalGroupsSequence
    frames[3].PixelValueTransformationSequence = transformation(0.5, -1)
    file = open_pixels(saved(image, tmp_path))
    assert [rescale(file, number) for number in (0, 3, 5)] == [(2, 10), (0.5, -1), (2, 10)]
    np.testing.assert_array_equal(carried_out(frame_values(file, 3)), file.stored(3) * 0.5 - 1)


def test_without_shared_groups_each_frame_has_its_own(tmp_path: Path) -> None:
    image = enhanced(shared=False)
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence = transformation(number + 1, 0)
    file = open_pixels(saved(image, tmp_path))
    assert rescale(file, 4) == (5, 0)


def test_a_modality_lookup_table(tmp_path: Path) -> None:
    image = series()[0]
    del image.RescaleSlope, image.RescaleIntercept
    stored = np.arange(image.Rows * image.Columns).reshape(image.Rows, image.Columns).astype("<u2") % 8
    image.PixelRepresentation, image.PixelData = 0, stored.tobytes()
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [8, 0, 16])
    table.add_new("LUTData", "US", [0, 1, 4, 9, 16, 25, 36, 49])
    table.ModalityLUTType = "US"
    image.ModalityLUTSequence = [table]
    values = carried_out(frame_values(open_pixels(saved(image, tmp_path))))
    np.testing.assert_array_equal(values, stored.astype(int) ** 2)


@pytest.mark.parametrize(
    ("first", "last", "low", "high"),
    [(-500, None, -500, -500), (-500, -480, -500, -480), (-480, -500, -500, -480), (65036, None, -500, -500)],
)
def test_padding_is_between_its_two_ends(first: int, last: int | None, low: int, high: int, tmp_path: Path) -> None:
    image = series()[0]
    image.add_new("PixelPaddingValue", "US" if first > 32767 else "SS", first)
    if last is not None:
        image.add_new("PixelPaddingRangeLimit", "SS", last)
    stored = np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, image.Columns).copy()
    stored[2, 3:6] = (low, high, (low + high) // 2)
    image.PixelData = stored.tobytes()
    padding = frame_values(open_pixels(saved(image, tmp_path))).padding
    assert padding is not None
    np.testing.assert_array_equal(padding, (stored >= low) & (stored <= high))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [12, 16])
def test_monochrome1_without_a_unit_is_mirrored(signed: bool, bits: int, tmp_path: Path) -> None:
    image = series(modality="MR")[0]
    low = -(1 << (bits - 1)) if signed else 0
    stored = np.linspace(low, low + (1 << bits) - 1, image.Rows * image.Columns).astype("i2" if signed else "u2")
    image.PixelData = stored.tobytes()
    image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits - 1, int(signed)
    image.PhotometricInterpretation = "MONOCHROME1"
    file = open_pixels(saved(image, tmp_path))
    frame = frame_values(file)
    np.testing.assert_array_equal(frame.stored.ravel(), 2 * low + (1 << bits) - 1 - stored.astype(int))
    assert frame.stored.dtype.kind in "iu" and "mirrored" in notes_on(file)[0]


@pytest.mark.parametrize(
    ("modality", "attributes", "inverted"),
    [("CT", {}, False), ("PT", {}, False), ("MR", {"RescaleType": "HU"}, False), ("MR", {}, True)],
)
def test_monochrome1_with_a_unit_is_left(
    modality: str, attributes: dict[str, Any], inverted: bool, tmp_path: Path
) -> None:
    image = series(modality=modality, PhotometricInterpretation="MONOCHROME1", **attributes)[0]
    file = open_pixels(saved(image, tmp_path))
    assert is_inverted(file) is inverted
    assert notes_on(file)[0].startswith("MONOCHROME1")


def test_a_real_world_value_mapping_is_noted(tmp_path: Path) -> None:
    image = series()[0]
    image.RealWorldValueMappingSequence = [Dataset()]
    assert "not applied" in notes_on(open_pixels(saved(image, tmp_path)))[0]
