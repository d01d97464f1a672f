"""Nothing that a header says about a person reaches a log, a warning or an error.

pydicom and highdicom put values into their warnings (``Invalid value for VR DA: '<value>'``, ``The string "<name>" is
unlikely to represent the intended person name``) and into their exceptions. Whatever reads or writes a header does so
within `no_header_text`, and speaks of an exception by `kind_of` alone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    """What kind of error it was, without its words, which may quote a header."""
    return type(error).__name__
