"""The unit of a PET's values, and SUV by body weight from its headers.

Which tags count, and how the time of decay follows from them, is that of the QIBA FDG-PET/CT profile's pseudo-code for
vendor-neutral SUV (Quantitative Imaging Biomarkers Alliance, "Computing SUV from DICOM", happy path and its robust
variant). What it leaves to luck is refused here: a tag that is missing or cannot be true, images that were not
corrected for attenuation and decay, several injections, an injection of which only the time of day is known where the
nuclide lives for days, and one dated from UTC beside a scan whose clock has no zone. No weight of a patient is ever
said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from segpipe.dicom.clock import DAY_S, offset_s, seconds_of
from segpipe.dicom.frames import BLOCKS, items, numbers, private_value, text
from segpipe.dicom.model import Series, Volume
from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.errors import DataError, UsageError

SUV = "SUVbw"
STORED = ("BQML", "CNTS", "GML")  # of Units (0054,1001), which PS3.3 C.8.9.1.1.3 has more of
PHILIPS, SUV_FACTOR, ACTIVITY_FACTOR = "Philips PET Private Group", 0x00, 0x09  # of group 7053
GE, SCAN_TIME = "GEMS_PETD_01", 0x0D  # of group 0009
LONG_LIVED_S = 4 * 3600.0  # from which on a time of day does not tell the day of the injection
MOST_HALF_LIVES = 8.0  # between injection and scan
PLAUSIBLE = {
    "PatientWeight": (2.0, 400.0, "kg"),
    "RadionuclideTotalDose": (1e6, 5e10, "Bq"),
    "RadionuclideHalfLife": (60.0, 1e6, "s"),
}
READ = """
    Units CorrectedImage DecayCorrection SUVType PatientWeight RadiopharmaceuticalInformationSequence SeriesDate
    SeriesTime AcquisitionDate AcquisitionTime FrameReferenceTime ActualFrameDuration TimezoneOffsetFromUTC
"""
SAME = """
    Units CorrectedImage DecayCorrection SUVType PatientWeight SeriesDate SeriesTime TimezoneOffsetFromUTC
"""
OF_INJECTION = """
    RadionuclideTotalDose RadionuclideHalfLife RadiopharmaceuticalStartTime RadiopharmaceuticalStartDateTime
