"""Nothing that a header says about a person reaches a log, a warning or an error.

pydicom and highdicom put values into their warnings (``Invalid value for VR DA: '<value>'``, ``The string "<name>" is
unlikely to represent the intended person name``) and into their exceptions. Whatever reads or writes a header does so
within `no_header_text`, and speaks of an exception by `kind_of` alone. Who a file is of is said by a pseudonym that
only the holder of a key could trace.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom

from segpipe.dicom.frames import text
from segpipe.errors import DataError

LOGGERS = ("pydicom", "highdicom", "pynetdicom", "dicomweb_client")


class _DropAll(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


@contextmanager
def no_header_text() -> Iterator[None]:
    """Drop the warnings and log records of the DICOM libraries while the block runs (nesting is fine)."""
    drop = _DropAll()
    names = [*LOGGERS, *(name for name in logging.root.manager.loggerDict if name.startswith(LOGGERS))]
    loggers = [logging.getLogger(name) for name in names]  # a filter of a parent does not see its children's
    for logger in loggers:
        logger.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)


def kind_of(error: BaseException) -> str:
    """Return what kind of error it was, without its words, which may quote a header."""
    return type(error).__name__


TAGS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")


@dataclass(frozen=True, repr=False)
class Patient:
    """Whom a header says that a series is of; shown nowhere."""

    number: str
    issuer: str
    study: str

    def pseudonym(self, key: bytes) -> str:
        """Return ``patient-`` and 12 hex digits: HMAC-SHA256 of PatientID and its issuer under the key.

        Hospital numbers are so few that a hash without a key is reversed by hashing them all. A header without
        PatientID stands for the patient of its study, so that the series of one study stay together at least.
        """
        who = f"{self.issuer}\0{self.number}" if self.number else f"\0\0{self.study}"
        return "patient-" + hmac.new(key, who.encode(), hashlib.sha256).hexdigest()[:12]


def read_patient(path: Path) -> Patient:
    """Return whom a file says that it is of.

    Raises:
        DataError: the file cannot be read any more.
    """
    with no_header_text():
        try:
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        except Exception as error:  # noqa: BLE001 - pydicom raises what it likes, with header text in it
            raise DataError("the header cannot be read", path=path, found=kind_of(error)) from None
        return Patient(*(text(dataset, name) for name in TAGS))


def patient_pseudonym(path: Path, key: bytes) -> str:
    """Return the pseudonym of the patient of a file; see `Patient`.

    Raises:
        DataError: the file cannot be read any more.
    """
    return read_patient(path).pseudonym(key)
