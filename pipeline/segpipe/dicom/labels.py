"""Read labels that came as DICOM SEG or RTSTRUCT: what they refer to, and their masks on the grid of a series.

Names of segments and regions are free text that somebody typed: they are returned to the caller, and never logged,
shown in errors or written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset

from segpipe.dicom.codecs import decode_frame
from segpipe.dicom.frames import FrameHeader, frames_of
from segpipe.dicom.geometry import LPS_TO_RAS
from segpipe.dicom.model import Series
from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.dicom.repair import ScannedSlices
from segpipe.errors import DataError, SegpipeError

Kind = Literal["SEG", "RTSTRUCT"]
Points = NDArray[np.float64]
Mask = NDArray[np.bool_]
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # the latter a labelmap
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OFF_SLICE = 0.25  # of the distance between slices
OFF_GRID_VOXELS = 0.25  # a series itself may lie so far off its own lattice
REFERENCE_SEQUENCES = """
    ReferencedSeriesSequence StudiesContainingOtherReferencedInstancesSequence ReferencedInstanceSequence
    ReferencedFrameOfReferenceSequence RTReferencedStudySequence RTReferencedSeriesSequence ROIContourSequence
    ContourSequence ContourImageSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    DerivationImageSequence SourceImageSequence
"""


@dataclass(frozen=True)
class LabelFile:
    """What a SEG or an RTSTRUCT labels.

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


def open_labels(path: str | Path) -> LabelFile:
    """Read what labels there are, without their voxels.

    Raises:
        DataError: it is neither a SEG nor an RTSTRUCT, or cannot be read.
    """
    path = Path(path)
    with no_header_text():
        return _described(path, _read(path, pixels=False))


def read_labels(path: str | Path, series: Series, names: Collection[str] | None = None) -> dict[str, Mask]:
    """Read masks on the grid of a loadable series; of a repaired one they are resampled as its slices are.

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
        labels = _described(path, dataset)
        _require_same_frame(labels, series)
        try:
            read = _contour_masks if labels.kind == "RTSTRUCT" else _seg_masks
            if not series.repaired:
                return read(dataset, _grid(series), names)
            slices = ScannedSlices.of(series)
            masks = read(dataset, _Grid(series.case_id, slices.shape, slices.index), names)
            return {name: slices.on_grid(mask) for name, mask in masks.items()}
        except SegpipeError as error:
            error.path = str(path)
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises what it likes, with header text in it
            raise _unreadable(path, kind_of(error)) from None


class _Grid(NamedTuple):
    """What labels are put on: its size, and column, row and slice (N, 3) of places (N, 3) in LPS mm."""

    case_id: str
    shape: tuple[int, int, int]
    locate: Callable[[Points], Points]


def _grid(series: Series) -> _Grid:
    if series.affine_ras is None or series.shape is None:
        raise DataError("the series is no volume that could have labels", case_id=series.case_id)
    to_index = np.linalg.inv(LPS_TO_RAS @ series.affine_ras)
    return _Grid(series.case_id, series.shape, lambda places: places @ to_index[:3, :3].T + to_index[:3, 3])


def _read(path: Path, pixels: bool) -> FileDataset:
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
            names = tuple(_segments_of(dataset).values())
            return LabelFile(path, "SEG", names, series_uid, place, _referenced_instances(dataset))
        if sop_class == STRUCTURE_SET:
            series_uid, place = _reference(dataset)
            names = tuple(_regions_of(dataset).values())
            return LabelFile(path, "RTSTRUCT", names, series_uid, place, _referenced_instances(dataset))
    except Exception as error:  # noqa: BLE001 - as above
        raise _unreadable(path, kind_of(error)) from None
    raise DataError("neither a DICOM SEG nor an RTSTRUCT", path=path)


def _reference(dataset: Dataset) -> tuple[str, str]:
    """Return the series and the frame of reference of an RTSTRUCT."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                return str(series.SeriesInstanceUID), str(frame.get("FrameOfReferenceUID") or "")
    for region in dataset.get("StructureSetROISequence") or []:
        return "", str(region.get("ReferencedFrameOfReferenceUID") or "")
    return "", ""


