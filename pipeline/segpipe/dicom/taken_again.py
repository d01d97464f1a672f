"""A case that was predicted or imported, found again in its files: as what it was taken then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segpipe.dicom.captures import admitted
from segpipe.dicom.model import Series
from segpipe.dicom.registration import RegistrationObject, find_registration, open_registrations
from segpipe.dicom.repair import REPAIRS
from segpipe.dicom.scanning import scan


def series_as_taken(files: Sequence[Path]) -> list[Series]:
    """Return the series of a case's files, the first channel first.

    Where the files are a case at all, somebody asked for what takes it: a Secondary Capture is loaded, a series that
    needs it is resampled to a regular grid, and one in another frame of reference than the first has its
    `Series.registration` where a registration object is among the files. What is refused all the same stays so.

    Args:
        files: those of the case, in the order of `Series.all_files`.
    """
    tree = scan(list(files))
    captures = [series.case_id for series in tree.series if series.is_capture]
    place = {path.resolve(): index for index, path in enumerate(files)}
    found = sorted(
        admitted(tree.series, tuple(REPAIRS), captures),
        key=lambda series: min(place.get(path.resolve(), len(place)) for path in series.files),
    )
    objects = open_registrations(tree.passed_over)
    return [_moved(series, found[0], objects) for series in found]


def _moved(series: Series, first: Series, objects: Sequence[RegistrationObject]) -> Series:
    if series is first or series.frame_of_reference_uid == first.frame_of_reference_uid:
        return series
    return replace(series, registration=find_registration(objects, series, first)[0])
