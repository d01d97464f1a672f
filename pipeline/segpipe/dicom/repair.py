"""Resample a sheared or unevenly spaced stack of slices to a regular grid, on request.

Every slice is taken where it lies (its own position): linear between pixels, then linear between the two slices around
a plane, at the same place in mm. Nothing is extrapolated: what no slice covers is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.dicom.geometry import LPS_TO_RAS, NOTE_PIXELS, Limits
from segpipe.dicom.model import Reason, Series, Volume
from segpipe.errors import DataError, UsageError

REPAIRS: dict[str, tuple[Reason, ...]] = {"tilt": ("gantry_tilt",), "spacing": ("gap", "variable_spacing")}
SAME_PLACE = 1e-3  # parts of a pixel or of a spacing that are rounding, not worth to blur a slice for


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


def can_repair(series: Series, repairs: Sequence[str]) -> bool:
    """Return whether one of these repairs is for what the series is refused for."""
    return series.state == "refused" and any(series.reason in REPAIRS[name] for name in repairs)


def refusal(series: Series) -> DataError:
    """Return the error of a series that is not loaded."""
    return DataError(
        f"the series is refused: {series.reason}",
        case_id=series.case_id,
        found=series.detail or None,
        hint="`segpipe scan` says more",
    )


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

    origin: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: tuple[float, float]
    distances: NDArray[np.float64]
    shifts: NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """How a refused series becomes a volume: its slices, and which of the `REPAIRS` they need."""

    series: Series
    stack: _Stack
    repairs: tuple[str, ...]

    def apply(self, array: NDArray[np.generic], notes: tuple[str, ...]) -> Volume:
        """Resample the frames of the series.

        Args:
            array: (C, R, S) their values.
            notes: on them.

        Returns:
            float32; slices at the median distance, matrix as large as all slices together, filled with the smallest
            value of the scan where there is none.
        """
        stack = self.stack
        depth = stack.distances[-1]
        planes = round(depth / np.median(np.diff(stack.distances))) + 1
        step = float(depth / (planes - 1))
        low = np.floor(stack.shifts.min(axis=0) + SAME_PLACE)
        size = np.ceil(stack.shifts.max(axis=0) - SAME_PLACE) - low + array.shape[:2]
        fill = float(array.min())
        values = _resample(array, stack, low, (int(size[0]), int(size[1]), planes))
        np.nan_to_num(values, copy=False, nan=fill)
        affine = np.eye(4)
        affine[:3, :3] = stack.axes * (*stack.spacing, step)
        affine[:3, 3] = stack.origin + affine[:3, :2] @ low
        words = f"repaired: {', '.join(self.repairs)}; resampled linearly to slices {step:.4g} mm apart, "
        note = f"{words}{fill:g} where no slice is"
        return Volume(self.series, values, LPS_TO_RAS @ affine, (note, *notes), self.repairs)


def plan_resampling(series: Series, repairs: Sequence[str]) -> Resampling:
    """Say how a series that is refused for one of the reasons of `REPAIRS` is resampled; no voxel is read.

    Raises:
        DataError: the series is refused for another reason, or has a second fault that was not to be repaired.
    """
    if not can_repair(series, repairs):
        raise refusal(series)
    stack = _stack_of(series)
    faults = _faults(series, stack)
    for name in sorted(faults - set(repairs)):
        raise DataError(
            f"the series is refused: {series.reason}, and its slices need another repair too",
            case_id=series.case_id,
            hint=f"give --repair {name} as well",
        )
    return Resampling(series, stack, tuple(name for name in REPAIRS if name in faults))


def _stack_of(series: Series) -> _Stack:
    first = series.frames[0]
    along_row, along_column = np.reshape(first.orientation, (2, 3)).astype(np.float64)
    axes = np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1)
    spacing = (first.pixel_spacing_mm[1], first.pixel_spacing_mm[0])
    positions = np.array([frame.position_mm for frame in series.frames], dtype=np.float64)
    moved = (positions - positions[0]) @ axes
    return _Stack(positions[0], axes, spacing, moved[:, 2], moved[:, :2] / spacing)


def _faults(series: Series, stack: _Stack) -> set[str]:
    """Return which repairs the stack needs, by the tolerances within which a series is loaded.

    Raises:
        DataError: slices at one place, or shifted otherwise than along a line.
    """
    gaps = np.diff(stack.distances)
    pixel = min(stack.spacing)
    limits = Limits.of(pixel, float(np.median(gaps)))
    slope = stack.shifts[-1] / stack.distances[-1] if stack.distances[-1] else np.zeros(2)
    off_line = float(np.abs(stack.shifts - stack.distances[:, None] * slope).max()) * pixel
    if gaps.min() <= 0 or off_line > 2 * limits.in_plane:
        raise DataError(
            "the slices cannot be resampled",
            case_id=series.case_id,
            found="two at one place" if gaps.min() <= 0 else "slices shifted within their plane",
            expected="slices one behind the other, along a straight line",
        )
    faults = {name for name, reasons in REPAIRS.items() if series.reason in reasons}
    if np.abs(stack.shifts[-1]).max() > 2 * NOTE_PIXELS:
        faults.add("tilt")
    even = np.linspace(0, stack.distances[-1], len(stack.distances))
    if np.abs(stack.distances - even).max() > 2 * limits.along_normal:
        faults.add("spacing")
    return faults


def _resample(
    array: NDArray[np.generic], stack: _Stack, low: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return values on a regular grid from the first slice to the last; NaN where no slice covers."""
    from scipy.ndimage import affine_transform

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