def _require_same_frame(labels: LabelFile, series: Series) -> None:
    ours, theirs = series.frame_of_reference_uid, labels.frame_of_reference_uid
    if ours and theirs:
        same = ours == theirs
    else:
        same = bool(series.series_uid) and labels.series_uid == series.series_uid
    if not same:
        raise DataError(
            "the labels are of another frame of reference than the series",
            path=labels.path,
            case_id=series.case_id,
            hint="choose the series that they were drawn on",
        )


def _unreadable(path: Path, found: str) -> DataError:
    return DataError(
        "the labels cannot be read",
        path=path,
        found=found,
        expected="a complete DICOM SEG or RTSTRUCT",
        hint="export it again from its source",
    )


def _referenced_instances(dataset: Dataset) -> frozenset[str]:
    """Return SOP instance UIDs of the images that labels refer to (PS3.3 C.12.4, C.7.6.16, C.8.8.5)."""
    return frozenset(_references(dataset))


def _references(dataset: Dataset) -> Iterator[str]:
    uid = dataset.get("ReferencedSOPInstanceUID")
    if uid:
        yield str(uid)
    for keyword in REFERENCE_SEQUENCES.split():
        for item in dataset.get(keyword) or []:
            yield from _references(item)


def _segments_of(dataset: Dataset) -> dict[int, str]:
    """Return segment number to label; the number follows a label that is there twice."""
    labels = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in dataset.SegmentSequence}
    labels.pop(0, None)  # background of a labelmap
    seen = list(labels.values())
    return {number: label if seen.count(label) == 1 else f"{label} ({number})" for number, label in labels.items()}


def _seg_masks(dataset: FileDataset, grid: _Grid, names: Collection[str] | None) -> dict[str, Mask]:
    """Put the segments of a SEG (PS3.3 A.51, C.8.20) on a grid.

    Raises:
        DataError: a frame that is not on the grid.
    """
    segments = {number: label for number, label in _segments_of(dataset).items() if names is None or label in names}
    masks = {label: np.zeros(grid.shape, bool) for label in segments.values()}
    kind, transfer_syntax = dataset.SegmentationType, str(dataset.file_meta.TransferSyntaxUID)
    half = int(dataset.get("MaximumFractionalValue") or 1) / 2
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for frame in frames_of(dataset):
        own = dataset.PerFrameFunctionalGroupsSequence[frame.number]
        number = None if kind == "LABELMAP" else _segment_number([own, *shared])
        if number is not None and number not in segments:
            continue
        values: NDArray[Any] = decode_frame(dataset, transfer_syntax, frame.number)
        if number is None:
            chosen = {int(value): values == value for value in np.unique(values) if int(value) in segments}
        else:
            chosen = {number: values >= half if kind == "FRACTIONAL" else values > 0}
        for segment, pixels in chosen.items():
            _put(masks[segments[segment]], pixels, frame, grid)
    return masks


def _segment_number(groups: list[Dataset]) -> int:
    for group in groups:
        for item in group.get("SegmentIdentificationSequence") or []:
            return int(item.ReferencedSegmentNumber)
    raise DataError("a frame of the SEG names no segment")


def _put(mask: Mask, chosen: NDArray[Any], frame: FrameHeader, grid: _Grid) -> None:
    """Set the voxels of the grid where a frame's pixels are."""
    rows, columns = np.nonzero(chosen)
    if not len(rows):
        return
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise DataError("a frame of the SEG says not where it lies", case_id=grid.case_id)
    right, down = np.reshape(frame.orientation, (2, 3)) * np.reshape(frame.spacing[::-1], (2, 1))
    index = grid.locate(np.array(frame.position) + columns[:, None] * right + rows[:, None] * down)
    nearest = np.rint(index).astype(np.intp)
    off = float(np.abs(index - nearest).max())
    corner, beside, below = grid.locate(np.array(frame.position) + np.stack([0 * right, right, down]))
    if off > OFF_GRID_VOXELS or not _is_permutation(np.stack([beside - corner, below - corner], axis=1)):
        raise DataError(
            "the SEG is not on the grid of the series",
            case_id=grid.case_id,
            found=f"pixels up to {off:.2f} voxels off it",
            expected=f"at most {OFF_GRID_VOXELS}",
            hint="resample it to the series with the tool that made it",
        )
    if (np.minimum(nearest, np.array(mask.shape) - 1 - nearest) < 0).any():
        raise DataError(
            "the SEG has labels outside of the series",
            case_id=grid.case_id,
            hint="find the slices that are missing, or the series that it belongs to",
        )
    mask[tuple(nearest.T)] = True


