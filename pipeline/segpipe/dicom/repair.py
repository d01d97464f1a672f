"""Resample a sheared or unevenly spaced stack of slices to a regular grid, on request.

Every slice is taken where it lies (its own position): linear between pixels, then linear between the two slices around
a plane, at the same place in mm. Nothing is extrapolated: what no slice covers is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.dicom.geometry import LPS_TO_RAS, NOTE_PIXELS, Limits
from segpipe.dicom.model import Reason, Series, Volume
from segpipe.errors import DataError, UsageError

Array = NDArray[np.float64]
REPAIRS: dict[str, tuple[Reason, ...]] = {"tilt": ("gantry_tilt",), "spacing": ("gap", "variable_spacing")}
SAME_PLACE = 1e-3  # parts of a pixel or of a spacing that are rounding, not worth to blur a slice for
FAR = 1e3  # distances between slices; a place beyond the first or last slice is told by that


def check_repairs(repair: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of `REPAIRS` that are asked for, each once.

    Raises:
        UsageError: no such repair.
    """
    names = (repair,) if isinstance(repair, str) else tuple(repair or ())
    for name in names:
        if name not in REPAIRS:
            raise UsageError("no such repair", found=name, expected=" or ".join(REPAIRS))
    return tuple(dict.fromkeys(names))


def repaired(series: Series, repairs: Sequence[str], *, across_gaps: bool = False) -> Series:
    """Return a refused series as the volume that repairs make of it, without reading a voxel.

    Args:
        series: from a scan.
        repairs: of `REPAIRS`.
        across_gaps: also make up slices that are missing, which is for a look alone.

    Returns:
        The series on a regular grid, to which `segpipe.dicom.load_series` resamples it; or the series as it is, where
        it needs no repair, or the repairs are not for it or not enough.
    """
    needed = _needed(series)
    if not needed or not set(needed) <= set(repairs) or (series.reason == "gap" and not across_gaps):
        return series
    stack = _Stack.of(series)
    columns, rows, slices = stack.grid_shape(series)
    affine = LPS_TO_RAS @ stack.affine_lps
    edges = [float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0)]
    made_up = ("slices that are missing are made up",) if series.reason == "gap" else ()
    whole = replace(
        series,
        state="loaded",
        reason=None,
        detail="",
        shape=(columns, rows, slices),
        spacing_mm=(edges[0], edges[1], edges[2]),
        affine_ras=affine,
        repaired=needed,
    )
    return replace(whole, notes=tuple(dict.fromkeys([*whole.caveats, *made_up, *series.notes])))


def advice(series: Series) -> str:
    """Return what to do about slices that lie on no regular grid; empty where something else is wrong with them."""
    if not any(series.reason in reasons for reasons in REPAIRS.values()):
        return ""
    options = " ".join(f"--repair {name}" for name in _needed(series))
    if series.reason == "gap":
        look = f" For a look alone, segpipe convert {options} makes up what is missing." if options else ""
        return f"Find the missing files, or export the series again.{look}"
    if not options:
        return "Slices are shifted within their plane as well, so it cannot be resampled: export the series again."
    return f"Resample it to a regular grid with {options}, which segpipe convert, import and predict have."


def refusal(series: Series) -> DataError:
    """Return the error of a series that is not loaded."""
    return DataError(f"the series is refused: {series.reason}", case_id=series.case_id, found=series.detail or None)


def resample(series: Series, array: NDArray[np.generic], notes: tuple[str, ...]) -> Volume:
    """Return the volume of a repaired series.

    Args:
        series: `repaired`.
        array: (C, R, S) the values of its frames.
        notes: on them.

    Returns:
        float32; slices at the median distance, matrix as large as all slices together, filled with the smallest
        value of the scan where there is none.
    """
    stack, fill = _Stack.of(series), float(array.min())
    values = _resample(array, stack)
    if np.isnan(values).any():
        np.nan_to_num(values, copy=False, nan=fill)
        notes = (*notes, f"voxels that no slice covers are {fill:g}")
    return Volume(series, values, LPS_TO_RAS @ stack.affine_lps, notes)


