"""Labels that came as DICOM, SEG or RTSTRUCT, on the grid of their series.

Names of segments and regions are free text that somebody typed: they are returned to the caller, and never logged,
shown in errors or written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.dicom.label_contours import contour_masks, regions_of
from pipeline.dicom.label_seg import Mask, seg_masks, segments_of
from pipeline.dicom.model import PassedOver, Series
from pipeline.dicom.privacy import kind_of, no_header_text
from pipeline.dicom.references import referenced_instances
from pipeline.errors import DataError, SegpipeError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileDataset

Kind = Literal["SEG", "RTSTRUCT"]
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # the latter a labelmap
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
LABEL_CLASSES = ("Segmentation Storage", "Label Map Segmentation Storage", "RT Structure Set Storage")


@dataclass(frozen=True)
class LabelFile:
    """What a SEG or an RTSTRUCT is about.

    Attributes:
        path: the file.
        kind: SEG or RTSTRUCT.
        names: of its segments or regions; free text.
        series_uid: SeriesInstanceUID that it refers to; empty where it names none.
        frame_of_reference_uid: in which its positions are; empty where it names none.
        instances: SOP instance UIDs of the images that it refers to.
    """

    path: Path
    kind: Kind
    names: tuple[str, ...]
    series_uid: str
    frame_of_reference_uid: str
    instances: frozenset[str] = frozenset()


def may_hold_labels(file: PassedOver) -> bool:
    """Whether a scan passed over a file because it is a SEG or an RTSTRUCT."""
    return file.file_class == "non_image" and file.detail in LABEL_CLASSES


def open_labels(path: str | Path) -> LabelFile:
    """Read what labels there are, without their voxels.

    Raises:
        DataError: it is neither a SEG nor an RTSTRUCT, or cannot be read.
    """
    path = Path(path)
    with no_header_text():
        return _described(path, _read(path, pixels=False))


def read_labels(path: str | Path, series: Series, names: Collection[str] | None = None) -> dict[str, Mask]:
    """Masks on the grid of a loadable series.

    Args:
        path: SEG (binary, fractional: at least half of the maximum, labelmap) or RTSTRUCT.
        series: that the labels belong to.
        names: only these.

    Returns:
        Masks (C, R, S) by name.

    Raises:
        DataError: another frame of reference, labels that are not on the grid, or a file that cannot be read.
    """
    path = Path(path)
    with no_header_text():
        dataset = _read(path, pixels=True)
        about = _described(path, dataset)
        _require_same_frame(about, series)
        try:
            if about.kind == "RTSTRUCT":
                return contour_masks(dataset, series, names)
            return seg_masks(dataset, str(dataset.file_meta.TransferSyntaxUID), series, names)
        except SegpipeError as error:
            error.path = str(path)
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises what it likes, with header text in it
            raise _unreadable(path, kind_of(error)) from None


def read_seg(path: str | Path, series: Series) -> dict[str, Mask]:
    """`read_labels` of a SEG."""
    return read_labels(path, series)


def read_rtstruct(path: str | Path, series: Series) -> dict[str, Mask]:
    """`read_labels` of an RTSTRUCT."""
    return read_labels(path, series)


def _read(path: Path, pixels: bool) -> FileDataset:
    import pydicom

    try:
        return pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
    except Exception as error:  # noqa: BLE001 - as above
        raise _unreadable(path, kind_of(error)) from None


def _described(path: Path, dataset: Dataset) -> LabelFile:
    sop_class = str(dataset.get("SOPClassUID") or "")
    try:
        if sop_class in SEGMENTATIONS:
            series_uid = next(
                (str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or []), ""
            )
            place = str(dataset.get("FrameOfReferenceUID") or "")
            names = tuple(segments_of(dataset).values())
            return LabelFile(path, "SEG", names, series_uid, place, referenced_instances(dataset))
        if sop_class == STRUCTURE_SET:
            series_uid, place = _reference(dataset)
            names = tuple(regions_of(dataset).values())
            return LabelFile(path, "RTSTRUCT", names, series_uid, place, referenced_instances(dataset))
    except Exception as error:  # noqa: BLE001 - as above
        raise _unreadable(path, kind_of(error)) from None
    raise DataError("neither a DICOM SEG nor an RTSTRUCT", path=path)


def _reference(dataset: Dataset) -> tuple[str, str]:
    """Series and frame of reference of an RTSTRUCT."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                return str(series.SeriesInstanceUID), str(frame.get("FrameOfReferenceUID") or "")
    for region in dataset.get("StructureSetROISequence") or []:
        return "", str(region.get("ReferencedFrameOfReferenceUID") or "")
    return "", ""


def _require_same_frame(about: LabelFile, series: Series) -> None:
    ours, theirs = series.frame_of_reference_uid, about.frame_of_reference_uid
    if ours and theirs:
        same = ours == theirs
    else:
        same = about.series_uid == series.series_uid
    if not same:
        raise DataError(
            "the labels are of another frame of reference than the series", path=about.path, case_id=series.case_id,
            hint="choose the series that they were drawn on",
        )  # fmt: skip


def _unreadable(path: Path, found: str) -> DataError:
    return DataError(
        "the labels cannot be read", path=path, found=found, expected="a complete DICOM SEG or RTSTRUCT",
        hint="export it again from its source",
    )  # fmt: skip
