"""Stored values of a DICOM file's frames, exactly as they were encoded (PS3.5 section 8, PS3.3 C.7.6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.codecs import PixelsError, decode_frame
from pipeline.dicom.privacy import kind_of

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


@dataclass(frozen=True, eq=False)
class PixelFile:
    """One DICOM file, open for its frames.

    Attributes:
        path: the file.
        dataset: its header and pixel data.
        transfer_syntax: UID.
    """

    path: Path
    dataset: Dataset
    transfer_syntax: str

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    @cached_property
    def bits(self) -> int:
        """BitsStored; 0 for real numbers."""
        return int(self.dataset.get("BitsStored") or 0) if "PixelData" in self.dataset else 0

    @cached_property
    def signed(self) -> bool:
        """Whether stored values are signed."""
        return bool(self.dataset.get("PixelRepresentation", 0))

    @cached_property
    def n_frames(self) -> int:
        """NumberOfFrames, 1 where it is not given."""
        return int(self.dataset.get("NumberOfFrames") or 1)

    def stored(self, number: int = 0) -> NDArray[Any]:
        """Stored values of a frame, (rows, columns): bits beyond BitsStored (overlays, junk) are not part of them.

        Raises:
            PixelsError: the frame is not there, is cut short or cannot be decoded.
        """
        if number >= self.n_frames:
            raise PixelsError("a frame is missing", path=self.path, found=f"{self.n_frames} frames")
        try:
            values = self._native(number)
            values = decode_frame(self.dataset, self.transfer_syntax, number) if values is None else values
        except PixelsError as error:
            error.path = str(self.path)
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            raise _undecodable(self.path, kind_of(error)) from None
        if values.shape != self.shape:
            raise _undecodable(self.path, f"shape {values.shape}")
        return values

    def _native(self, number: int) -> NDArray[Any] | None:
        """A frame of whole bytes that is not compressed, little endian; None for every other."""
        allocated = int(self.dataset.get("BitsAllocated", 0))
        if self.transfer_syntax not in (IMPLICIT, EXPLICIT) or allocated not in (8, 16, 32):
            return None
        if not self.bits or not 0 < self.bits <= allocated or self._high_bit >= allocated:
            return None
        dtype = np.dtype(f"<{'i' if self.signed else 'u'}{allocated // 8}")
        size = self.shape[0] * self.shape[1]
        data = self.dataset.PixelData
        start = number * size * dtype.itemsize
        if len(data) < start + size * dtype.itemsize:
            raise _undecodable(
                self.path, f"{len(data)} bytes of pixels, {self.n_frames * size * dtype.itemsize} expected"
            )
        values = np.frombuffer(data, dtype, size, start).reshape(self.shape)
        above, unused = allocated - 1 - self._high_bit, allocated - self.bits
        return (values << above) >> unused if unused else values

    @cached_property
    def _high_bit(self) -> int:
        return int(self.dataset.get("HighBit", self.bits - 1))


def open_pixels(path: Path) -> PixelFile:
    """Read a file for its frames; call it within `pipeline.dicom.privacy.no_header_text`.

    Raises:
        PixelsError: the file is cut short, has no pixel data, or is no grey image.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True)
        syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or _guessed_syntax(dataset))
        file = PixelFile(path, dataset, syntax)
        whole = any(name in dataset for name in PIXELS) and min(file.shape) > 0
        channels = int(dataset.get("SamplesPerPixel") or 1)
    except Exception as error:  # noqa: BLE001 - pydicom raises what it likes
        raise _undecodable(path, kind_of(error)) from None
    if not whole:
        raise _undecodable(path, "no pixel data")
    if channels != 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise PixelsError(
            "pixels are colours", path=path, expected="one grey value a pixel", reason="color",
            hint="colour images are not segmented here",
        )  # fmt: skip
    return file


def _guessed_syntax(dataset: Dataset) -> str:
    """The transfer syntax of a file without a header of its own, as pydicom found it to be."""
    implicit, little = dataset.original_encoding
    return IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN


def _undecodable(path: Path, found: str) -> PixelsError:
    return PixelsError(
        "pixel data is cut short or cannot be decoded", path=path, found=found,
        expected="complete pixel data of every frame", hint="send the series again from its source",
    )  # fmt: skip