@dataclass(frozen=True)
class ScannedSlices:
    """The slices of a repaired series as they were scanned: labels are drawn on these, then resampled as they are.

    Attributes:
        shape: columns, rows, slices.
    """

    shape: tuple[int, int, int]
    _stack: _Stack

    @classmethod
    def of(cls, series: Series) -> ScannedSlices:
        """Return the slices of a repaired series."""
        stack, shape = _Stack.of(series), series.shape or (0, 0, 0)
        columns, rows = np.array(shape[:2]) - stack.margin
        return cls((int(columns), int(rows), len(series.frames)), stack)

    def index(self, places: Array) -> Array:
        """Return (N, 3) column, row and slice of places (N, 3) in LPS mm."""
        stack = self._stack
        moved = (places - stack.origin) @ stack.axes
        beyond = FAR * stack.step
        ends = [-beyond, *stack.distances, stack.distances[-1] + beyond]
        numbers = np.array([-FAR, *range(len(stack.distances)), len(stack.distances) - 1 + FAR])
        shifts = [np.interp(moved[:, 2], stack.distances, shift) for shift in stack.shifts.T]
        within = moved[:, :2] / stack.spacing - np.stack(shifts, axis=1)
        return np.column_stack([within, np.interp(moved[:, 2], ends, numbers)])

    def on_grid(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask of these slices on the grid of the series: where at least half of a voxel is in it."""
        return np.asarray(_resample(mask, self._stack) >= 0.5)


@dataclass(frozen=True)
class _Stack:
    """Where slices lie: distances along the normal in mm, and shifts in pixels within the plane.

    Attributes:
        origin: centre of the first pixel of the first slice, LPS mm.
        axes: (3, 3), columns: direction of a row, of a column, and the normal.
        spacing: edges of a pixel along a row and along a column, mm.
        distances: (S,) along the normal, from the first slice, rising.
        shifts: (S, 2) of the slice's first pixel, along row and column, pixels.
    """

    origin: Array
    axes: Array
    spacing: tuple[float, float]
    distances: Array
    shifts: Array

    @classmethod
    def of(cls, series: Series) -> _Stack:
        first = series.frames[0]
        along_row, along_column = np.reshape(first.orientation, (2, 3)).astype(np.float64)
        axes = np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1)
        spacing = (first.pixel_spacing_mm[1], first.pixel_spacing_mm[0])
        positions = np.array([frame.position_mm for frame in series.frames], dtype=np.float64)
        moved = (positions - positions[0]) @ axes
        return cls(positions[0], axes, spacing, moved[:, 2], moved[:, :2] / spacing)

    @property
    def planes(self) -> int:
        """Number of slices of the regular grid."""
        return round(self.distances[-1] / np.median(np.diff(self.distances))) + 1

    @property
    def step(self) -> float:
        """Distance between them, mm."""
        return float(self.distances[-1] / (self.planes - 1))

    @property
    def low(self) -> Array:
        """(2,): where the regular grid begins, in pixels from the first slice's first."""
        return np.asarray(np.floor(self.shifts.min(axis=0) + SAME_PLACE))

    @property
    def margin(self) -> NDArray[np.intp]:
        """(2,): by how many pixels the regular grid is larger than a slice."""
        return np.asarray(np.ceil(self.shifts.max(axis=0) - SAME_PLACE) - self.low).astype(np.intp)

    @property
    def affine_lps(self) -> Array:
        """(4, 4) of the regular grid."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * (*self.spacing, self.step)
        affine[:3, 3] = self.origin + affine[:3, :2] @ self.low
        return affine

    def grid_shape(self, series: Series) -> tuple[int, int, int]:
        """Return the shape of the regular grid of a refused series."""
        columns, rows = np.array((series.shape or (0, 0, 0))[:2]) + self.margin
        return int(columns), int(rows), self.planes


def _needed(series: Series) -> tuple[str, ...]:
    """Return which repairs make a volume of a refused series, by the tolerances of loaded ones; none if none can."""
    asked = {name for name, reasons in REPAIRS.items() if series.reason in reasons}
    if not asked or len(series.frames) < 2:
        return ()
    stack = _Stack.of(series)
    gaps = np.diff(stack.distances)
    if gaps.min() <= 0:
        return ()
    pixel = min(stack.spacing)
    limits = Limits.of(pixel, float(np.median(gaps)))
    slope = stack.shifts[-1] / stack.distances[-1]
    off_line = float(np.abs(stack.shifts - stack.distances[:, None] * slope).max()) * pixel
    if off_line > 2 * limits.in_plane:
        return ()
    if np.abs(stack.shifts[-1]).max() > 2 * NOTE_PIXELS:
        asked.add("tilt")
    even = np.linspace(0, stack.distances[-1], len(stack.distances))
    if np.abs(stack.distances - even).max() > 2 * limits.along_normal:
        asked.add("spacing")
    return tuple(name for name in REPAIRS if name in asked)


def _resample(array: NDArray[np.generic], stack: _Stack) -> NDArray[np.float32]:
    """Return values on a regular grid from the first slice to the last; NaN where no slice covers."""
    from scipy.ndimage import affine_transform

    low, (columns, rows) = stack.low, array.shape[:2] + stack.margin
    shape = (int(columns), int(rows), stack.planes)
    values = np.empty(shape[::-1], np.float32).transpose(2, 1, 0)
    moved: dict[int, NDArray[np.float32]] = {}

    def slice_at(index: int) -> NDArray[np.float32]:
        if index not in moved:
            for old in [key for key in moved if key < index - 1]:
                del moved[old]
            offset = low - stack.shifts[index]
            offset = np.where(np.abs(offset - np.rint(offset)) < SAME_PLACE, np.rint(offset), offset)
            source = array[:, :, index].astype(np.float32)
            moved[index] = affine_transform(
                source, np.ones(2), offset, shape[:2], order=1, mode="constant", cval=np.nan
            )
        return moved[index]

    for plane, place in enumerate(np.linspace(0, stack.distances[-1], shape[2])):
        below = int(np.clip(np.searchsorted(stack.distances, place, "right") - 1, 0, len(stack.distances) - 2))
        part = (place - stack.distances[below]) / (stack.distances[below + 1] - stack.distances[below])
        if part < SAME_PLACE:
            values[:, :, plane] = slice_at(below)
        elif part > 1 - SAME_PLACE:
            values[:, :, plane] = slice_at(below + 1)
        else:
            values[:, :, plane] = (1 - part) * slice_at(below) + part * slice_at(below + 1)
    return values
