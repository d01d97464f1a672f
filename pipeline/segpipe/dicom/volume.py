"""The voxels of a series, slice by slice: values after rescale, padding clamped.

Resample a sheared or unevenly spaced stack of slices to a regular grid, on request.

Every slice is taken where it lies (its own position): linear between pixels, then linear between the two slices around
a plane, at the same place in mm. Nothing is extrapolated: what no slice covers is filled.

Judged series become volumes.

A series becomes a NIfTI file whose header says where the voxels lie, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_text
from segpipe.common.nifti import FORMS_TOLERANCE_MM, corners_apart_mm, write_nifti_whole
from segpipe.common.result_folder import MAPPING, read_lines
from segpipe.dicom.codecs import PixelsError
from segpipe.dicom.geometry import LOAD_MM, LOAD_STEP, NOTE_PIXELS, NOTE_STEP
from segpipe.dicom.model import Frame, Reason, Series, Volume
from segpipe.dicom.pixels import PixelFile, PixelHeader, frame_values, notes_on, open_pixels
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.scanning import scan
from segpipe.errors import DataError, UsageError

EXACT_IN_FLOAT32 = 2**24
Slot = tuple[int, Frame]


def read_frames(series: Series) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Values of the series' frames, stacked in their order, and notes on them.

    Raises:
        PixelsError: a frame is cut short or cannot be decoded.
    """
    files: dict[Path, list[Slot]] = {}
    for place, frame in enumerate(series.frames):
        files.setdefault(frame.path, []).append((place, frame))
    try:
        with no_header_text():
            try:
                reading = _read(series, files, np.int16)
            except _NotExactError:
                reading = _read(series, files, np.float32)
    except PixelsError as error:
        error.case_id = series.case_id
        raise
    notes = dict.fromkeys([*series.notes, *reading.notes, *reading.clamp_padding()])
    return reading.array.transpose(2, 1, 0), tuple(notes)


class _NotExactError(Exception):
    """A value does not fit into the type of the array."""


@dataclass
class _Reading:
    """An array under way, (S, R, C).

    Attributes:
        lowest: of a slice, the smallest value that is not padding; none of a slice of padding alone.
        padding: of a slice, where it is padding, eight pixels a byte; none of a slice without.
        notes: on the values.
    """

    array: NDArray[Any]
    lowest: dict[int, float] = field(default_factory=dict)
    padding: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def put(self, place: int, file: PixelFile, number: int) -> None:
        frame = frame_values(file, number)
        if frame.stored.shape != self.array.shape[1:]:
            raise PixelsError(
                "slices differ in their matrix",
                path=file.path,
                reason="mixed_matrix",
                found=f"{frame.stored.shape[0]} rows, {frame.stored.shape[1]} columns",
                expected=f"{self.array.shape[1]} rows, {self.array.shape[2]} columns",
            )
        if frame.padding is not None:
            self.padding[place] = np.packbits(frame.padding)
        ends = frame.ends()
        if self.array.dtype == np.int16:
            if not frame.is_whole or (ends and not -32768 <= ends[0] <= ends[1] <= 32767):
                raise _NotExactError
        elif frame.is_whole and ends and max(-ends[0], ends[1]) > EXACT_IN_FLOAT32:
            self.notes["whole numbers beyond 2^24 are rounded to float32"] = None
        if ends:
            self.lowest[place] = ends[0]
        frame.write(self.array[place])  # padding may not fit; it is replaced

    def clamp_padding(self) -> list[str]:
        """Give padding the smallest measured value; say so."""
        if not self.padding or not self.lowest:
            return []
        lowest, shape, n_padded, changed = min(self.lowest.values()), self.array.shape[1:], 0, False
        for place, packed in self.padding.items():
            mask = np.unpackbits(packed, count=shape[0] * shape[1]).view(bool).reshape(shape)
            n_padded += int(np.count_nonzero(mask))
            if lowest < 0 or self.array[place][mask].any():
                np.putmask(self.array[place], mask, lowest)
                changed = True
        if not changed:
            return []
        share = 100 * n_padded / self.array.size
        return [f"padding ({share:.2g} % of the voxels) has the smallest measured value, {lowest:g}"]


def _read(series: Series, files: dict[Path, list[Slot]], dtype: type[np.generic]) -> _Reading:
    """One file after the other: no codec lets go of the interpreter's lock, so threads would only wait for it."""
    reading: _Reading | None = None
    seen: PixelHeader | None = None
    for path, slots in files.items():
        file = open_pixels(path, slots[0][1].pixels)
        if reading is None:
            reading = _Reading(np.empty((len(series.frames), *file.header.shape), dtype))
        for place, frame in slots:
            reading.put(place, file, frame.number)
        if file.header is not seen:
            reading.notes.update(dict.fromkeys(notes_on(file)))
            seen = file.header
    if reading is None:
        raise PixelsError("the series has no frames", case_id=series.case_id, reason="missing_tag")
    return reading


REPAIRS: dict[str, tuple[Reason, ...]] = {"tilt": ("gantry_tilt",), "spacing": ("gap", "variable_spacing")}
SAME_PLACE = 1e-3  # parts of a pixel or of a spacing that are rounding, not worth to blur a slice for


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


