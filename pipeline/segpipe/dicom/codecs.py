"""One frame of a DICOM data set, decoded by the library that does it exactly.

pydicom decodes what is native and deflated, pyjpegls JPEG-LS, Pillow RLE, JPEG 2000 and baseline JPEG, GDCM the other
kinds of JPEG. GDCM is not asked for JPEG 2000: of a damaged stream it ends the process. A compressed frame without its
end marker is not decoded: libraries would fill up a stream that was cut.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from segpipe.dicom.codestream import JPEG_FAMILIES, RLE, read_codestream
from segpipe.dicom.model import Problem
from segpipe.dicom.pixel_layout import END_OF_STREAM, NOT_ITS_HEADER, PADDING, Layout
from segpipe.errors import DataError

IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset([IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED])
JPEG_BY_GDCM = frozenset(JPEG_FAMILIES + end for end in ("51", "53", "55", "57", "70"))
JPEG_8_BIT, JPEG_LS, JPEG_LS_LOSSY = (JPEG_FAMILIES + end for end in ("50", "80", "81"))
JPEG_2000, JPEG_2000_LOSSY = JPEG_FAMILIES + "90", JPEG_FAMILIES + "91"
LOSSY = frozenset(JPEG_FAMILIES + end for end in ("50", "51", "53", "55", "81"))
DECODED = NATIVE | JPEG_BY_GDCM | {RLE, JPEG_8_BIT, JPEG_LS, JPEG_LS_LOSSY, JPEG_2000, JPEG_2000_LOSSY}
PLUGIN = {JPEG_8_BIT: "pillow", JPEG_LS: "pyjpegls", JPEG_LS_LOSSY: "pyjpegls", JPEG_2000: "pillow"}
PLUGIN |= {JPEG_2000_LOSSY: "pillow", RLE: "pydicom"}
DAMAGED = re.compile(rb"premature end|bad Huffman code|([3-9]|\d\d+) extraneous bytes")


def available_codecs() -> dict[str, bool]:
    """Say for each kind of compression whether the library that decodes it can be imported."""
    from pydicom.pixels import get_decoder

    kinds = {"RLE": RLE, "JPEG baseline": JPEG_8_BIT, "JPEG-LS": JPEG_LS, "JPEG 2000": JPEG_2000}
    available = {kind: PLUGIN[syntax] in get_decoder(UID(syntax)).available_plugins for kind, syntax in kinds.items()}
    try:
        _gdcm()
    except ImportError:
        return {**available, "JPEG lossless": False}
    return {**available, "JPEG lossless": True}


def high_bit_is_read(transfer_syntax: str, allocated: int) -> bool:
    """Return whether values are found where HighBit says they are: wherever bits come as they are stored."""
    return transfer_syntax == RLE or whole_values(transfer_syntax, allocated)


def whole_values(transfer_syntax: str, allocated: int) -> bool:
    """Return whether stored values are whole bytes that need no decoding; big endian bytes are swapped in pairs."""
    swapped = transfer_syntax == EXPLICIT_BIG and allocated == 8
    return transfer_syntax in NATIVE and allocated in (8, 16, 32) and not swapped


def is_lossy(dataset: Dataset, transfer_syntax: str) -> bool:
    """Return whether values were lost in this compression or an earlier one (PS3.3 C.7.6.1.1.5)."""
    lossy = dataset.get("LossyImageCompression")
    return lossy == "01" or transfer_syntax in LOSSY or (transfer_syntax == JPEG_2000_LOSSY and lossy != "00")


def decode_frame(dataset: Dataset, transfer_syntax: str, number: int) -> NDArray[np.generic]:
    """Return the stored values of a frame, (rows, columns), without the bits beyond BitsStored.

    Raises:
        DataError: a transfer syntax that is not decoded here.
        Exception: what a codec raises of a frame that is not whole.
    """
    from pydicom.pixels import get_decoder

    if transfer_syntax not in DECODED:
        raise DataError(
            "the transfer syntax is not decoded here",
            found=transfer_syntax,
            reason="transfer_syntax",
            expected="native, deflated, RLE, JPEG, JPEG-LS or JPEG 2000",
            hint="export the series uncompressed",
        )
    if transfer_syntax.startswith(JPEG_FAMILIES):
        frame = _encoded(dataset, transfer_syntax, number)
        if not frame.rstrip(PADDING).endswith(END_OF_STREAM):
            raise ValueError("the codestream has no end")
        if transfer_syntax in JPEG_BY_GDCM:
            return _by_gdcm(dataset, transfer_syntax, frame)
    if transfer_syntax == RLE and dataset.get("SamplesPerPixel") in (None, 1):
        return _run_lengths(dataset, _encoded(dataset, transfer_syntax, number))
    if dataset.get("BitsAllocated") == 1 and transfer_syntax in NATIVE - {EXPLICIT_BIG}:
        return _bits(dataset, number)
    plugin = PLUGIN.get(transfer_syntax, "")
    decoder = get_decoder(UID(transfer_syntax))
    values, _ = decoder.as_array(dataset, index=number, raw=True, decoding_plugin=plugin)
    return values


def _bits(dataset: Dataset, number: int) -> NDArray[np.uint8]:
    """Return a frame of single bits: packed from the lowest on, a frame begins where the last one ended (PS3.5 8.1.1).

    pydicom 3.0 takes a byte too few where a frame begins and ends within bytes, and fails.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    start, size = number * rows * columns, rows * columns
    packed = np.frombuffer(dataset.PixelData, np.uint8)[start // 8 : -(-(start + size) // 8)]
    bits = np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size]
    return bits.reshape(rows, columns)  # which fails where there are fewer


