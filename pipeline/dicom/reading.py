"""The voxels of a series, slice by slice: values after rescale, padding clamped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import PixelsError
from pipeline.dicom.model import Frame, Series
from pipeline.dicom.pixels import PixelFile, PixelHeader, open_pixels
from pipeline.dicom.privacy import no_header_text
from pipeline.dicom.rescale import frame_values, notes_on

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
                "slices differ in their matrix", path=file.path, reason="mixed_matrix",
                found=f"{frame.stored.shape[0]} rows, {frame.stored.shape[1]} columns",
                expected=f"{self.array.shape[1]} rows, {self.array.shape[2]} columns",
            )  # fmt: skip
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
