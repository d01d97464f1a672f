"""Do slices lie on a regular grid? Judged at the corners of every slice, by what part of a voxel they are off.

The position of a pixel is the standard's (PS3.3 C.7.6.2.1.1): ImagePositionPatient, plus the column index times the
column spacing along a row, plus the row index times the row spacing along a column. Slices form a volume when
their corners lie on one lattice with slices at right angles to its axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.dicom.model import Reason

Array = NDArray[np.float64]

LOAD_MM = 0.05  # a corner may lie so far off the best lattice, as by positions of one decimal
LOAD_STEP = 0.01  # or this part of the distance between slices
LOAD_VOXEL = 0.1  # but neither counts beyond this part of a voxel's smallest edge
ROUNDING_MM = 1e-4  # which no header is finer than
NOTE_PIXELS = 0.2  # or, with a note, this part of a pixel: real oblique series are sheared by 0.07 degrees
NOTE_STEP = 0.1  # but along the normal not more than this part of the distance between slices
MOST_PIXELS, MOST_STEP = 0.5, 0.2  # of which LOAD_MM and LOAD_STEP, with a note, can be no more
SAME_PLACE_MM = 0.05
OTHER_SLICES = "Put the other slices of its series beside it; where it has none (a scout, a film), leave it out."
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # and back


@dataclass(frozen=True)
class Stack:
    """Slices of one size, in any order.

    Attributes:
        positions: (N, 3) ImagePositionPatient.
        orientations: (N, 6) ImageOrientationPatient.
        spacings: (N, 2) PixelSpacing, rows first.
        rows, columns: of every slice.
    """

    positions: Array
    orientations: Array
    spacings: Array
    rows: int
    columns: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def axes(self) -> Array:
        """(3, 3): unit directions of a row, of a column, and their normal."""
        mean = self.orientations.mean(axis=0)
        normal = np.cross(mean[:3], mean[3:])
        axes = np.stack([mean[:3], mean[3:], normal])
        return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))

    @property
    def heights(self) -> Array:
        """(N,) positions along the normal, mm."""
        return np.asarray(self.positions @ self.axes[2])

    def take(self, order: NDArray[np.intp]) -> Stack:
        """Return these slices in this order."""
        return Stack(self.positions[order], self.orientations[order], self.spacings[order], self.rows, self.columns)

    def corners(self) -> Array:
        """Return (N, 4, 3) the centres of the corner pixels, mm, LPS (PS3.3 equation C.7.6.2.1-1)."""
        right = self.orientations[:, :3] * self.spacings[:, 1:] * (self.columns - 1)
        down = self.orientations[:, 3:] * self.spacings[:, :1] * (self.rows - 1)
        start = self.positions
        return np.stack([start, start + right, start + down, start + right + down], axis=1)


@dataclass(frozen=True)
class Limits:
    """How far a corner may lie off the best lattice, mm.

    Attributes:
        unnoted: without a word.
        along_normal, in_plane: with a note. A missing slice puts one off by a third of the distance or more.
    """

    unnoted: float
    along_normal: float
    in_plane: float

    @classmethod
    def of(cls, pixel: float, step: float) -> Limits:
        """Return the limits for pixels of this edge and slices at this distance, mm."""
        usual = max(LOAD_MM, LOAD_STEP * step)
        unnoted = max(ROUNDING_MM, min(usual, LOAD_VOXEL * min(pixel, step)))
        return cls(
            unnoted,
            max(ROUNDING_MM, min(NOTE_PIXELS * pixel, NOTE_STEP * step), min(usual, MOST_STEP * step)),
            max(ROUNDING_MM, NOTE_PIXELS * pixel, min(usual, MOST_PIXELS * pixel)),
        )


@dataclass(frozen=True)
class Verdict:
    """What was found about a stack.

    Attributes:
        order: of the slices, rising along the normal.
        reason: why it is no volume; None where it is one.
        detail: what was found and expected, with the files' names.
        affine_lps: (4, 4) of (column, row, slice), where it is a volume.
        notes: what is worth knowing about a volume.
    """

    order: NDArray[np.intp]
    reason: Reason | None = None
    detail: str = ""
    affine_lps: Array | None = None
    notes: tuple[str, ...] = ()


def levels(heights: Array) -> NDArray[np.intp]:
    """Return (N,) the level along the normal that each slice is at, from 0.

    Slices within 0.05 mm, or a tenth of the widest step where that is less, share one.
    """
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    if not len(steps):
        return np.zeros(len(heights), dtype=np.intp)
    apart = min(SAME_PLACE_MM, NOTE_STEP * float(steps.max()))
    level = np.empty(len(heights), dtype=np.intp)
    level[order] = np.concatenate([[0], np.cumsum(steps > max(apart, ROUNDING_MM))])
    return level


def judge_geometry(stack: Stack, name: Callable[[int], str]) -> Verdict:
    """Find the best regular lattice and say whether the slices lie on it.

    Args:
        stack: slices of one matrix, in any order.
        name: of a slice by its index in ``stack``, as a person should read it.
    """
    order = np.argsort(stack.heights, kind="stable")
    if len(stack) < 2:
        return Verdict(order, "single_slice", f"{name(0)}: found 1 slice, expected 2 or more. {OTHER_SLICES}")
    slices = stack.take(order)

    def named(index: int) -> str:
        return name(int(order[index]))

    fit = _Fit.of(slices)
    step = float(fit.step @ slices.axes[2])
    limits = Limits.of(float(slices.spacings.min()), step)
    if fit.along_normal <= limits.along_normal and fit.in_plane_upright <= limits.in_plane:
        worst = max(fit.along_normal, fit.in_plane_upright)
        notes = [] if worst <= limits.unnoted else [f"slices lie up to {worst:.2g} mm off a regular grid"]
        if len(slices) == 2:
            notes.append("2 slices: nothing can show whether one between them is missing")
        return Verdict(order, affine_lps=fit.affine(slices), notes=tuple(notes))
    if fit.along_normal > limits.along_normal:
        reason, detail = _gap_or_variable(slices, named, limits.along_normal)
    else:
        reason, detail = _tilt_or_shift(slices, fit, named, limits.in_plane)
    return Verdict(order, reason, detail)


@dataclass(frozen=True)
class _Fit:
    """The lattice that fits sorted slices best in the sense of least squares, and how far the corners lie off it.

    Attributes:
        origin, step: (3,) of the lattice, which may be tilted.
        along_normal: largest distance along the normal, mm.
        in_plane: largest distance in the plane, mm.
        in_plane_upright: the same from the best lattice that is not tilted.
        rotated: part of ``in_plane`` that comes from slices turned against each other, mm.
    """

    origin: Array
    step: Array
    along_normal: float
    in_plane: float
    in_plane_upright: float
    rotated: float

    @classmethod
    def of(cls, slices: Stack) -> _Fit:
        count = np.arange(len(slices)) - (len(slices) - 1) / 2
        middle = slices.positions.mean(axis=0)
        step = count @ (slices.positions - middle) / (count @ count)
        row, column, normal = slices.axes
        corners = slices.corners()
        own = corners - slices.positions[:, None]
        rotated = own - own.mean(axis=0)
        off = slices.positions - middle - count[:, None] * step
        tilt = step - (step @ normal) * normal
        off_upright = off + count[:, None] * tilt
        plane = np.stack([row, column], axis=1)

        def largest(vectors: Array, onto: Array) -> float:
            return float(np.linalg.norm((vectors @ onto).reshape(*vectors.shape[:2], -1), axis=-1).max())

        off_lattice = off[:, None] + rotated
        return cls(
            origin=middle + count[0] * step,
            step=step,
            along_normal=largest(off_lattice, normal[:, None]),
            in_plane=largest(off_lattice, plane),
            in_plane_upright=largest(off_upright[:, None] + rotated, plane),
            rotated=float(np.linalg.norm(rotated, axis=-1).max()),
        )

    def affine(self, slices: Stack) -> Array:
        """Return (4, 4) index to LPS mm, with the header's own directions."""
        affine = np.eye(4)
        mean = slices.orientations.mean(axis=0)
        rows_mm, columns_mm = slices.spacings.mean(axis=0)
        affine[:3, 0] = mean[:3] * columns_mm
        affine[:3, 1] = mean[3:] * rows_mm
        affine[:3, 2] = self.step
        affine[:3, 3] = self.origin
        return affine


