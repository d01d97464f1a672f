"""The headers of a series' slices, as what is derived from them needs them: whole, sorted, and copies.

A header that lacks an attribute of type 2, or whose value of one cannot be read, gets it empty (DICOM PS3.5 section
7.4.3); nothing of the user's files is changed. Header text never leaves the datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from highdicom.base import get_sop_class_iod_map
from pydicom import dcmread
from pydicom.valuerep import DA, TM

from segpipe.dicom.model import Frame, Series
from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.errors import DataError

# of Patient, General Study, General Series, Frame of Reference and General Equipment
TYPE_2 = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName
    StudyID SeriesNumber PositionReferenceIndicator Manufacturer
"""
TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UN", "UT"}
# what files a result in its study, or is no text of a person's
KEPT = """
    PatientName PatientID IssuerOfPatientID AccessionNumber StudyID Manufacturer ManufacturerModelName
    SoftwareVersions DeidentificationMethod DeidentificationMethodCodeSequence SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence
"""
NEEDED = {
    "FrameOfReferenceUID": "no frame of reference (FrameOfReferenceUID), so positions have no meaning beyond it",
    "SOPClassUID": "no SOP class (SOPClassUID), so it cannot be referred to",
    "SOPInstanceUID": "no SOP instance (SOPInstanceUID), so it cannot be referred to",
    "StudyInstanceUID": "no study (StudyInstanceUID), so a result cannot be filed",
    "SeriesInstanceUID": "no series (SeriesInstanceUID), so it cannot be referred to",
}
SEXES = ("M", "F", "O", "")


@dataclass(frozen=True, eq=False)
class Sources:
    """Headers of a series.

    Attributes:
        series: whose.
        headers: one a file, in the order in which the sorted frames first name them.
        multi_frame: whether the frames lie within files.
    """

    series: Series
    headers: tuple[Any, ...]
    multi_frame: bool

    @property
    def first(self) -> Any:
        """The header that stands for patient and study."""
        return self.headers[0]

    def reference(self, frame: Frame) -> tuple[str, str, int | None]:
        """Return SOP class, SOP instance and, within a file of several, frame number from 1."""
        number = frame.number + 1 if self.multi_frame else None
        return str(self.first.SOPClassUID), frame.sop_instance_uid, number


def obstacles(series: Series) -> list[str]:
    """Say why nothing can be derived from a series in DICOM, without header text; empty where all is well."""
    try:
        with no_header_text():
            return _refused(series) or _lacks(_read(series, specific_tags=list(NEEDED)))
    except DataError as error:
        return [f"{error.message}: {error.found}" if error.found else error.message]


def read_sources(series: Series, deidentified: bool = False) -> Sources:
    """Read the headers of a series, ready to derive from.

    Args:
        series: loaded, and `obstacles` has nothing against it.
        deidentified: without free text, names of staff and of institutions; patient and study stay, to file the result.

    Raises:
        DataError: the series cannot carry anything, with the reasons; or a file of it has gone.
    """
    with no_header_text():
        headers = _read(series)
        reasons = _refused(series) or _lacks(headers)
    if reasons:
        raise DataError("DICOM cannot be written for this series", found="; ".join(reasons), case_id=series.case_id)
    with no_header_text():
        complete = tuple(_complete(header, deidentified) for header in headers)
    return Sources(series, complete, multi_frame="PerFrameFunctionalGroupsSequence" in complete[0])


def _refused(series: Series) -> list[str]:
    if series.is_capture:
        return ["it is a Secondary Capture: no DICOM result can say that its values may have been windowed"]
    if series.repaired:
        repairs = " and ".join(series.repaired)
        return [
            f"it was resampled to a regular grid (repaired: {repairs}), and DICOM results refer to slices as scanned"
        ]
    if series.state == "loaded" and series.frames:
        return []
    return [f"the series was refused ({series.reason or 'no slices'}), so its slices carry no label map"]


def _lacks(headers: Sequence[Any]) -> list[str]:
    reasons = []
    for keyword, words in NEEDED.items():
        lacking = sum(not str(header.get(keyword, "")).strip() for header in headers)
        if lacking:
            part = "" if lacking == len(headers) else f" ({lacking} of {len(headers)} files)"
            reasons.append(f"the source has {words}{part}")
        elif keyword != "SOPInstanceUID" and len({str(header.get(keyword)) for header in headers}) > 1:
            reasons.append(f"its slices differ in {keyword}")
    unknown = {str(header.get("SOPClassUID", "")) for header in headers} - {""} - _known_classes()
    if unknown:
        reasons.append(f"its SOP class {min(unknown)} is none of the standard")
    return reasons


def _read(series: Series, **options: Any) -> list[Any]:
    """Read the header of each file of the frames, in their order."""
    headers: list[Any] = []
    paths = dict.fromkeys(frame.path for frame in series.frames)
    try:
        for path in paths:
            headers.append(dcmread(path, stop_before_pixels=True, force=True, **options))
    except OSError as error:
        raise DataError(
            "a slice cannot be read again",
            path=path,
            found=f"file {series.files.index(path) + 1} of {len(series.files)}: {error.strerror or kind_of(error)}",
            case_id=series.case_id,
            hint="leave the series where it is until its results are written",
        ) from error
    return headers


def _known_classes() -> set[str]:
    return set(get_sop_class_iod_map())


def _complete(header: Any, deidentified: bool) -> Any:
    """Return the header with every element readable, type 2 present, and no free text where none is wanted."""
    for tag in list(header.keys()):
        try:
            _touch(header[tag])
        except Exception:  # noqa: BLE001 - whatever a broken value makes pydicom raise
            del header[tag]
            continue
        element = header[tag]
        if deidentified and element.VR in {"SQ", *TEXT} and element.keyword not in KEPT.split():
            del header[tag]
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(header.get(keyword) or "")
        except (TypeError, ValueError):
            setattr(header, keyword, "")
    if header.get("PatientSex", "") not in SEXES:
        header.PatientSex = ""
    for keyword in TYPE_2.split():
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _touch(element: Any) -> None:
    """Decode an element and all within it."""
    if element.VR == "SQ":
        for item in element.value:
            for inner in item:
                _touch(inner)
    else:
        str(element.value)