def _encoded(dataset: Dataset, transfer_syntax: str, number: int) -> bytes:
    """Return the codestream of a frame.

    Raises:
        DataError: it is of another matrix than the header says.
    """
    offsets = None
    if dataset.get("ExtendedOffsetTable"):
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = get_frame(dataset.PixelData, number, number_of_frames=frames, extended_offsets=offsets)
    if problem := Layout.of(dataset).codestream_problem(read_codestream(frame, transfer_syntax)):
        raise problem.error()
    return frame


def _run_lengths(dataset: Dataset, frame: bytes) -> NDArray[np.generic]:
    """Decode RLE (PS3.5 G): a segment for each byte of a value, the highest first; Pillow knows its code from TIFF."""
    from PIL import Image

    rows, columns, bytes_each = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated) // 8
    count, *starts = (int(word) for word in np.frombuffer(frame, "<u4", 16))
    size = rows * columns
    values = np.empty((size, bytes_each), np.uint8)
    ends = [*starts[1:count], len(frame)]
    for place, (start, end) in enumerate(zip(starts, ends, strict=False), start=1):
        # one row, as nothing tells where rows end; it raises where the segment is short
        segment = Image.frombytes("L", (size, 1), frame[start:end], "packbits", "L")
        values[:, -place] = np.frombuffer(segment.tobytes(), np.uint8)
    with suppress(ValueError):  # which says that there is no more than a few bytes of padding
        Image.frombytes("L", (size + min(rows, columns), 1), frame[starts[0] : ends[0]], "packbits", "L")
        more = f"a frame of more than {size} pixels"
        raise Problem("pixel_layout", more, f"{size}: {rows} rows, {columns} columns", NOT_ITS_HEADER).error()
    return _as_stored(dataset, values)


def _by_gdcm(dataset: Dataset, transfer_syntax: str, frame: bytes) -> NDArray[np.generic]:
    gdcm = _gdcm()
    rows, columns, allocated = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    signed, stored = int(dataset.get("PixelRepresentation", 0)), int(dataset.BitsStored)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(transfer_syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, signed))
    buffer, words = _with_stderr(image.GetBuffer)
    if DAMAGED.search(words):
        raise ValueError("the codestream is damaged")
    data = buffer.encode("utf-8", "surrogateescape")  # its bytes come as a str
    return _as_stored(dataset, np.frombuffer(data, np.uint8))


def _as_stored(dataset: Dataset, data: NDArray[np.uint8]) -> NDArray[np.generic]:
    """Return the bytes of a frame as its values, without the bits beyond BitsStored."""
    allocated, signed = int(dataset.BitsAllocated), dataset.get("PixelRepresentation", 0)
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    values = data.reshape(-1).view(dtype).reshape(int(dataset.Rows), int(dataset.Columns))
    return without_other_bits(values, int(dataset.BitsStored), dataset.get("HighBit"))


def without_other_bits(values: NDArray[Any], stored: int, high_bit: int | None) -> NDArray[Any]:
    """Return values without the bits above HighBit and below the stored ones; all of them where all are stored."""
    allocated = 8 * values.dtype.itemsize
    unused = allocated - stored
    above = unused if high_bit is None else allocated - 1 - int(high_bit)
    return (values << above) >> unused if unused else values


_Result = TypeVar("_Result")
_one_at_a_time = threading.Lock()


def _with_stderr(call: Callable[[], _Result]) -> tuple[_Result, bytes]:
    """Return what a C library returns, and what it wrote to standard error meanwhile.

    libjpeg fills up the rest of a damaged image and says so there alone. The call holds the interpreter's lock, so
    no other thread writes meanwhile.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as written:
        terminal = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        written.seek(0)
        return result, written.read()


def _gdcm() -> Any:
    import gdcm

    for switch in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        switch()  # it would write to the terminal
    return gdcm