def _gap_or_variable(slices: Stack, name: Callable[[int], str], limit: float) -> tuple[Reason, str]:
    """Say what is wrong with slices at unequal distances: some are missing, or the distance varies."""
    steps = np.diff(slices.heights)
    rotated = _Fit.of(slices).rotated
    if rotated > limit:
        return "mixed_orientation", _rotation(slices, name, rotated)
    for base in (float(steps.min()), float(np.median(steps))):
        counts = np.rint(steps / base)
        holes = np.flatnonzero(counts > 1)
        if not len(holes) or counts.min() < 1 or _sparser(holes, len(steps)):
            continue
        base = float(slices.heights[-1] - slices.heights[0]) / counts.sum()
        places = np.concatenate([[0], np.cumsum(counts)]) * base
        off = slices.heights - slices.heights[0] - places
        if np.ptp(off) / 2 <= limit:
            first = int(holes[0])
            missing = int(counts.sum()) - len(steps)
            return "gap", (
                f"{name(first)} and {name(first + 1)} are {steps[first]:.3f} mm apart, the other slices "
                f"{base:.3f} mm: {missing} slice(s) missing in {len(holes)} place(s)."
            )
    usual = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - usual)))
    return "variable_spacing", (
        f"{name(worst)} and {name(worst + 1)} are {steps[worst]:.3f} mm apart, expected {usual:.3f} mm as between "
        f"most (found {steps.min():.3f} to {steps.max():.3f} mm)."
    )


