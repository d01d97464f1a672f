"""Secondary Captures: images whose values may be those of a screen, with a window applied, and not of a scanner.

Some archives and workstations store whole series so, with position, orientation and pixel spacing of every slice. Such
a series is judged as any other and then refused, unless the user, who knows where it comes from, names it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from pydicom.uid import UID

from segpipe.dicom.headers import Header
from segpipe.dicom.model import PassedOver, Series
from segpipe.dicom.repair import repaired
from segpipe.errors import UsageError


def without_bare_captures(headers: Sequence[Header]) -> tuple[list[Header], list[PassedOver]]:
    """Return the headers but for Secondary Captures of series of which none says where it lies, and these."""
    placed: dict[str, bool] = defaultdict(bool)
    for header in headers:
        if header.is_capture:
            placed[header.series_uid] |= any(
                None not in (one.position, one.orientation, one.spacing) for one in header.frames
            )
    kept = [header for header in headers if not header.is_capture or placed[header.series_uid]]
    bare = [header for header in headers if header.is_capture and not placed[header.series_uid]]
    return kept, [PassedOver(header.path, "non_image", UID(header.sop_class_uid).name) for header in bare]


def offered(series: Series) -> Series:
    """Return a Secondary Capture that could be loaded as refused, with the option that takes it; others as they are."""
    if not series.is_capture or series.state != "loaded":
        return series
    detail = (
        f"it is a Secondary Capture, whose values may have been windowed. Where they are known to be the scanner's, "
        f"segpipe convert, import and predict take it with --secondary-capture {series.series_uid or series.case_id}."
    )
    return replace(series, state="refused", reason="secondary_capture", detail=detail)


def admitted(
    series: Sequence[Series], repairs: Sequence[str] = (), captures: Sequence[str] = (), *, across_gaps: bool = False
) -> list[Series]:
    """Return series as what a user asked for makes of them.

    Args:
        series: from a scan.
        repairs: as of `segpipe.dicom.repair.repaired`.
        captures: SeriesInstanceUIDs and case ids of Secondary Captures to take.
        across_gaps: as of `segpipe.dicom.repair.repaired`.

    Raises:
        UsageError: there is no such Secondary Capture.
    """
    for name in captures:
        if not any(one.is_capture and name in (one.series_uid, one.case_id) for one in series):
            raise UsageError(
                "no such Secondary Capture", found=name, hint="`segpipe scan` lists the series that are there"
            )
    return [_admitted(one, repairs, captures, across_gaps) for one in series]


def _admitted(series: Series, repairs: Sequence[str], captures: Sequence[str], across_gaps: bool) -> Series:
    if series.is_capture and series.state == "refused":
        if not {series.series_uid, series.case_id} & set(captures):
            return series
        if series.is_offered:
            return replace(series, state="loaded", reason=None, detail="")
    return repaired(series, repairs, across_gaps=across_gaps)
