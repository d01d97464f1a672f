"""Judged series become volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.dicom.model import Series, Volume
from pipeline.dicom.reading import read_frames
from pipeline.dicom.repair import as_repairs, can_repair, refusal, repaired
from pipeline.dicom.series import scan
from pipeline.errors import DataError


def load_series(series: Series, *, repair: str | Sequence[str] | None = None) -> Volume:
    """Read the voxels of a series.

    Args:
        series: from a scan.
        repair: ``tilt``, ``spacing`` or both: a series that is refused for that is resampled to a regular grid.

    Returns:
        Values after rescale, (C, R, S), int16 where every one of them is exact in it, else float32. Padding
        (PixelPaddingValue to PixelPaddingRangeLimit) has the smallest value that was measured, or stays 0 where no
        value is below 0.

    Raises:
        UsageError: no such repair.
        DataError: the series is refused (and not repaired), or a frame is cut short or cannot be decoded.
    """
    if series.state == "loaded" and series.affine_ras is not None:
        array, notes = read_frames(series)
        return Volume(series, array, series.affine_ras, notes)
    repairs = as_repairs(repair)
    if can_repair(series, repairs):
        return repaired(series, repairs)
    raise refusal(series)


def load(root: str | Path, *, repair: str | Sequence[str] | None = None) -> list[Volume]:
    """Read every series below a folder that makes a volume.

    A series that is refused is not in the list: `pipeline.dicom.scan` names each with its reason, and `load_series`
    reads its series one by one.

    Raises:
        UsageError: no such folder, no such repair.
        DataError: there is no volume at all, or a frame is cut short or cannot be decoded.
    """
    repairs = as_repairs(repair)
    found = scan(Path(root)).series
    chosen = [series for series in found if series.state == "loaded" or can_repair(series, repairs)]
    if not chosen:
        refused = "; ".join(f"{series.case_id}: {series.reason}" for series in found)
        raise DataError(
            "no series can be loaded", path=root, found=refused or "no image series",
            expected="a DICOM series that makes a volume", hint="`segpipe scan` says more",
        )  # fmt: skip
    return [load_series(series, repair=repairs) for series in chosen]