def _sparser(holes: NDArray[np.intp], steps: int) -> bool:
    """Return whether wider steps are a part of the volume taken more sparsely, and not missing slices."""
    in_a_row = len(holes) >= 3 and int(holes[-1] - holes[0]) == len(holes) - 1
    return len(holes) > max(1, steps / 2) or (in_a_row and (holes[0] == 0 or holes[-1] == steps - 1))


def _tilt_or_shift(slices: Stack, fit: _Fit, name: Callable[[int], str], limit: float) -> tuple[Reason, str]:
    """Say what is wrong with slices at even distances that do not lie straight above each other."""
    row, column, normal = slices.axes
    if fit.in_plane <= limit:
        tilt = fit.step - (fit.step @ normal) * normal
        angle = math.degrees(math.atan2(float(np.linalg.norm(tilt)), float(fit.step @ normal)))
        return "gantry_tilt", (
            f"{name(0)} to {name(len(slices) - 1)}: the slices are shifted along a line tilted by {angle:.2f} degrees "
            "against their normal, expected 0."
        )
    if fit.rotated > limit:
        return "mixed_orientation", _rotation(slices, name, fit.rotated)
    shifts = slices.positions @ np.stack([row, column], axis=1)
    off = np.linalg.norm(shifts - np.median(shifts, axis=0), axis=1)
    worst = int(np.argmax(off))
    return "in_plane_shift", (
        f"{name(worst)} lies {_mm(off[worst])} beside the line of the other slices, expected at most {_mm(limit)}. "
        "Check whether it belongs to this series."
    )


def _mm(length: float) -> str:
    return f"{length:.2f} mm" if length >= 0.1 else f"{length:.4f} mm"


def _rotation(slices: Stack, name: Callable[[int], str], millimetres: float) -> str:
    usual = np.median(slices.orientations, axis=0)
    worst = int(np.argmax(np.abs(slices.orientations - usual).max(axis=1)))
    return (
        f"{name(worst)} is turned against the other slices: corners {_mm(millimetres)} apart. "
        "Check whether it belongs to this series."
    )
