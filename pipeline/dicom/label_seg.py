"""Masks of a DICOM SEG on the grid of a series (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import decode_frame
from pipeline.dicom.frames import FrameHeader, frames_of
from pipeline.dicom.model import Series
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Mask = NDArray[np.bool_]
OFF_GRID_VOXELS = 0.25  # a series itself may lie so far off its own lattice
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def segments_of(dataset: Dataset) -> dict[int, str]:
    """Segment number to label; a label that is there twice is followed by its number."""
    labels = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in dataset.SegmentSequence}
    labels.pop(0, None)  # background of a labelmap
    seen = list(labels.values())
    return {
        number: label if seen.count(label) == 1 else f"{label} ({number})" for number, label in labels.items()
    }


def seg_masks(
    dataset: Dataset, transfer_syntax: str, series: Series, names: Collection[str] | None
) -> dict[str, Mask]:
    """Masks (C, R, S) by segment label; of a FRACTIONAL segmentation where at least half of the maximum is reached.

    Raises:
        DataError: a frame that is not on the series' grid.
    """
    segments = {
        number: label for number, label in segments_of(dataset).items() if names is None or label in names
    }
    masks = {label: np.zeros(_shape(series), bool) for label in segments.values()}
    kind = dataset.SegmentationType
    half = int(dataset.get("MaximumFractionalValue") or 1) / 2
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for frame in frames_of(dataset):
        own = dataset.PerFrameFunctionalGroupsSequence[frame.number]
        number = None if kind == "LABELMAP" else _segment_number([own, *shared])
        if number is not None and number not in segments:
            continue
        values: NDArray[Any] = decode_frame(dataset, transfer_syntax, frame.number)
        found = np.unique(values) if number is None else (number,)
        for each in found:
            if int(each) in segments:
                chosen = (
                    values == each
                    if number is None
                    else values >= half
                    if kind == "FRACTIONAL"
                    else values > 0
                )
                _put(masks[segments[int(each)]], chosen, frame, series)
    return masks


def _segment_number(groups: list[Dataset]) -> int:
    for group in groups:
        for item in group.get("SegmentIdentificationSequence") or []:
            return int(item.ReferencedSegmentNumber)
    raise DataError("a frame of the SEG names no segment")


def _shape(series: Series) -> tuple[int, int, int]:
    if series.shape is None or series.affine_ras is None:
        raise DataError("the series is no volume that could have labels", case_id=series.case_id)
    return series.shape


def _put(mask: Mask, chosen: NDArray[Any], frame: FrameHeader, series: Series) -> None:
    """Set the voxels of the series where a frame's pixels are."""
    rows, columns = np.nonzero(chosen)
    if not len(rows):
        return
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise DataError("a frame of the SEG says not where it lies", case_id=series.case_id)
    place = np.eye(4)[:, :3]
    place[:3, 0] = np.multiply(frame.orientation[:3], frame.spacing[1])
    place[:3, 1] = np.multiply(frame.orientation[3:], frame.spacing[0])
    place[:3, 2], place[3, 2] = frame.position, 1
    to_index = np.linalg.inv(RAS_TO_LPS @ series.affine_ras) @ place
    index = to_index[:3] @ np.stack([columns, rows, np.ones_like(rows)])
    nearest = np.rint(index).astype(np.intp)
    off = float(np.abs(index - nearest).max())
    if off > OFF_GRID_VOXELS or not _is_permutation(to_index[:3, :2]):
        raise DataError(
            "the SEG is not on the grid of the series", case_id=series.case_id,
            found=f"pixels up to {off:.2f} voxels off it", expected=f"at most {OFF_GRID_VOXELS}",
            hint="resample it to the series with the tool that made it",
        )  # fmt: skip
    if (np.minimum(nearest.T, np.array(mask.shape) - 1 - nearest.T) < 0).any():
        raise DataError(
            "the SEG has labels outside of the series", case_id=series.case_id,
            hint="find the slices that are missing, or the series that it belongs to",
        )  # fmt: skip
    mask[tuple(nearest)] = True


def _is_permutation(axes: NDArray[np.float64]) -> bool:
    """Whether two steps on the frame are each one step along another axis of the series."""
    steps = np.abs(np.rint(axes))
    return bool((steps.sum(axis=0) == 1).all() and steps.sum(axis=1).max() == 1)