def as_repairs(repair: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of `REPAIRS`, each once.

    Raises:
        UsageError: no such repair.
    """
    names = (repair,) if isinstance(repair, str) else tuple(repair or ())
    for name in names:
        if name not in REPAIRS:
            raise UsageError("no such repair", found=name, expected=" or ".join(REPAIRS))
    return tuple(dict.fromkeys(names))


def can_repair(series: Series, repairs: Sequence[str]) -> bool:
    """Whether one of these repairs is for what the series is refused for."""
    return series.state == "refused" and any(series.reason in REPAIRS[name] for name in repairs)


def refusal(series: Series) -> DataError:
    """The error of a series that is not loaded."""
    return DataError(
        f"the series is refused: {series.reason}",
        case_id=series.case_id,
        found=series.detail or None,
        hint="`segpipe scan` says more",
    )


def repaired(series: Series, repairs: Sequence[str]) -> Volume:
    """Read a refused series and resample it to a regular grid.

    Args:
        series: refused for one of the reasons that `REPAIRS` lists.
        repairs: ``tilt``, ``spacing`` or both.

    Returns:
        float32; slices at the median distance, matrix as large as all slices together, filled with the smallest
        value of the scan where there is none.

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
    array, notes = read_frames(series)
    depth = stack.distances[-1]
    planes = round(depth / np.median(np.diff(stack.distances))) + 1
    step = float(depth / (planes - 1))
    low = np.floor(stack.shifts.min(axis=0) + SAME_PLACE)
    size = np.ceil(stack.shifts.max(axis=0) - SAME_PLACE) - low + array.shape[:2]
    fill = float(array.min())
    values = _resample(array, stack, low, (int(size[0]), int(size[1]), planes))
    np.nan_to_num(values, copy=False, nan=fill)
    done = tuple(name for name in REPAIRS if name in faults)
    note = f"repaired: {', '.join(done)}; resampled linearly to slices {step:.4g} mm apart, {fill:g} where no slice is"
    return Volume(series, values, _affine(stack, step, low), (note, *notes), done)


def _stack_of(series: Series) -> _Stack:
    first = series.frames[0]
    along_row, along_column = np.reshape(first.orientation, (2, 3)).astype(np.float64)
    axes = np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1)
    spacing = (first.pixel_spacing_mm[1], first.pixel_spacing_mm[0])
    positions = np.array([frame.position_mm for frame in series.frames], dtype=np.float64)
    moved = (positions - positions[0]) @ axes
    return _Stack(positions[0], axes, spacing, moved[:, 2], moved[:, :2] / spacing)


def _faults(series: Series, stack: _Stack) -> set[str]:
    """Which repairs the stack needs, by the tolerances within which a series is loaded.

    Raises:
        DataError: slices at one place, or shifted otherwise than along a line.
    """
    gaps = np.diff(stack.distances)
    pixel, step = min(stack.spacing), float(np.median(gaps))
    slope = stack.shifts[-1] / stack.distances[-1] if stack.distances[-1] else np.zeros(2)
    off_line = float(np.abs(stack.shifts - stack.distances[:, None] * slope).max()) * pixel
    if gaps.min() <= 0 or off_line > 2 * max(LOAD_MM, LOAD_STEP * step, NOTE_PIXELS * pixel):
        raise DataError(
            "the slices cannot be resampled",
            case_id=series.case_id,
            found="two at one place" if gaps.min() <= 0 else "slices shifted within their plane",
            expected="slices one behind the other, along a straight line",
        )
    found = {name for name, reasons in REPAIRS.items() if series.reason in reasons}
    if np.abs(stack.shifts[-1]).max() > 2 * NOTE_PIXELS:
        found.add("tilt")
    even = np.linspace(0, stack.distances[-1], len(stack.distances))
    limit = max(LOAD_MM, LOAD_STEP * step, min(NOTE_PIXELS * pixel, NOTE_STEP * step))
    if np.abs(stack.distances - even).max() > 2 * limit:
        found.add("spacing")
    return found


def _resample(
    array: NDArray[np.generic], stack: _Stack, low: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Values on a regular grid of this shape from the first slice to the last; NaN where no slice covers."""
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


def _affine(stack: _Stack, step: float, low: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = stack.axes * (*stack.spacing, step)
    affine[:3, 3] = stack.origin + affine[:3, :2] @ low
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


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

    A series that is refused is not in the list: `segpipe.dicom.scan` names each with its reason, and `load_series`
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
            "no series can be loaded",
            path=root,
            found=refused or "no image series",
            expected="a DICOM series that makes a volume",
            hint="`segpipe scan` says more",
        )
    return [load_series(series, repair=repairs) for series in chosen]


SCANNER = 1  # code of sform and qform: coordinates of the scanner


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume as ``.nii.gz``, whole or not at all.

    Sform and qform both place the voxels in mm. A qform cannot say a shear: where it would move a corner by more than
    0.1 mm there is none. The header has no text, except ``repaired: tilt`` or the like in ``descrip``.

    Raises:
        UsageError: it cannot be written.
    """
    import nibabel as nib

    image = nib.Nifti1Image(volume.array, volume.affine_ras)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_ras, code=SCANNER)
    image.set_qform(volume.affine_ras, code=SCANNER)
    if corners_apart_mm(image.get_qform(), volume.affine_ras, volume.array.shape) > FORMS_TOLERANCE_MM:
        image.set_qform(None, code=0)
    if volume.repaired:
        image.header["descrip"] = f"repaired: {', '.join(volume.repaired)}"
    write_nifti_whole(image, path)


def write_mapping(folder: Path, series: Iterable[Series]) -> None:
    """Add to the owner-only ``mapping.jsonl`` which series and files a case id stands for.

    Raises:
        UsageError: it cannot be written.
    """
    path = folder / MAPPING
    known = {line["id"]: line for line in read_lines(path) if isinstance(line, dict) and "id" in line}
    for each in series:
        paths = [str(file) for file in each.files]
        known[each.case_id] = {"id": each.case_id, "paths": paths, "series_uid": each.series_uid}
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in known.values()]
    write_text(path, "".join(lines).encode(errors="backslashreplace").decode(), mode=0o600)