def _is_permutation(axes: NDArray[np.float64]) -> bool:
    """Return whether two steps on the frame are each one step along another axis of the series."""
    steps = np.abs(np.rint(axes))
    return bool((steps.sum(axis=0) == 1).all() and steps.sum(axis=1).max() == 1)


def _regions_of(dataset: Dataset) -> dict[int, str]:
    """Return ROI number to name, of those with closed contours; the number follows a name that is there twice."""
    drawn = {int(item.ReferencedROINumber) for item in dataset.get("ROIContourSequence") or [] if _closed(item)}
    names = {
        int(item.ROINumber): str(item.get("ROIName") or "").strip()
        for item in dataset.get("StructureSetROISequence") or []
        if int(item.ROINumber) in drawn
    }
    seen = list(names.values())
    return {number: name if seen.count(name) == 1 else f"{name} ({number})" for number, name in names.items()}


def _contour_masks(dataset: Dataset, grid: _Grid, names: Collection[str] | None) -> dict[str, Mask]:
    """Fill an RTSTRUCT's closed planar contours (PS3.3 C.8.8.6) on a grid.

    Raises:
        DataError: a contour that lies between slices, across them or beside the series.
    """
    regions = {number: name for number, name in _regions_of(dataset).items() if names is None or name in names}
    masks = {}
    for item in dataset.get("ROIContourSequence") or []:
        name = regions.get(int(item.ReferencedROINumber))
        if name is None:
            continue
        by_slice: dict[int, list[Points]] = defaultdict(list)
        for contour in _closed(item):
            values = contour.ContourData
            if isinstance(values, bytes):  # of more than 64 kB, which an explicit VR writes as UN (PS3.5 6.2.2)
                values = values.decode("ascii").strip("\0 ").split("\\")
            points = grid.locate(np.reshape(np.array(values, dtype=np.float64), (-1, 3)))
            by_slice[_slice_of(points, grid)].append(points[:, :2])
        mask = np.zeros(grid.shape, bool)
        for number, polygons in by_slice.items():
            mask[:, :, number] = fill(polygons, (grid.shape[0], grid.shape[1]))
        masks[name] = mask
    return masks


def fill(polygons: Iterable[Points], shape: tuple[int, int]) -> Mask:
    """Find the pixels whose centre lies inside an odd number of polygons (even-odd rule).

    Args:
        polygons: (N, 2) corners in pixels, column then row; the last is joined to the first.
        shape: columns, rows.

    Returns:
        (columns, rows). A centre exactly on an edge belongs to the polygon on its right or below.
    """
    crossed = np.zeros((shape[0] + 1, shape[1]), bool)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, shape[1]).astype(np.intp)
        last = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, shape[1]).astype(np.intp)
        count = last - first
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        part = (row - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        column = start[edge, 0] + part * (end[edge, 0] - start[edge, 0])
        np.logical_xor.at(crossed, (np.clip(np.ceil(column), 0, shape[0]).astype(np.intp), row), True)
    return np.asarray(np.logical_xor.accumulate(crossed[:-1], axis=0))


def _closed(item: Dataset) -> list[Dataset]:
    contours = item.get("ContourSequence") or []
    return [contour for contour in contours if contour.get("ContourGeometricType") in CLOSED]


def _slice_of(points: Points, grid: _Grid) -> int:
    """Return the number of the slice that a contour lies in."""
    number = int(np.rint(points[:, 2].mean()))
    off = float(np.abs(points[:, 2] - number).max())
    if off > OFF_SLICE:
        raise DataError(
            "a contour does not lie in a slice of the series",
            case_id=grid.case_id,
            found=f"{off:.2f} of the distance between slices off it",
            expected=f"at most {OFF_SLICE}",
            hint="use the series that it was drawn on",
        )
    if not 0 <= number < grid.shape[2]:
        raise DataError(
            "a contour lies before the first or behind the last slice",
            case_id=grid.case_id,
            hint="find the slices that are missing, or the series that it was drawn on",
        )
    return number
