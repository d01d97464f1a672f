"""What stored values stand for: rescale, padding and MONOCHROME1 (PS3.3 C.11.1, C.7.5.1.1.2, C.7.6.3.1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import PixelsError
from pipeline.dicom.pixels import PixelFile

if TYPE_CHECKING:
    from pydicom import Dataset

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
        """Smallest and largest value that is not padding; None where all is padding. Exact where it is whole."""
        measured = self.stored
        if self.padding is not None:
            if self.padding.all():
                return None
            first = self.stored.flat[int(self.padding.argmin())]
            measured = np.where(self.padding, first, self.stored)
        number = int if self.is_whole else float
        ends = [
            number(end) * number(self.slope) + number(self.intercept)
            for end in (measured.min(), measured.max())
        ]
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
    """The values of a frame.

    Raises:
        PixelsError: the frame cannot be decoded, or its rescale cannot be used.
    """
    rules = file.header.rules
    if number not in rules:
        rules[number] = _rule(file, number)
    rule: _Rule = rules[number]
    stored = file.stored(number)
    padding = _between(stored, *rule.padding) if rule.padding else None
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
    slope, intercept = (None, 0.0) if table else rescale(file, number)
    return _Rule(slope, intercept, _padding(file), is_inverted(file))


def rescale(file: PixelFile, number: int = 0) -> tuple[float, float]:
    """Slope and intercept of a frame: its own, else those shared by all frames, else those of the file.

    Raises:
        PixelsError: a slope of 0, or numbers that are none.
    """
    slope = intercept = None
    for group in _groups(file, number):
        slope = group.get("RescaleSlope") if slope is None else slope
        intercept = group.get("RescaleIntercept") if intercept is None else intercept
    try:
        found = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    except (TypeError, ValueError):
        found = (0.0, 0.0)
    if not np.isfinite(found).all() or found[0] == 0:
        raise PixelsError(
            "RescaleSlope or RescaleIntercept cannot be used", path=file.path, reason="missing_tag",
            expected="two numbers, the slope not 0", hint="export the series again from its source",
        )  # fmt: skip
    return found


def is_inverted(file: PixelFile) -> bool:
    """Whether stored values are mirrored within BitsStored, so that bright stays bright.

    MONOCHROME1 says that the smallest value is *shown* white. Where values have a unit (CT, PET, RescaleType HU) it is
    a matter of display alone, and they are left as the rescale formula has them.
    """
    if file.dataset.get("PhotometricInterpretation") != "MONOCHROME1" or not file.header.bits:
        return False
    types = {group.get("RescaleType") for group in _groups(file, 0)}
    return file.dataset.get("Modality") not in UNITS_BY_DEFINITION and "HU" not in types


def notes_on(file: PixelFile) -> tuple[str, ...]:
    """What a user of the values should know (the scan has said whether they were compressed with loss)."""
    found = []
    if file.dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        what = "mirrored, so that bright stays bright" if is_inverted(file) else "left, as they have a unit"
        found.append(f"MONOCHROME1: values are {what}")
    if any("RealWorldValueMappingSequence" in group for group in _groups(file, 0)):
        found.append("a real world value mapping is there and was not applied")
    return tuple(found)


def _groups(file: PixelFile, number: int) -> Iterator[Dataset]:
    """Where a frame's attributes may stand, the most specific place first."""
    per_frame = file.dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = file.dataset.get("SharedFunctionalGroupsSequence") or []
    for place in (*per_frame[number : number + 1], *shared):
        yield from place.get("PixelValueTransformationSequence") or []
        yield place
    yield file.dataset


def _padding(file: PixelFile) -> tuple[float, float] | None:
    """Smallest and largest stored value of padding: PixelPaddingValue and PixelPaddingRangeLimit."""
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


def _between(stored: NDArray[Any], low: float, high: float) -> NDArray[np.bool_] | None:
    """Where stored values lie from low to high, both included; None where none does."""
    found: NDArray[np.bool_] = stored == low if low == high else (stored >= low) & (stored <= high)
    return found if found.any() else None


def _as_stored(file: PixelFile, value: Any) -> float:
    """A padding value, also one written with the wrong sign (US for signed pixels), as pixels are stored."""
    if not file.header.bits:
        return float(value)
    allocated = int(file.dataset.BitsAllocated)
    value = int(value) % (1 << allocated)
    return value - (1 << allocated) if file.header.signed and value >> (allocated - 1) else value
