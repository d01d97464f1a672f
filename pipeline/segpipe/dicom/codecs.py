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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from segpipe.errors import DataError

NATIVE = frozenset(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
JPEG_BY_GDCM = frozenset(_JPEG + end for end in ("51", "53", "55", "57", "70"))
JPEG_8_BIT, JPEG_LS, JPEG_LS_LOSSY = _JPEG + "50", _JPEG + "80", _JPEG + "81"
JPEG_2000, JPEG_2000_LOSSY = _JPEG + "90", _JPEG + "91"
LOSSY = frozenset(_JPEG + end for end in ("50", "51", "53", "55", "81"))
DECODED = NATIVE | JPEG_BY_GDCM | {RLE, JPEG_8_BIT, JPEG_LS, JPEG_LS_LOSSY, JPEG_2000, JPEG_2000_LOSSY}
PLUGIN = {JPEG_8_BIT: "pillow", JPEG_LS: "pyjpegls", JPEG_LS_LOSSY: "pyjpegls", JPEG_2000: "pillow"}
PLUGIN |= {JPEG_2000_LOSSY: "pillow", RLE: "pydicom"}
DAMAGED = re.compile(rb"premature end|bad Huffman code|([3-9]|\d\d+) extraneous bytes")
END_OF_STREAM = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
PADDING = b"\0\xff"  # what writers fill a fragment with to an even length


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
    if transfer_syntax.startswith(_JPEG):
        frame = _encoded(dataset, number)
        if not frame.rstrip(PADDING).endswith(END_OF_STREAM):
            raise ValueError("the codestream has no end")
        if transfer_syntax in JPEG_BY_GDCM:
            return _by_gdcm(dataset, transfer_syntax, frame)
    if transfer_syntax == RLE and dataset.get("SamplesPerPixel") in (None, 1):
        return _run_lengths(dataset, _encoded(dataset, number))
    plugin = PLUGIN.get(transfer_syntax, "")
    decoder = get_decoder(UID(transfer_syntax))
    values, _ = decoder.as_array(dataset, index=number, raw=True, decoding_plugin=plugin)
    return values


def _encoded(dataset: Dataset, number: int) -> bytes:
    """Return the codestream of a frame."""
    offsets = None
    if dataset.get("ExtendedOffsetTable"):
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = int(dataset.get("NumberOfFrames") or 1)
    return get_frame(dataset.PixelData, number, number_of_frames=frames, extended_offsets=offsets)


def _run_lengths(dataset: Dataset, frame: bytes) -> NDArray[np.generic]:
    """Decode RLE (PS3.5 G): a segment for each byte of a value, the highest first; Pillow knows its code from TIFF."""
    from PIL import Image

    rows, columns, bytes_each = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated) // 8
    count, *starts = (int(word) for word in np.frombuffer(frame, "<u4", 16))
    if count != bytes_each:
        raise ValueError("another number of segments than bytes")
    size = rows * columns
    values = np.empty((size, bytes_each), np.uint8)
    ends = [*starts[1:count], len(frame)]
    for place, (start, end) in enumerate(zip(starts, ends, strict=False), start=1):
        # one row, as nothing tells where rows end; it raises where the segment is short
        segment = Image.frombytes("L", (size, 1), frame[start:end], "packbits", "L")
        values[:, -place] = np.frombuffer(segment.tobytes(), np.uint8)
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
    unused = allocated - int(dataset.BitsStored)
    return (values << unused) >> unused if unused else values


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
