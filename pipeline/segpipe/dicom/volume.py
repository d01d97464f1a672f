"""The voxels of a DICOM series as an array with an affine: `read_dicom` of a folder, `load_series` of a scanned series.

Values are those after rescale (PS3.3 C.11.1), int16 where that is exact; padding has the smallest measured value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import absolute_path
from segpipe.common.resampling import resample as resample_channel
from segpipe.dicom.captures import admitted
from segpipe.dicom.headers import Header, read_header
from segpipe.dicom.model import Frame, Series, Volume
from segpipe.dicom.pet_units import suv_factor
from segpipe.dicom.pixels import PixelFile, PixelHeader, frame_values, notes_on, open_pixels
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.repair import check_repairs, refusal, resample
from segpipe.dicom.scanning import scan
from segpipe.errors import DataError, UsageError

EXACT_IN_FLOAT32 = 2**24


def read_dicom(path: str | Path, *, series: str | None = None, repair: str | Sequence[str] | None = None) -> Volume:
    """Read the one volume of a folder of DICOM files.

    >>> import segpipe
    >>> volume = segpipe.read_dicom("mr_series")
    >>> volume.modality
    'MR'
    >>> volume.array.ndim, volume.affine_ras.shape
    (3, (4, 4))

    Args:
        path: a folder with all below it, or one file, which stands for its series.
        series: SeriesInstanceUID or case id of the series to read, where there are several.
        repair: ``tilt``, ``spacing`` or both: a series that is refused for that is resampled to a regular grid.

    Returns:
        The array (columns, rows, slices) after rescale, and its affine to mm, RAS+; see `load_series`.

    Raises:
        UsageError: no such path or repair.
        DataError: there is no series that makes a volume, there are several, or the one that is there is refused, for
            the reason that `segpipe.dicom.scan` gives.
    """
    path, repairs = absolute_path(path, "a DICOM folder, or one of its files"), check_repairs(repair)
    if not path.exists():
        raise UsageError("no such file or folder", path=path, hint="check the path")
    if not path.is_dir() and _is_other(path):
        raise UsageError(
            "neither a DICOM folder nor one of its files",
            path=path,
            found=f"a file with the ending {path.suffix}" if path.suffix else "a file without an ending",
            expected="DICOM; or, for `Bundle.segment`, a NIfTI file (.nii or .nii.gz)",
            hint="convert the image to NIfTI, or give the folder of its DICOM series",
        )
    candidates = scan(path if path.is_dir() else path.parent).series
    if not path.is_dir():
        candidates = tuple(member for member in candidates if path in member.files)
    known = candidates
    if series is not None:
        candidates = tuple(member for member in candidates if series in (member.series_uid, member.case_id))
    if known and not candidates:
        ids = ", ".join(member.case_id for member in known)
        raise DataError("not one DICOM series: none has that id", path=path, found=series, expected=f"one of {ids}")
    usable = [whole for member in candidates if (whole := _whole(member, repairs)).state == "loaded"]
    if len(usable) == 1:
        return load_series(usable[0])
    if len(candidates) == 1:
        raise refusal(candidates[0])
    ids = f" ({', '.join(member.case_id for member in candidates)})" if candidates else ""
    raise DataError(
        "not one DICOM series",
        path=path,
        found=f"{len(usable)} volumes, {len(candidates) - len(usable)} refused series{ids}",
        expected="one series that makes a volume",
        hint="`segpipe scan` lists them; name one by its series UID or case id",
    )


def _whole(series: Series, repairs: tuple[str, ...]) -> Series:
    return admitted([series], repairs, across_gaps=True)[0]


def _is_other(path: Path) -> bool:
    """Return whether a file is of another kind than DICOM."""
    header = read_header(path)
    return not isinstance(header, Header) and header.file_class == "not_dicom"


def load(root: str | Path, *, repair: str | Sequence[str] | None = None) -> list[Volume]:
    """Read every series below a folder that makes a volume.

    A series that is refused is not in the list: `segpipe.dicom.scan` names each with its reason, and `load_series`
    reads its series one by one.

    Raises:
        UsageError: no such folder, no such repair.
        DataError: there is no volume at all, or a frame is cut short or cannot be decoded.
    """
    repairs = check_repairs(repair)
    scanned = scan(Path(root)).series
    chosen = [whole for series in scanned if (whole := _whole(series, repairs)).state == "loaded"]
    if not chosen:
        refused = "; ".join(f"{series.case_id}: {series.reason}" for series in scanned)
        raise DataError(
            "no series can be loaded",
            path=root,
            found=refused or "no image series",
            expected="a DICOM series that makes a volume",
            hint="`segpipe scan` lists each with what to do",
        )
    return [load_series(series) for series in chosen]


def load_series(series: Series, *, repair: str | Sequence[str] | None = None) -> Volume:
    """Read the voxels of a series.

    Args:
        series: from a scan.
        repair: ``tilt``, ``spacing`` or both: a series that is refused for that is resampled to a regular grid.

    Returns:
        Values after rescale, (C, R, S), int16 where every one of them is exact in it, else float32. Padding
        (PixelPaddingValue to PixelPaddingRangeLimit) has the smallest value that was measured, or stays 0 where no
        value is below 0. A PET that is ``converted_to`` SUVbw is in that, float32.

    Raises:
        UsageError: no such repair.
        DataError: the series is refused (and not repaired), or a frame is cut short or cannot be decoded.
    """
    series = _whole(series, check_repairs(repair))
    if series.state != "loaded" or series.affine_ras is None:
        raise refusal(series)
    array, notes = _read_frames(series)
    if series.converted_to:
        array = array.astype(np.float32) * np.float32(suv_factor(series))
    return resample(series, array, notes) if series.repaired else Volume(series, array, series.affine_ras, notes)


def load_channels(series: Series) -> tuple[Volume, ...]:
    """Read the voxels of all channels of a case on the grid of the first, which is the series itself.

    Returns:
        One volume a channel: the first as `load_series` gives it, the others resampled linearly to its grid, float32,
        where their `Series.registration` places them, and with their smallest value where they do not cover it.

    Raises:
        DataError: as `load_series`.
    """
    first, *others = (load_series(channel) for channel in series.channels)
    columns, rows, slices = first.array.shape
    return first, *(
        replace(
            other,
            array=resample_channel(
                other.array, other.series.placed(other.affine_ras), (columns, rows, slices), first.affine_ras
            ),
            affine_ras=first.affine_ras,
        )
        for other in others
    )


def _read_frames(series: Series) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return the values of the frames, (C, R, S), in their order, and notes on them."""
    files: dict[Path, list[tuple[int, Frame]]] = {}
    for place, frame in enumerate(series.frames):
        files.setdefault(frame.path, []).append((place, frame))
    try:
        with no_header_text():
            try:
                reading = _read(series, files, np.int16)
            except _InexactError:
                reading = _read(series, files, np.float32)
    except DataError as error:
        error.case_id = series.case_id
        raise
    notes = dict.fromkeys([*series.notes, *reading.notes, *reading.clamp_padding()])
    return reading.array.transpose(2, 1, 0), tuple(notes)


class _InexactError(Exception):
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
            raise DataError(
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
                raise _InexactError
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


def _read(series: Series, files: dict[Path, list[tuple[int, Frame]]], dtype: type[np.generic]) -> _Reading:
    """Read one file after the other: no codec lets go of the interpreter's lock, so threads would only wait for it."""
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
        raise DataError("the series has no frames", case_id=series.case_id, reason="missing_tag")
    return reading
