"""Where a file's pixels lie, and whether they can be read; nothing is decoded."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.valuerep import VR

from segpipe.dicom.codecs import (
    DECODED,
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    NATIVE,
    high_bit_is_read,
)
from segpipe.dicom.frames import text
from segpipe.dicom.model import Element, PixelStorage, Problem
from segpipe.dicom.pixel_layout import AGAIN, CONTRADICTS, Layout, encapsulation_problem

PIXEL_TAGS = ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009))
BEHIND_PIXELS = ((0xFFFA, 0xFFFA), (0xFFFC, 0xFFFC))  # signatures, padding
PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
UNDEFINED = 0xFFFFFFFF
VRS = frozenset(vr.value.encode() for vr in VR)

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
    layout = Layout.of(dataset)
    if syntax not in DECODED:
        return PixelStorage(syntax, problem=_not_decoded(syntax))
    problem = layout.bits_problem(high_bit_is_read(syntax, layout.allocated))
    if syntax == DEFLATED:
        stream.seek(0)
        there = len(pydicom.dcmread(stream, force=True).get("PixelData", None) or b"")
        return PixelStorage(syntax, problem=layout.length_problem(there, there) or problem)
    value = _value_of_pixels(dataset, stream)
    if isinstance(value, Problem):
        return PixelStorage(syntax, problem=value)
    tag, offset, length = value
    version = version_of(stream)
    if (length == UNDEFINED) == (syntax in NATIVE):
        found = "pixels that are not encapsulated" if syntax not in NATIVE else "encapsulated pixels"
        return PixelStorage(syntax, problem=not_as_declared(found, syntax, "pixels"))
    if length == UNDEFINED:
        length, problem = -1, encapsulation_problem(stream, version[0], syntax, layout, dataset) or problem
    else:
        behind = _problem_behind(dataset, stream, offset + length)
        problem = layout.length_problem(min(length, version[0] - offset), length) or behind or problem
    simple = tag == PIXEL_TAGS[0] and syntax != EXPLICIT_BIG and layout.frames == 1 and problem is None
    return PixelStorage(syntax, offset, length, problem, _attributes(dataset) if simple else (), version)


def _problem_behind(dataset: FileDataset, stream: BinaryIO, end: int) -> Problem | None:
    """Return the problem of bytes behind the pixels that are neither an element nor zeros: pixels may be shifted."""
    stream.seek(end)
    head = stream.read(8)
    if len(head) < 4 or not any(head):
        return None
    implicit, little = dataset.original_encoding
    tag = struct.unpack(("<" if little else ">") + "HH", head[:4])
    if tag in BEHIND_PIXELS or (not implicit and head[4:6] in VRS):  # some writers do not sort their elements
        return None
    return Problem(
        "pixel_layout", "bytes behind the pixels that are no element", "the end of the file, or an element", CONTRADICTS
    )


def _not_decoded(syntax: str) -> Problem:
    return Problem(
        "transfer_syntax",
        f"pixels in the transfer syntax {syntax}",
        "one that can be decoded here",
        "let the archive send it uncompressed (Explicit VR Little Endian)",
    )


def not_as_declared(found: str, declared: str, expected: str) -> Problem:
    """Return the problem of a file that does not follow its own transfer syntax."""
    return Problem(
        "transfer_syntax", found, f"{expected} as the transfer syntax {declared} of the file says", CONTRADICTS
    )


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


def _value_of_pixels(dataset: FileDataset, stream: BinaryIO) -> tuple[tuple[int, int], int, int] | Problem:
    """Return tag, offset and length of the element that the reading stopped at."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(12)
    tag = struct.unpack(order + "HH", head[:4]) if len(head) == 12 else ()
    if tag not in PIXEL_TAGS:
        need = Layout.of(dataset).bytes_needed
        expected = f"{need} bytes of pixels" if need > 0 else "pixels"
        return Problem("truncated", "no pixels: the file ends before them", expected, AGAIN)
    if implicit == (head[4:6] in PIXEL_VRS and head[6:8] == b"\0\0"):
        found = f"pixels with {'explicit' if implicit else 'implicit'} VR"
        return not_as_declared(found, text(dataset.file_meta, "TransferSyntaxUID") or guessed_syntax(dataset), "pixels")
    if implicit:
        return tag, stream.seek(-4, os.SEEK_CUR), struct.unpack(order + "L", head[4:8])[0]
    return tag, stream.tell(), struct.unpack(order + "L", head[8:12])[0]