"""


def parse_pet_unit(word: str | None) -> str | None:
    """Return the unit that a user names, None for none.

    Raises:
        UsageError: no such unit.
    """
    known = {name.upper(): name for name in (SUV, *STORED)}
    if word is not None and word.upper() not in known:
        raise UsageError("no such unit of PET", found=word, expected=", ".join(known.values()))
    return None if word is None else known[word.upper()]


def in_unit(series: Series, unit: str | None) -> Series:
    """Return a series as one whose values are in a unit when they are read, refused where it cannot be had.

    A series that is no PET, or is refused already, stays as it is; so does one in that unit. Whether the headers have
    what SUV takes is seen when it is read.

    Args:
        series: from a scan.
        unit: ``SUVbw``, or that in which the values have to be stored; None takes any.
    """
    read_in = series.converted_to or series.units
    if unit is None or series.modality != "PT" or series.state != "loaded" or unit == read_in:
        return series
    if unit == SUV and series.units in STORED:
        return replace(series, converted_to=SUV)
    found = series.units or "no unit that is known (Units (0054,1001))"
    detail = f"its values are in {found}, expected {unit}. Export it again in that unit."
    return replace(series, state="refused", reason="pet_unit", detail=detail)


def volume_in_unit(volume: Volume, unit: str | None) -> Volume:
    """Return a volume that was read with its values in a unit; arguments and what is left alone as of `in_unit`.

    Raises:
        DataError: it is a PET in another unit, or its headers do not have what SUV takes.
    """
    series = in_unit(volume.series, unit)
    if series.state == "refused":
        raise DataError(
            "the PET is in another unit than the bundle was trained on",
            case_id=series.case_id,
            reason="pet_unit",
            found=series.units or "no unit that is known",
            expected=unit,
            hint="export it again in that unit",
        )
    if series.converted_to == volume.series.converted_to:
        return volume
    return replace(volume, series=series, array=volume.array.astype(np.float32) * np.float32(suv_factor(series)))


def suv_factor(series: Series) -> float:
    """Return what a PET's values after rescale are multiplied by, to be SUV by body weight in g/mL.

    Args:
        series: a PET in BQML, CNTS or GML; the headers of all its files are read.

    Raises:
        DataError: a tag is missing, differs between slices or cannot be true; the error names it.
    """
    try:
        return _factor(_read(series))
    except DataError as error:
        error.case_id, error.reason = series.case_id, "pet_unit"
        error.hint = error.hint or "export it again from its source; import and convert take values as stored"
        raise


@dataclass(frozen=True)
class _Headers:
    """What the headers of a series say: what is the same in all of them, and the times of each."""

    same: Dataset
    each: tuple[Dataset, ...]


def _read(series: Series) -> _Headers:
    tags: list[Any] = READ.split()
    for group, elements in ((0x7053, (SUV_FACTOR, ACTIVITY_FACTOR)), (0x0009, (SCAN_TIME,))):
        for block in BLOCKS:
            tags += [group << 16 | block, *(group << 16 | block << 8 | element for element in elements)]
    each = []
    with no_header_text():
        for path in dict.fromkeys(frame.path for frame in series.frames):
            try:
                each.append(pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags))
            except Exception as error:  # noqa: BLE001 - pydicom raises what it likes, with header text in it
                raise DataError("a header cannot be read", path=path, found=kind_of(error)) from None
    headers = _Headers(each[0], tuple(each))
    for name in SAME.split():
        if len({text(one, name) for one in each}) > 1:
            raise _wrong(name, "differs between slices", "the same in all")
    for name in OF_INJECTION.split():
        if len({tuple(text(item, name) for item in _injections(one)) for one in each}) > 1:
            raise _wrong(name, "differs between slices", "the same in all")
    return headers


def _injections(header: Dataset) -> list[Dataset]:
    return list(items(header, "RadiopharmaceuticalInformationSequence"))


def _factor(headers: _Headers) -> float:
    header = headers.same
    units, corrected = text(header, "Units"), text(header, "CorrectedImage").upper().split("\\")
    for word, meaning in (("ATTN", "attenuation"), ("DECY", "decay")):
        if word not in corrected:
            raise _wrong("CorrectedImage", "\\".join(corrected) or "missing", f"{word}: corrected for {meaning}")
    if units == "GML":
        if (kind := text(header, "SUVType")) not in ("", "BW"):
            raise _wrong("SUVType", kind, "BW, by body weight")
        return 1.0
    if units == "CNTS":
        if factor := _private(header, 0x7053, PHILIPS, SUV_FACTOR):
            return factor
        activity = _private(header, 0x7053, PHILIPS, ACTIVITY_FACTOR)
        if not activity:
            raise DataError(
                "SUV cannot be told from counts",
                found="neither (7053,xx00) nor (7053,xx09) of Philips above 0",
                expected="one of them",
            )
        return activity * _of_activity(headers)
    return _of_activity(headers)


def _of_activity(headers: _Headers) -> float:
    """Return g/mL for each Bq/mL."""
    injections = _injections(headers.same)
    if len(injections) != 1:
        raise _wrong("RadiopharmaceuticalInformationSequence", f"{len(injections)} injections", "one")
    weight_kg = _plausible(headers.same, "PatientWeight", is_said=False)
    dose_bq = _plausible(injections[0], "RadionuclideTotalDose")
    half_life_s = _plausible(injections[0], "RadionuclideHalfLife")
    correction = text(headers.same, "DecayCorrection")
    if correction == "ADMIN":  # to the time of the injection
        decay_s = 0.0
    elif correction == "START":  # to the begin of the scan
        decay_s = _decay_s(headers, injections[0], half_life_s)
    else:
        raise _wrong("DecayCorrection", correction or "missing", "START or ADMIN")
    return weight_kg * 1000 / (dose_bq * 2 ** (-decay_s / half_life_s))


def _plausible(header: Dataset, name: str, is_said: bool = True) -> float:
    low, high, unit = PLAUSIBLE[name]
    values = numbers(text(header, name) or None)
    if not values:
        raise _wrong(name, "missing or no number", f"{low:g} to {high:g} {unit}")
    if not low <= values[0] <= high:
        found = f"{values[0]:g}" if is_said else "a value that cannot be true"  # of a patient
        raise _wrong(name, found, f"{low:g} to {high:g} {unit}")
    return values[0]


def _decay_s(headers: _Headers, injection: Dataset, half_life_s: float) -> float:
    """Return seconds from the injection to the time that the scan is corrected to."""
    scan_s = _scan_s(headers)
    exactly, of_day = (text(injection, f"RadiopharmaceuticalStart{part}") for part in ("DateTime", "Time"))
    name = "RadiopharmaceuticalStartDateTime" if exactly else "RadiopharmaceuticalStartTime"
    if exactly:
        start_s = _local_s(headers.same, name, exactly)
        if start_s is None or start_s < DAY_S:
            raise _wrong(name, "no date and time", "YYYYMMDDHHMMSS")
    else:
        time_s = seconds_of(" " * 8 + of_day)
        if time_s is None:
            raise _wrong(name, "missing or no time", "HHMMSS")
        if half_life_s > LONG_LIVED_S:
            raise _wrong(
                "RadiopharmaceuticalStartDateTime", "missing", "the day of the injection of a nuclide that lives long"
            )
        start_s = scan_s - scan_s % DAY_S + time_s
        if start_s > scan_s:  # injected before midnight
            start_s -= DAY_S
    decay_s = scan_s - start_s
    if not 0 <= decay_s <= MOST_HALF_LIVES * half_life_s:
        raise _wrong(
            name, f"{decay_s / 60:.4g} minutes before the scan", f"0 to {MOST_HALF_LIVES:g} half-lives before it"
        )
    return decay_s


def _scan_s(headers: _Headers) -> float:
    """Return the time that images corrected to ``START`` are corrected to, in seconds of the scan's own clock."""
    first, acquired_s = min(
        ((one, _moment(one, "Acquisition")) for one in headers.each), key=lambda pair: pair[1]
    )  # of all beds
    series_s = _moment(headers.same, "Series")
    if series_s <= acquired_s:
        return series_s
    own = private_value(headers.same, 0x0009, GE, SCAN_TIME)  # the series was made later, from others
    own_s = _local_s(headers.same, f"the scan time of {GE}", _plain(own)) if own is not None else None
    if own_s is not None and own_s >= DAY_S:
        return own_s
    reference_s, frame_s = (_milliseconds(first, name) for name in ("FrameReferenceTime", "ActualFrameDuration"))
    if not (reference_s and frame_s):
        return acquired_s
    half_life_s = _plausible(_injections(headers.same)[0], "RadionuclideHalfLife")
    decay = math.log(2) / half_life_s
    mean_s = math.log(decay * frame_s / (1 - math.exp(-decay * frame_s))) / decay  # when counts are the frame's mean
    return acquired_s - reference_s + mean_s


