"""Who a file is of, said by a pseudonym that only the holder of a key could trace."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from pipeline.dicom.header_values import text
from pipeline.dicom.privacy import kind_of, no_header_text
from pipeline.errors import DataError

TAGS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")


def patient_pseudonym(path: Path, key: bytes) -> str:
    """``patient-`` and 12 hex digits: HMAC-SHA256 of PatientID and its issuer under the key.

    Hospital numbers are so few that a hash without a key is reversed by hashing them all. A header without PatientID
    stands for the patient of its study, so that the series of one study stay together at least.

    Raises:
        DataError: the file cannot be read any more.
    """
    import pydicom

    with no_header_text():
        try:
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        except Exception as error:  # noqa: BLE001 - pydicom raises what it likes, with header text in it
            raise DataError("the header cannot be read", path=path, found=kind_of(error)) from None
        patient, issuer, study = (text(dataset, name) for name in TAGS)
    who = f"{issuer}\0{patient}" if patient else f"\0\0{study}"
    return "patient-" + hmac.new(key, who.encode(), hashlib.sha256).hexdigest()[:12]
