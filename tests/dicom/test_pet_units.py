"""SUV by body weight: against the QIBA pseudo-code written as it stands there, values by hand, and real headers."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from segpipe.dicom.model import Series
from segpipe.dicom.pet_units import in_unit, parse_pet_unit, shared_unit, suv_factor
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.errors import DataError, UsageError

DATA = Path(os.environ.get("SEGPIPE_DATA", "/nonexistent")) / "ibsi_sts"
PET = make.Grid(rows=4, columns=5, slices=3, spacing=(4.0, 4.0), step=4.0)
HALF_LIFE = 6586.2  # s, of fluorine-18
INJECTION = {
    "RadionuclideTotalDose": "370000000",
    "RadionuclideHalfLife": str(HALF_LIFE),
    "RadiopharmaceuticalStartTime": "090000.00",
}
HEADER: dict[str, Any] = {
    "Units": "BQML",
    "CorrectedImage": ["DECY", "ATTN", "SCAT"],
    "DecayCorrection": "START",
    "PatientWeight": "74",
    "SeriesDate": "20200102",
    "SeriesTime": "100000",
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "100000",
}


def pet(folder: Path, injection: dict[str, Any] | None = None, private: Any = (), **changed: Any) -> Series:
    """A PET of other slopes in each slice; attributes that are None are left out."""
    images = make.series(
        PET, "PT", **{name: value for name, value in {**HEADER, **changed}.items() if value is not None}
    )
    for number, image in enumerate(images):
        image.RescaleSlope = str(number + 0.5)
        item = Dataset()
        for name, value in {**INJECTION, **(injection or {})}.items():
            if value is not None:
                setattr(item, name, value)
        image.RadiopharmaceuticalInformationSequence = [item]
        for group, creator, element, vr, value in private:
            image.private_block(group, creator, create=True).add_new(element, vr, value)
    make.write(images, folder)
    (series,) = scan(folder).series
    return in_unit(series, "SUVbw")


def qiba(headers: list[Dataset]) -> float:
    """The happy path and the robust variant of the pseudo-code, in its own words and order."""

    def moment(date: str, time: str) -> datetime.datetime:
        whole, _, part = str(time).partition(".")
        parsed = datetime.datetime.strptime(str(date) + whole, "%Y%m%d%H%M%S")
        return parsed + datetime.timedelta(seconds=float("0." + (part or "0")))

    header = headers[0]
    assert "ATTN" in header.CorrectedImage and "DECY" in header.CorrectedImage
    if header.Units == "GML":
        return 1.0
    if header.Units == "CNTS" and Tag(0x7053, 0x1000) in header and float(header[0x7053, 0x1000].value):
        return float(header[0x7053, 0x1000].value)
    bq_per_count = float(header[0x7053, 0x1009].value) if header.Units == "CNTS" else 1.0
    item = header.RadiopharmaceuticalInformationSequence[0]
    half_life = float(item.RadionuclideHalfLife)
    series = moment(header.SeriesDate, header.SeriesTime)
    first = min(headers, key=lambda one: moment(one.AcquisitionDate, one.AcquisitionTime))
    acquisition = moment(first.AcquisitionDate, first.AcquisitionTime)
    if series <= acquisition:
        scanned = series
    elif Tag(0x0009, 0x100D) in header:
        own = str(header[0x0009, 0x100D].value)
        scanned = moment(own[:8], own[8:])
    elif first.get("FrameReferenceTime", 0) > 0 and first.get("ActualFrameDuration", 0) > 0:
        frame_duration = float(first.ActualFrameDuration) / 1000
        decay_constant = np.log(2) / half_life
        decay_during_frame = decay_constant * frame_duration
        average = 1 / decay_constant * np.log(decay_during_frame / (1 - np.exp(-decay_during_frame)))
        scanned = acquisition - datetime.timedelta(seconds=float(first.FrameReferenceTime) / 1000 - float(average))
    else:
        scanned = acquisition
    if "RadiopharmaceuticalStartDateTime" in item:
        own = str(item.RadiopharmaceuticalStartDateTime)
        start = moment(own[:8], own[8:])
    else:
        start = moment(scanned.strftime("%Y%m%d"), item.RadiopharmaceuticalStartTime)
        if start > scanned:
            start -= datetime.timedelta(days=1)
    decay_time = 0.0 if header.DecayCorrection == "ADMIN" else (scanned - start).total_seconds()
    decayed_dose = float(item.RadionuclideTotalDose) * 2 ** (-decay_time / half_life)
    return bq_per_count * float(header.PatientWeight) * 1000 / decayed_dose


GE_TIME = (0x0009, "GEMS_PETD_01", 0x0D, "DT", "20200102095500.00")
COUNTS = (0x7053, "Philips PET Private Group", 0x09, "DS", "1.75")
FACTOR = (0x7053, "Philips PET Private Group", 0x00, "DS", "0.000632")
AT_NIGHT = {"SeriesTime": "003000", "AcquisitionTime": "003000"}
LATER = {"SeriesTime": "150000"}  # a series that was made from others


@pytest.mark.parametrize(
    ("injection", "private", "changed"),
    [
        ({}, (), {}),
        ({}, (), {"DecayCorrection": "ADMIN"}),
        ({"RadiopharmaceuticalStartTime": "233000"}, (), AT_NIGHT),
        ({"RadiopharmaceuticalStartDateTime": "20200101233000.50"}, (), {**AT_NIGHT, "AcquisitionTime": "003010"}),
        ({}, (GE_TIME,), LATER),
        ({}, (), LATER),
        ({}, (), {**LATER, "FrameReferenceTime": "916000", "ActualFrameDuration": "180000"}),
        ({}, (COUNTS,), {"Units": "CNTS"}),
        ({}, (COUNTS, FACTOR), {"Units": "CNTS"}),
        ({}, (), {"Units": "GML", "SUVType": "BW"}),
        ({}, (), {"Units": "GML", "PatientWeight": None}),
        (
            {"RadionuclideHalfLife": "282240", "RadiopharmaceuticalStartDateTime": "20191230090000"},
            (),
            {},
        ),  # zirconium-89, three days before
    ],
)
def test_suv_is_that_of_the_pseudo_code(
    tmp_path: Path, injection: dict[str, Any], private: Any, changed: dict[str, Any]
) -> None:
    series = pet(tmp_path, injection, private, **changed)
    expected = qiba([dcmread(path) for path in series.files])
    assert suv_factor(series) == pytest.approx(expected, rel=1e-9)


def test_suv_by_hand(tmp_path: Path) -> None:
    """370 MBq an hour before the scan are 253.3 MBq; 74 kg make 1 Bq/mL 2.921e-4 g/mL."""
    series = pet(tmp_path)
    assert suv_factor(series) == pytest.approx(74_000 / (370e6 * 2 ** (-3600 / 6586.2)), rel=1e-12)
    assert suv_factor(series) == pytest.approx(2.921e-4, rel=1e-3)
    images = sorted((dcmread(path) for path in series.files), key=lambda image: float(image.ImagePositionPatient[2]))
    activity = np.stack([image.pixel_array * float(image.RescaleSlope) for image in images], axis=-1)
    volume = load_series(Series.from_dict(series.as_dict()))
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, activity.transpose(1, 0, 2) * 2.9213e-4, rtol=1e-3)
    plain = scan(tmp_path).series[0]
    assert (plain.units, plain.converted_to) == ("BQML", "")
    np.testing.assert_allclose(load_series(plain).array, activity.transpose(1, 0, 2))


UTC = {"RadiopharmaceuticalStartDateTime": "20200102070000.00+0000"}  # nine o'clock, two hours east
GE_TIME_UTC = (*GE_TIME[:4], "20200102075500.00+0000")


@pytest.mark.parametrize("zone", ["+0200", "-0330", "+0000"])
def test_a_moment_from_utc_is_told_by_the_clock_of_the_scan(tmp_path: Path, zone: str) -> None:
    local = datetime.datetime(2020, 1, 2, 9)
    offset = datetime.timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[3:]))
    moment = {"RadiopharmaceuticalStartDateTime": f"{local - offset:%Y%m%d%H%M%S}.00+0000"}
    by_clock = suv_factor(pet(tmp_path / "a"))
    assert suv_factor(pet(tmp_path / "b", moment, TimezoneOffsetFromUTC=zone)) == by_clock
    exactly = {"RadiopharmaceuticalStartDateTime": "20200102090000"}
    assert suv_factor(pet(tmp_path / "c", exactly, TimezoneOffsetFromUTC=zone)) == by_clock
    scanned = {**LATER, "TimezoneOffsetFromUTC": "+0200"}
    assert suv_factor(pet(tmp_path / "d", UTC, (GE_TIME_UTC,), **scanned)) == suv_factor(
        pet(tmp_path / "e", {}, (GE_TIME,), **LATER)
    )


def test_a_moment_from_utc_beside_a_clock_of_an_unknown_zone_is_refused(tmp_path: Path) -> None:
    for folder, injection, private, changed, name in (
        ("a", UTC, (), {}, "RadiopharmaceuticalStartDateTime (0018,1078)"),
        ("b", {}, (GE_TIME_UTC,), LATER, "the scan time of GEMS_PETD_01"),
    ):
        with pytest.raises(DataError) as caught:
            suv_factor(pet(tmp_path / folder, injection, private, **changed))
        assert f"{name}: given from UTC, and TimezoneOffsetFromUTC (0008,0201) is missing" in str(caught.value.found)


@pytest.mark.parametrize(
    ("injection", "changed", "tag", "found"),
    [
        ({}, {"PatientWeight": None}, "PatientWeight (0010,1030)", "missing"),
        ({}, {"PatientWeight": "0"}, "PatientWeight (0010,1030)", "cannot be true"),
        ({}, {"PatientWeight": "74321"}, "PatientWeight (0010,1030)", "cannot be true"),
        ({"RadionuclideTotalDose": "370"}, {}, "RadionuclideTotalDose (0018,1074)", "370"),
        ({"RadionuclideTotalDose": None}, {}, "RadionuclideTotalDose (0018,1074)", "missing"),
        ({"RadionuclideHalfLife": "1.83"}, {}, "RadionuclideHalfLife (0018,1075)", "1.83"),
        ({"RadiopharmaceuticalStartTime": None}, {}, "RadiopharmaceuticalStartTime (0018,1072)", "missing"),
        ({"RadiopharmaceuticalStartTime": "100100"}, {}, "RadiopharmaceuticalStartTime (0018,1072)", "1439 minutes"),
        (
            {"RadiopharmaceuticalStartDateTime": "20200103090000"},
            {},
            "RadiopharmaceuticalStartDateTime (0018,1078)",
            "minutes before the scan",
        ),
        ({"RadionuclideHalfLife": "282240"}, {}, "RadiopharmaceuticalStartDateTime (0018,1078)", "missing"),
        ({}, {"DecayCorrection": "NONE"}, "DecayCorrection (0054,1102)", "NONE"),
        ({}, {"DecayCorrection": None}, "DecayCorrection (0054,1102)", "missing"),
        ({}, {"CorrectedImage": ["DECY"]}, "CorrectedImage (0028,0051)", "DECY"),
        ({}, {"CorrectedImage": None}, "CorrectedImage (0028,0051)", "missing"),
        ({}, {"Units": "GML", "SUVType": "LBM"}, "SUVType (0054,1006)", "LBM"),
        ({}, {"Units": "CNTS"}, "neither (7053,xx00) nor (7053,xx09)", ""),
        ({}, {"AcquisitionTime": None}, "AcquisitionTime (0008,0032)", "missing"),
        ({}, {"SeriesDate": None}, "SeriesDate (0008,0021)", "missing"),
    ],
)
def test_what_cannot_be_true_is_refused_by_its_tag(
    tmp_path: Path, injection: dict[str, Any], changed: dict[str, Any], tag: str, found: str
) -> None:
    series = pet(tmp_path, injection, **changed)
    with pytest.raises(DataError) as caught:
        load_series(series)
    error = caught.value
    assert error.reason == "pet_unit" and error.case_id == series.case_id
    assert tag in str(error.found) and found in str(error.found)
    assert "74321" not in str(error)  # nobody's weight


def test_headers_have_to_agree_and_name_one_injection(tmp_path: Path) -> None:
    series = pet(tmp_path)
    image = dcmread(series.files[1])
    image.PatientWeight = "75"
    image.save_as(series.files[1])
    with pytest.raises(DataError) as caught:
        suv_factor(series)
    assert "PatientWeight (0010,1030): differs between slices" in str(caught.value.found)
    for path in series.files:
        image = dcmread(path)
        image.PatientWeight = "74"
        image.RadiopharmaceuticalInformationSequence.append(Dataset())
        image.save_as(path)
    with pytest.raises(DataError) as caught:
        suv_factor(series)
    assert "2 injections" in str(caught.value.found)


def test_units(tmp_path: Path) -> None:
    series = pet(tmp_path, Units="PROPCPS")
    assert (series.state, series.reason, series.units) == ("refused", "pet_unit", "")
    plain = scan(tmp_path).series[0]
    assert in_unit(plain, None) is plain
    stored = scan(pet(tmp_path / "b").files[0].parent).series[0]
    assert in_unit(stored, "BQML") is stored
    refused = in_unit(stored, "GML")
    assert refused.reason == "pet_unit" and "in BQML, expected GML" in refused.detail
    converted = in_unit(stored, "SUVbw")
    assert in_unit(converted, "SUVbw") is converted
    assert shared_unit([converted]) == "SUVbw" and shared_unit([stored, stored]) == "BQML" and shared_unit([]) is None
    with pytest.raises(DataError, match="in different units"):
        shared_unit([stored, converted])
    assert [parse_pet_unit(word) for word in ("suvbw", "bqml", None)] == ["SUVbw", "BQML", None]
    with pytest.raises(UsageError, match="no such unit"):
        parse_pet_unit("SUVlbm")


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="SEGPIPE_DATA does not name a folder of real scans")
def test_real_pet_of_a_scanner_that_writes_suv() -> None:
    for patient in ("STS_002", "STS_019", "STS_024"):
        (series,) = [one for one in scan(DATA / patient / "PET").series if one.modality == "PT"]
        assert series.units == "GML"
        expected = qiba([dcmread(path, stop_before_pixels=True) for path in series.files])
        assert suv_factor(in_unit(series, "SUVbw")) == expected == 1.0
        values = load_series(in_unit(series, "SUVbw")).array
        np.testing.assert_array_equal(values, load_series(series).array)
        assert 1 < values.max() < 60