def _moment(header: Dataset, of: str) -> float:
    date, time = text(header, f"{of}Date"), text(header, f"{of}Time")
    seconds = seconds_of(f"{date:8.8}{time}")
    if seconds is None or seconds < DAY_S:
        missing = f"{of}Date" if seconds is not None else f"{of}Time"
        raise _wrong(
            missing, "missing, or no date" if seconds is not None else "missing, or no time", "when it was scanned"
        )
    return seconds


def _local_s(header: Dataset, name: str, when: str) -> float | None:
    """Return seconds of a DT by the clock that dates and times of the header are told by."""
    seconds, zone_s = seconds_of(when), offset_s(text(header, "TimezoneOffsetFromUTC"))
    if seconds is None or offset_s(when) is None:
        return seconds
    if zone_s is None:
        detail = "given from UTC, and TimezoneOffsetFromUTC (0008,0201) is missing"
        raise _wrong(name, detail, "the clock that the scan is dated by")
    return seconds + zone_s


def _milliseconds(header: Dataset, name: str) -> float:
    values = numbers(text(header, name) or None)
    return values[0] / 1000 if values and values[0] > 0 else 0.0


def _private(header: Dataset, group: int, creator: str, element: int) -> float:
    values = numbers(_plain(private_value(header, group, creator, element)) or None)
    return values[0] if values and values[0] > 0 else 0.0


def _plain(value: object) -> str:
    return value.decode("ascii", "ignore").strip("\0 ") if isinstance(value, bytes) else str(value or "").strip("\0 ")


def _wrong(name: str, found: str, expected: str) -> DataError:
    tag = pydicom.datadict.tag_for_keyword(name)
    named = name if tag is None else f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return DataError("SUV cannot be computed from the headers", found=f"{named}: {found}", expected=expected)


def shared_unit(series: Iterable[Series]) -> str | None:
    """Return the unit in which the PET of several cases are read; None for what is no PET or has none.

    Raises:
        DataError: there are several.
    """
    units = {one.converted_to or one.units for one in series if one.modality == "PT"}
    if len(units) > 1:
        raise DataError(
            "the PET of these cases are in different units",
            found=", ".join(sorted(unit or "none that is known" for unit in units)),
            expected="one unit in all of them",
            hint="convert those whose headers allow it with --pet-unit SUVbw",
        )
    return next(iter(units), "") or None
