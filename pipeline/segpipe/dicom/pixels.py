"""Frames of a DICOM file: stored values as they were encoded (PS3.5 section 8), and what they stand for.

Stored values become measured ones by rescale, padding and MONOCHROME1 (PS3.3 C.11.1, C.7.5.1.1.2, C.7.6.3.1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from segpipe.dicom.codecs import EXPLICIT_BIG, decode_frame, whole_values, without_other_bits
from segpipe.dicom.model import Element, PixelStorage
from segpipe.dicom.pixel_layout import Layout
from segpipe.dicom.pixel_storage import guessed_syntax, version_of
from segpipe.dicom.privacy import kind_of
from segpipe.errors import DataError

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True, eq=False)
class PixelHeader:
    """What a header says of pixels; the slices of a series mostly have one in common.

    Attributes:
        dataset: the header.
        transfer_syntax: UID.
        rules: kept here once worked out: of a frame, what its values stand for.
    """

    dataset: Dataset
    transfer_syntax: str
    rules: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    @cached_property
    def bits(self) -> int:
        """BitsStored; 0 for real numbers."""
        real = "PixelData" not in self.dataset and any(name in self.dataset for name in PIXELS)
        return 0 if real else int(self.dataset.get("BitsStored") or 0)

    @cached_property
    def signed(self) -> bool:
        """Whether stored values are signed."""
        return bool(self.dataset.get("PixelRepresentation", 0))

    @cached_property
    def n_frames(self) -> int:
        """NumberOfFrames, 1 where it is not given."""
        return int(self.dataset.get("NumberOfFrames") or 1)

    @cached_property
    def native(self) -> np.dtype[Any] | None:
        """Type of the values on disk where they are whole bytes and not compressed."""
        allocated = int(self.dataset.get("BitsAllocated", 0))
        if not whole_values(self.transfer_syntax, allocated) or not 0 < self.bits <= allocated:
            return None
        order = ">" if self.transfer_syntax == EXPLICIT_BIG else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{allocated // 8}")


@dataclass(frozen=True, eq=False)
class PixelFile:
    """One DICOM file, open for its frames.

    Attributes:
        path: the file.
        header: what it says of its pixels.
        data: the value of its PixelData; None where it is part of the header's data set.
    """

    path: Path
    header: PixelHeader
    data: bytes | None = None

    @property
    def dataset(self) -> Dataset:
        """The header, of slices that differ in nothing else the same."""
        return self.header.dataset

    def stored(self, number: int = 0) -> NDArray[Any]:
        """Return stored values of a frame, (rows, columns), without bits beyond BitsStored (overlays, junk).

        Raises:
            DataError: the frame is not there, is cut short or cannot be decoded.
        """
        header = self.header
        if number >= header.n_frames:
            raise DataError("a frame is missing", reason="truncated", path=self.path, found=f"{header.n_frames} frames")
        try:
            if header.native is not None:
                values = self._native(header.native, number)
            else:
                values = decode_frame(self._whole(), header.transfer_syntax, number)
        except DataError as error:
            error.path = str(self.path)
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            raise _undecodable(self.path, kind_of(error)) from None
        if values.shape != header.shape:
            raise _undecodable(self.path, f"shape {values.shape}")
        return values

    def _native(self, dtype: np.dtype[Any], number: int) -> NDArray[Any]:
        """Return a frame of whole bytes that is not compressed."""
        header = self.header
        size = header.shape[0] * header.shape[1]
        data = self.dataset.PixelData if self.data is None else self.data
        step = size * dtype.itemsize
        start = number * step
        if problem := Layout.of(self.dataset).length_problem(len(data), len(data)):
            raise problem.error()
        values = np.frombuffer(data, dtype, size, start).reshape(header.shape)
        values = values.astype(dtype.newbyteorder("="), copy=False)
        return without_other_bits(values, header.bits, self.dataset.get("HighBit"))

    def _whole(self) -> Dataset:
        """Return header and pixels, as decoders ask for them."""
        if self.data is None:
            return self.dataset
        whole = Dataset(dict(self.dataset.items()))
        whole[PIXEL_DATA] = DataElement(PIXEL_DATA, "OB", self.data, is_undefined_length=True)
        return whole


def open_pixels(path: Path, known: PixelStorage | None = None) -> PixelFile:
    """Read a file for its frames; call it within `segpipe.dicom.privacy.no_header_text`.

    Args:
        path: the file.
        known: what a scan found of it. While the file is the same, its header is not read again.

    Raises:
        DataError: the file is cut short, has no pixel data, or is no grey image.
    """
    if known and known.attributes and (data := _value(path, known)) is not None:
        return PixelFile(path, _usable(path, _header(known.attributes, known.transfer_syntax)), data)
    return _read(path)


def _value(path: Path, known: PixelStorage) -> bytes | None:
    """Read the value of PixelData where the scan found it; None where the file is another one by now."""
    try:
        with path.open("rb", buffering=0) as stream:
            if version_of(stream) != known.version:
                return None
            stream.seek(known.offset)
            return stream.read(known.length)
    except OSError as error:
        raise _undecodable(path, kind_of(error)) from None


@lru_cache(maxsize=16)
def _header(attributes: tuple[Element, ...], transfer_syntax: str) -> PixelHeader:
    elements = (
        RawDataElement(BaseTag(tag), vr, len(value), value, 0, vr is None, True) for tag, vr, value in attributes
    )
    return PixelHeader(Dataset({element.tag: element for element in elements}), transfer_syntax)


def _read(path: Path) -> PixelFile:
    try:
        dataset = pydicom.dcmread(path, force=True)
        syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or guessed_syntax(dataset))
        if not any(name in dataset for name in PIXELS):
            raise _undecodable(path, "no pixel data")
        return PixelFile(path, _usable(path, PixelHeader(dataset, syntax)))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises what it likes
        raise _undecodable(path, kind_of(error)) from None


def _usable(path: Path, header: PixelHeader) -> PixelHeader:
    """Return the header of a grey image; refuse any other."""
    try:
        empty = min(header.shape) <= 0
        _ = header.native, header.n_frames, header.signed, header.bits  # where a number is none, this raises
        channels = int(header.dataset.get("SamplesPerPixel") or 1)
    except Exception as error:  # noqa: BLE001 - pydicom raises what it likes
        raise _undecodable(path, kind_of(error)) from None
    if empty:
        raise _undecodable(path, "no pixel data")
    if channels != 1 or header.dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise DataError(
            "pixels are colours",
            path=path,
            expected="one grey value a pixel",
            reason="color",
            hint="colour images are not segmented here",
        )
    return header


def _undecodable(path: Path, found: str) -> DataError:
    return DataError(
        "pixel data is cut short or cannot be decoded",
        reason="truncated",
        path=path,
        found=found,
        expected="complete pixel data of every frame",
        hint="send the series again from its source",
    )


UNITS_BY_DEFINITION = ("CT", "PT")  # values are HU, or an activity, however they are meant to be shown


@dataclass(frozen=True, eq=False)
class FrameValues:
    """A frame before its rescale is carried out, so that no array larger than needed is made.

    Attributes:
        stored: (rows, columns), mirrored where MONOCHROME1 asks for it.
        slope, intercept: value = slope * stored + intercept.
        padding: where it is padding; None where nothing is.
    """

    stored: NDArray[Any]
    slope: float
    intercept: float
    padding: NDArray[np.bool_] | None

    @property
    def is_whole(self) -> bool:
        """Whether every value is a whole number."""
        return self.stored.dtype.kind in "iu" and self.slope.is_integer() and self.intercept.is_integer()

    def ends(self) -> tuple[float, float] | None:
        """Return smallest and largest value that is not padding; None where all is padding. Exact where it is whole."""
        measured = self.stored
        if self.padding is not None:
            if self.padding.all():
                return None
            first = self.stored.flat[int(self.padding.argmin())]
            measured = np.where(self.padding, first, self.stored)
        number = int if self.is_whole else float
        ends = [number(end) * number(self.slope) + number(self.intercept) for end in (measured.min(), measured.max())]
        return min(ends), max(ends)

    def write(self, out: NDArray[Any]) -> None:
        """Put the values into an array of int16, in which they must fit, or of float32."""
        if out.dtype != np.int16:
            out[...] = self.stored * np.float64(self.slope) + self.intercept
            return
        out[...] = self.stored  # modulo 2^16, as is all that follows
        if self.slope != 1:
            out *= np.int64(self.slope).astype(np.int16)
        if self.intercept != 0:
            out += np.int64(self.intercept).astype(np.int16)


def frame_values(file: PixelFile, number: int = 0) -> FrameValues:
    """Read the values of a frame.

    Raises:
        DataError: the frame cannot be decoded, or its rescale cannot be used.
    """
    rules = file.header.rules
    if number not in rules:
        rules[number] = _rule(file, number)
    rule: _Rule = rules[number]
    stored = file.stored(number)
    padding = None
    if rule.padding:
        low, high = rule.padding
        mask = stored == low if low == high else (stored >= low) & (stored <= high)
        padding = mask if mask.any() else None
    if rule.mirrored:
        stored = ~stored if file.header.signed else ((1 << file.header.bits) - 1) - stored
    if rule.slope is None:
        from pydicom.pixels import apply_modality_lut

        return FrameValues(apply_modality_lut(stored, file.dataset), 1.0, 0.0, padding)
    return FrameValues(stored, rule.slope, rule.intercept, padding)


@dataclass(frozen=True)
class _Rule:
    """What a header makes of the stored values of a frame; no slope where there is a table of values."""

    slope: float | None
    intercept: float
    padding: tuple[float, float] | None
    mirrored: bool


def _rule(file: PixelFile, number: int) -> _Rule:
    table = "ModalityLUTSequence" in file.dataset and "RescaleSlope" not in file.dataset
    try:
        slope, intercept = (None, 0.0) if table else rescale(file, number)
        return _Rule(slope, intercept, _padding(file), is_inverted(file))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - of an element's value, pydicom raises what it likes
        raise _undecodable(file.path, kind_of(error)) from None


def rescale(file: PixelFile, number: int = 0) -> tuple[float, float]:
    """Return slope and intercept of a frame: its own, else those shared by all frames, else those of the file.

    Raises:
        DataError: a slope of 0, or numbers that are none.
    """
    slope = intercept = None
    for group in _groups(file, number):
        slope = group.get("RescaleSlope") if slope is None else slope
        intercept = group.get("RescaleIntercept") if intercept is None else intercept
    try:
        factors = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    except (TypeError, ValueError):
        factors = (0.0, 0.0)
    if not np.isfinite(factors).all() or factors[0] == 0:
        raise DataError(
            "RescaleSlope or RescaleIntercept cannot be used",
            path=file.path,
            reason="missing_tag",
            expected="two numbers, the slope not 0",
            hint="export the series again from its source",
        )
    return factors


def is_inverted(file: PixelFile) -> bool:
    """Return whether stored values are mirrored within BitsStored, so that bright stays bright.

    MONOCHROME1 says that the smallest value is *shown* white. Where values have a unit (CT, PET, RescaleType HU) it is
    a matter of display alone, and they are left as the rescale formula has them.
    """
    if file.dataset.get("PhotometricInterpretation") != "MONOCHROME1" or not file.header.bits:
        return False
    types = {group.get("RescaleType") for group in _groups(file, 0)}
    return file.dataset.get("Modality") not in UNITS_BY_DEFINITION and "HU" not in types


def notes_on(file: PixelFile) -> tuple[str, ...]:
    """Return what a user of the values should know (the scan has a note on lossy compression)."""
    notes = []
    if file.dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        what = "mirrored, so that bright stays bright" if is_inverted(file) else "left, as they have a unit"
        notes.append(f"MONOCHROME1: values are {what}")
    if any("RealWorldValueMappingSequence" in group for group in _groups(file, 0)):
        notes.append("a real world value mapping is there and was not applied")
    return tuple(notes)


def _groups(file: PixelFile, number: int) -> Iterator[Dataset]:
    """Yield where a frame's attributes may stand, the most specific place first."""
    per_frame = file.dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = file.dataset.get("SharedFunctionalGroupsSequence") or []
    for place in (*per_frame[number : number + 1], *shared):
        yield from place.get("PixelValueTransformationSequence") or []
        yield place
    yield file.dataset


def _padding(file: PixelFile) -> tuple[float, float] | None:
    """Return smallest and largest stored value of padding: PixelPaddingValue and PixelPaddingRangeLimit."""
    prefix = "" if file.header.bits else "Float"
    names = (f"{prefix}PixelPaddingValue", f"{prefix}PixelPaddingRangeLimit")
    first, last = (file.dataset.get(name) for name in names)
    if first is None or first == "":
        return None
    try:
        low, high = sorted(_as_stored(file, end) for end in (first, first if last in (None, "") else last))
    except (TypeError, ValueError):
        return None
    return low, high


def _as_stored(file: PixelFile, value: Any) -> float:
    """Return a padding value, even one of the wrong sign (US for signed pixels), as pixels are stored."""
    if not file.header.bits:
        return float(value)
    allocated = int(file.dataset.BitsAllocated)
    value = int(value) % (1 << allocated)
    return value - (1 << allocated) if file.header.signed and value >> (allocated - 1) else value
