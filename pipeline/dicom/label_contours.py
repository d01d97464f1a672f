"""Masks of an RTSTRUCT's closed planar contours on the grid of a series (PS3.3 C.8.8.5, C.8.8.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.model import Series
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OFF_SLICE = 0.25  # of the distance between slices


def regions_of(dataset: Dataset) -> dict[int, str]:
    """ROI number to name, of those with closed contours; a name that is there twice is followed by its number."""
    drawn = {
        int(item.ReferencedROINumber) for item in dataset.get("ROIContourSequence") or [] if _closed(item)
    }
    names = {
        int(item.ROINumber): str(item.get("ROIName") or "").strip()
        for item in dataset.get("StructureSetROISequence") or []
        if int(item.ROINumber) in drawn
    }
    seen = list(names.values())
    return {number: name if seen.count(name) == 1 else f"{name} ({number})" for number, name in names.items()}


def contour_masks(dataset: Dataset, series: Series, names: Collection[str] | None) -> dict[str, Mask]:
    """Masks (C, R, S) by ROI name: voxels whose centre is inside an odd number of the slice's contours.

    Raises:
        DataError: a contour that lies between slices, across them or beside the series.
    """
    if series.affine_ras is None or series.shape is None:
        raise DataError("the series is no volume that could have labels", case_id=series.case_id)
    regions = {number: name for number, name in regions_of(dataset).items() if names is None or name in names}
    to_index = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine_ras)
    masks = {}
    for item in dataset.get("ROIContourSequence") or []:
        name = regions.get(int(item.ReferencedROINumber))
        if name is None:
            continue
        by_slice: dict[int, list[Points]] = defaultdict(list)
        for contour in _closed(item):
            points = np.reshape(np.array(contour.ContourData, dtype=np.float64), (-1, 3))
            points = points @ to_index[:3, :3].T + to_index[:3, 3]
            by_slice[_slice_of(points, series)].append(points[:, :2])
        mask = np.zeros(series.shape, bool)
        for number, polygons in by_slice.items():
            mask[:, :, number] = fill(polygons, (series.shape[0], series.shape[1]))
        masks[name] = mask
    return masks


def fill(polygons: Iterable[Points], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies inside an odd number of polygons (even-odd rule, holes by a contour of their own).

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


def _slice_of(points: Points, series: Series) -> int:
    """Number of the slice that a contour lies in."""
    number = int(np.rint(points[:, 2].mean()))
    off = float(np.abs(points[:, 2] - number).max())
    if off > OFF_SLICE:
        raise DataError(
            "a contour does not lie in a slice of the series", case_id=series.case_id,
            found=f"{off:.2f} of the distance between slices off it", expected=f"at most {OFF_SLICE}",
            hint="use the series that it was drawn on",
        )  # fmt: skip
    if series.shape is not None and not 0 <= number < series.shape[2]:
        raise DataError(
            "a contour lies before the first or behind the last slice", case_id=series.case_id,
            hint="find the slices that are missing, or the series that it was drawn on",
        )  # fmt: skip
    return number
