"""A structured report of a release: which held results a person let go on, and who it was. It verifies nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
from pydicom import dcmread
from pydicom.sr.codedict import codes

from segpipe import __version__
from segpipe.common.files import write_bytes
from segpipe.common.result_folder import RELEASE
from segpipe.dicom.codes import Term
from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.dicom.write.quality_content import DECISION, DECISIONS, SCHEME, name_scheme, text_item
from segpipe.dicom.write.stored_object import (
    LONG_STRING,
    MANUFACTURER,
    NOT_VERIFIED,
    SERIES_NUMBERS,
    as_code,
    encoded,
    uid_of,
)
from segpipe.errors import DataError, UsageError

RELEASED = Term("released", SCHEME, DECISIONS["released"])
STATEMENT = Term("release", SCHEME, "What the release means")
WORDS = "The held results were released by the person observer named here. This is no clinical verification."
NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f\\=]")  # of a value of VR PN (PS3.5 6.2)


def check_name(name: str) -> str:
    """Return the name of who releases, without blanks around it.

    Raises:
        UsageError: it has no letter, is longer than 64 characters, or holds what a name in DICOM cannot.
    """
    name = name.strip()
    if not any(map(str.isalpha, name)) or len(name) > LONG_STRING or NOT_IN_A_NAME.search(name):
        raise UsageError(
            "not the name of a person",
            found=repr(name)[:80],
            expected="1 to 64 characters, a letter among them, without control characters, backslash or =",
            hint="give it as DICOM has it, family name first: --by 'Doe^Jane'",
        )
    return name


def write_release(results: Sequence[Path], path: Path, *, by: str, time: float, case_id: str) -> None:
    """Write who released held results; their patient and study are those of the results.

    Args:
        results: the SEG, RTSTRUCT and SR files that were held.
        path: of the report.
        by: a name that `check_name` let through.
        time: of the release, in seconds since 1970.
        case_id: for errors.

    Raises:
        DataError: a result cannot be read, or no report can be derived from it.
        UsageError: the file cannot be written.
    """
    failure = ""
    try:
        with no_header_text():
            content = encoded(_report([dcmread(file, stop_before_pixels=True) for file in results], by, time))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a library's words may quote the header
        failure = kind_of(error)
    if failure:
        raise DataError("the release of held results cannot be written", found=failure, case_id=case_id)
    write_bytes(path, content)


def _report(results: list[Any], by: str, time: float) -> Any:
    uid = uid_of(RELEASE, sorted(result.SOPInstanceUID for result in results), by, time, __version__)
    first = results[0]
    name = str(first.get("ManufacturerModelName", "") or "segpipe")
    if not by.isascii():
        first.decode()
        first.SpecificCharacterSet = "ISO_IR 192"
    person = hd.sr.PersonObserverIdentifyingAttributes(name=by)
    device = hd.sr.DeviceObserverIdentifyingAttributes(uid=uid_of("device", name), name=name)
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid_of("released", uid), identifier="release of held results"),
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(as_code(DECISION), as_code(RELEASED))],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(result.SOPClassUID, result.SOPInstanceUID)
            for result in results
            if result.Modality == "SEG"
        ],
    )
    group[0].ContentSequence.append(text_item(STATEMENT, WORDS))
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_person_context=hd.sr.ObserverContext(codes.DCM.Person, person),
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device),
        ),
        procedure_reported=as_code(Term("363679005", "SCT", "Imaging procedure")),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = hd.sr.Comprehensive3DSR(
        evidence=results,
        content=report[0],
        series_instance_uid=uid_of("series", uid),
        series_number=SERIES_NUMBERS[RELEASE],
        series_description=f"{NOT_VERIFIED}: Release of results by {name}"[:LONG_STRING],
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=name,
        software_versions=(f"segpipe {__version__}",),
        device_serial_number=str(first.get("DeviceSerialNumber", "") or "0"),
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    name_scheme(document)
    return document
