"""Where a file's pixels lie, whether they are all there, and whether they can be decoded; nothing is decoded."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset

from segpipe.dicom.codecs import DECODED, END_OF_STREAM, PADDING
from segpipe.dicom.frames import text, whole_number
from segpipe.dicom.model import Element, PixelStorage

IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_FAMILIES = "1.2.840.10008.1.2.4."
PIXEL_TAGS = ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009))
UNDEFINED = 0xFFFFFFFF

# all that a grey image of one frame needs besides its pixels
_PIXEL_ATTRIBUTES = """
    Modality SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope
    RescaleType LossyImageCompression
"""
PIXEL_ATTRIBUTES = tuple(tag_for_keyword(name) or 0 for name in _PIXEL_ATTRIBUTES.split())
# with one of these, it needs the whole header
_WHOLE_HEADER_ATTRIBUTES = """
    PerFrameFunctionalGroupsSequence SharedFunctionalGroupsSequence PixelValueTransformationSequence
    ModalityLUTSequence RealWorldValueMappingSequence FloatPixelPaddingValue ExtendedOffsetTable
"""
WHOLE_HEADER_ATTRIBUTES = tuple(tag_for_keyword(name) or 0 for name in _WHOLE_HEADER_ATTRIBUTES.split())


def version_of(stream: BinaryIO) -> tuple[int, int]:
    """Return size and time of change of an open file, which tell whether it is still the one that was scanned."""
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def find_pixels(dataset: FileDataset, stream: BinaryIO) -> PixelStorage:
    """Look at what follows a header read with ``stop_before_pixels`` from ``stream``."""
    syntax = text(dataset.file_meta, "TransferSyntaxUID") or guessed_syntax(dataset)
    decodable = syntax in DECODED
    rows, columns = whole_number(dataset, "Rows") or 0, whole_number(dataset, "Columns") or 0
    frames = whole_number(dataset, "NumberOfFrames") or 1
    bits = rows * columns * (whole_number(dataset, "SamplesPerPixel") or 1) * frames
    need = (bits * (whole_number(dataset, "BitsAllocated") or 16) + 7) // 8
    expected = f"{need} bytes of pixels" if need else "pixels"
    if syntax == DEFLATED:
        return _deflated(stream, need)
    value = _value_of_pixels(dataset, stream)
    if value is None:
        return PixelStorage(syntax, missing="no pixels: the file ends before them", expected=expected)
    tag, offset, length = value
    version = version_of(stream)
    there = version[0] - offset
    if length == UNDEFINED:
        fragments, whole = _fragments(stream, there + offset, syntax)
        missing = "" if whole and fragments >= frames else f"{fragments} complete compressed part(s)"
        length, expected = -1, f"{frames}, and an end mark"
    else:
        missing = f"{min(length, there)} bytes of pixels" if min(length, there) < need else ""
    usual = tag == PIXEL_TAGS[0] and (length < 0) == (syntax not in (IMPLICIT_LITTLE, EXPLICIT_LITTLE))
    attributes = _attributes(dataset) if usual and frames == 1 and not missing else ()
    return PixelStorage(syntax, offset, length, missing, expected, decodable, attributes, version)


def _attributes(dataset: FileDataset) -> tuple[Element, ...]:
    present = dataset.keys()
    if any(tag in present for tag in WHOLE_HEADER_ATTRIBUTES):
        return ()
    elements = [dataset.get_item(tag) for tag in PIXEL_ATTRIBUTES if tag in present]
    raw = [
        (int(element.tag), element.VR, element.value)
        for element in elements
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and element.is_little_endian
    ]
    return tuple(raw) if len(raw) == len(elements) else ()


def guessed_syntax(dataset: FileDataset) -> str:
    """Return the transfer syntax of a file without meta information, as pydicom found it to be."""
    implicit, little = dataset.original_encoding
    return IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG


def _value_of_pixels(dataset: FileDataset, stream: BinaryIO) -> tuple[tuple[int, int], int, int] | None:
    """Return tag, offset and length of the element that the reading stopped at; None where it has no pixels."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(12)
    tag = struct.unpack(order + "HH", head[:4]) if len(head) == 12 else ()
    if tag not in PIXEL_TAGS:
        return None
    if implicit:
        return tag, stream.seek(-4, os.SEEK_CUR), struct.unpack(order + "L", head[4:8])[0]
    return tag, stream.tell(), struct.unpack(order + "L", head[8:12])[0]


def _fragments(stream: BinaryIO, size: int, syntax: str) -> tuple[int, bool]:
    """Walk the items of encapsulated pixels (PS3.5 A.4): complete fragments, and whether nothing is cut off."""
    count, end = -1, 0  # the first item is the table of offsets
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return max(count, 0), _codestream_ends(stream, end, syntax)
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > size:
            return max(count, 0), False
        end = stream.seek(length, os.SEEK_CUR)
        count += 1
    return max(count, 0), not head and _codestream_ends(stream, end, syntax)  # some writers leave the end mark out


def _codestream_ends(stream: BinaryIO, end: int, syntax: str) -> bool:
    """Return whether the last fragment of a kind of JPEG, which ends at ``end``, holds the end of its stream."""
    if not syntax.startswith(JPEG_FAMILIES):
        return True
    stream.seek(max(end - 16, 0))
    return stream.read(16).rstrip(PADDING).endswith(END_OF_STREAM)


def _deflated(stream: BinaryIO, need: int) -> PixelStorage:
    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True)
    there = len(dataset.get("PixelData", None) or b"")
    missing = f"{there} bytes of pixels" if there < need else ""
    return PixelStorage(DEFLATED, missing=missing, expected=f"{need} bytes of pixels")
