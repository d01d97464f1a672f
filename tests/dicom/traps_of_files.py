"""Traps within a file: pixels of another length than the header says, other encodings than declared, other bits."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
from encode import encode
from make import enhanced
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from trap import Images, Trap, coded, edited, every, frames, scan_of

# --- pixels that are not as long as the header says -------------------------------------------------------------------


def again_encapsulated(image: Dataset, has_table: bool, change: Callable[[bytes], bytes]) -> None:
    coded_frames = list(generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames))
    image.PixelData = change(encapsulate(coded_frames, has_bot=has_table))


def swapped_offsets(data: bytes) -> bytes:
    """The second and the third frame change places in the basic offset table."""
    return data[:12] + data[16:20] + data[12:16] + data[20:]


def extended_offsets(image: Dataset, lose: int) -> None:
    coded_frames = list(generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames))
    image.PixelData, offsets, lengths = pydicom.encaps.encapsulate_extended(coded_frames)
    image.ExtendedOffsetTable, image.ExtendedOffsetTableLengths = offsets[lose:], lengths[lose:]
    image["PixelData"].VR = "OB"


def one_group_more(image: Dataset) -> None:
    image.NumberOfFrames -= 1
    image.PixelData = image.PixelData[: -2 * image.Rows * image.Columns]


LENGTHS = {
    "rows halved": Trap(edited(every(Rows=6)), "pixel_layout", ("240 bytes", "120:")),
    "columns halved": Trap(edited(every(Columns=5)), "pixel_layout", ("240 bytes", "120:")),
    "a row less": Trap(edited(every(Rows=11)), "pixel_layout", ("240 bytes", "220:")),
    "8 bits declared on 16": Trap(
        edited(every(BitsAllocated=8, BitsStored=8, HighBit=7)), "pixel_layout", ("240 bytes", "120:")
    ),
    "16 bits declared on 8": Trap(
        edited(lambda images: [setattr(image, "PixelData", image.PixelData[:120]) for image in images]),
        "truncated",
        ("120 bytes", "240 bytes"),
    ),
    "rows halved in one slice": Trap(edited(lambda images: every(Rows=6)(images[2:3])), "pixel_layout", ("1 of 5",)),
    "no number of frames": Trap(frames(lambda image: image.__delattr__("NumberOfFrames")), "pixel_layout", ("1440",)),
    "a frame less in the number": Trap(frames(lambda image: setattr(image, "NumberOfFrames", 5)), "pixel_layout"),
    "a group more than frames": Trap(frames(one_group_more), "pixel_layout", ("of 6 frames", "5, the")),
    "rows halved, big endian": Trap(coded("big_endian", every(Rows=6)), "pixel_layout", ("240 bytes",)),
    "rows halved, deflated": Trap(coded("deflated", every(Rows=6)), "pixel_layout", ("240 bytes",)),
    "rows halved, run lengths": Trap(coded("pydicom_rle", every(Rows=6)), "pixel_layout", ("60",)),
    "a row less, run lengths": Trap(coded("rle", every(Rows=11)), "pixel_layout", ("110",)),
    "columns halved, run lengths": Trap(coded("rle", every(Columns=5)), "pixel_layout", ("60",)),
    "8 bits declared on 16, run lengths": Trap(
        coded("pydicom_rle", every(BitsAllocated=8, BitsStored=8, HighBit=7)), "pixel_layout", ("2 run-length", "1:")
    ),
    "8 bits declared on 16, JPEG lossless": Trap(
        coded("jpeg_lossless", every(BitsAllocated=8, BitsStored=8, HighBit=7)), "pixel_layout"
    ),
    "a frame less in the number, run lengths": Trap(
        frames(lambda image: setattr(image, "NumberOfFrames", 5), compress=True), "pixel_layout", ("6 compr", "5 by")
    ),
    "no number of frames, run lengths": Trap(
        frames(lambda image: delattr(image, "NumberOfFrames"), compress=True), "pixel_layout", ("6 compressed", "1 by")
    ),
    "an offset table of frames swapped": Trap(
        frames(lambda image: again_encapsulated(image, True, swapped_offsets), True), "pixel_layout", ("table",)
    ),
    "an extended offset table without a frame": Trap(
        frames(lambda image: extended_offsets(image, 8), compress=True), "pixel_layout", ("5 frame(s)",)
    ),
    "a right extended offset table": Trap(frames(lambda image: extended_offsets(image, 0), compress=True), None),
    "no offset table": Trap(frames(lambda image: again_encapsulated(image, False, bytes), compress=True), None),
    "a byte of padding": Trap(
        edited(every(Rows=11, Columns=9, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(range(100)))), None
    ),
}  # fmt: skip
for _syntax in ("jpeg_ls", "jpeg_2000", "jpeg_lossless"):
    LENGTHS[f"rows halved, {_syntax}"] = Trap(coded(_syntax, every(Rows=6)), "pixel_layout", ("12 rows", "6 rows"))
    LENGTHS[f"columns doubled, {_syntax}"] = Trap(
        coded(_syntax, every(Columns=20)), "pixel_layout", ("10 columns", "20 columns")
    )


def pixels_pushed(inserted: bytes, implicit: bool) -> Callable[[Path], object]:
    """A series of which one file has bytes in front of its pixels that nothing counts."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        for number, image in enumerate(scan_of()):
            content, pixels = dataset_bytes(image, syntax), bytes(image.PixelData)
            if number == 2:
                content = content.replace(pixels, inserted + pixels)
            (folder / f"image_{number:03d}.dcm").write_bytes(meta_bytes(image, syntax) + content)

    return make


for _words, _bytes in {
    "two pixels": b"\x2a\0\x2a\0",
    "an element's head": b"OW\0\0\xf0\0\0\0",
    "negative": b"\0\xfc" * 4,
}.items():
    for _implicit in (False, True):
        LENGTHS[f"{_words} in front of the pixels, {'implicit' if _implicit else 'explicit'}"] = Trap(
            pixels_pushed(_bytes, _implicit), "pixel_layout", ("bytes behind the pixels that are no element",)
        )


# --- a transfer syntax that the data set does not follow --------------------------------------------------------------

ITEM = b"\xfe\xff\x00\xe0"
PADDING_ELEMENT = b"\xfc\xff\xfc\xff"


def written(declared: str, really: str, padding: int = 0) -> Callable[[Path], object]:
    """A series that says one transfer syntax and is written in another."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for number, image in enumerate(scan_of()):
            if really == ExplicitVRBigEndian:
                image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
            content = dataset_bytes(image, really)
            if padding:
                long = b"OB\0\0" if really != ImplicitVRLittleEndian else b""
                content += PADDING_ELEMENT + long + padding.to_bytes(4, "little") + bytes(padding)
            if really == DeflatedExplicitVRLittleEndian:
                packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
                content = packer.compress(content) + packer.flush()
            (folder / f"image_{number:03d}.dcm").write_bytes(meta_bytes(image, declared) + content)

    return make


def meta_bytes(image: Dataset, declared: str) -> bytes:
    meta = image.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = declared
    stream = pydicom.filebase.DicomIO(io.BytesIO())
    stream.write(bytes(128) + b"DICM")
    write_file_meta_info(stream, meta)
    return bytes(stream.parent.getvalue())


def dataset_bytes(image: Dataset, syntax: str) -> bytes:
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    copy = Dataset({element.tag: deepcopy(element) for element in image})
    copy["PixelData"].VR = "OW"
    write_dataset(stream, copy)
    return bytes(stream.getvalue())


def pixels_alone(declared: str, of_pixels: str) -> Callable[[Path], object]:
    """All is written as declared but the last element, the pixels."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for number, image in enumerate(scan_of()):
            pixels = Dataset()
            pixels.PixelData = image.PixelData
            pixels["PixelData"].VR = "OW"
            head = dataset_bytes(image, declared)[: -len(dataset_bytes(pixels, declared))]
            tail = PADDING_ELEMENT + b"OB\0\0" + bytes(4)
            path = folder / f"image_{number:03d}.dcm"
            path.write_bytes(meta_bytes(image, declared) + head + dataset_bytes(pixels, of_pixels) + tail)

    return make


def groups_alone(declared: str, of_groups: str) -> Callable[[Path], object]:
    """The items of the functional groups are written otherwise than all else."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        image = enhanced()
        content = b""
        for element in image:
            one = Dataset({element.tag: element})
            if element.VR != "SQ":
                if element.keyword == "PixelData":
                    element.VR = "OW"
                content += plain_bytes(one, declared)
                continue
            value = b""
            for item in element.value:
                body = plain_bytes(item, of_groups)
                value += ITEM + len(body).to_bytes(4, "little") + body
            head = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
            head += b"" if declared == ImplicitVRLittleEndian else b"SQ\0\0"
            content += head + len(value).to_bytes(4, "little") + value
        (folder / "image_000.dcm").write_bytes(meta_bytes(image, declared) + content)

    return make


def a_sequence_alone(declared: str, of_items: str, undefined: bool) -> Callable[[Path], object]:
    """A sequence among the first elements has items that are written otherwise than all else."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.3", "1.2.3.4"
        body = plain_bytes(item, of_items)
        if undefined:
            value = ITEM + b"\xff" * 4 + body + b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
        else:
            value = ITEM + len(body).to_bytes(4, "little") + body
        head = b"\x08\x00\x11\x11" + (b"" if declared == ImplicitVRLittleEndian else b"SQ\0\0")
        sequence = head + (b"\xff" * 4 if undefined else len(value).to_bytes(4, "little")) + value
        for number, image in enumerate(scan_of()):
            image["PixelData"].VR = "OW"
            content = b"".join(
                plain_bytes(Dataset({element.tag: element}), declared)
                + (sequence if element.keyword == "Manufacturer" else b"")
                for element in image
            )
            (folder / f"image_{number:03d}.dcm").write_bytes(meta_bytes(image, declared) + content)

    return make


def plain_bytes(dataset: Dataset, syntax: str) -> bytes:
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == ImplicitVRLittleEndian, True
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


def not_compressed_declared(folder: Path) -> None:
    for number, image in enumerate(scan_of()):
        path = encode(image, "rle", folder / f"image_{number:03d}.dcm")
        path.write_bytes(path.read_bytes().replace(RLELossless.encode(), ExplicitVRLittleEndian.encode()))


def declared(syntax: str) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        for image in images:
            image.file_meta.TransferSyntaxUID = syntax

    return edit


def with_comments(images: Images) -> None:
    """Codestreams that begin with a comment, as both JPEG and JPEG-LS may."""
    for image in images:
        stream = next(generate_frames(image.PixelData, number_of_frames=1))
        image.PixelData = encapsulate([stream[:2] + b"\xff\xfe\0\x04by" + stream[2:]])


_LITTLE, _IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian
_BIG, _DEFLATED = ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian
ENCODINGS = {
    "explicit declared, implicit written": Trap(written(_LITTLE, _IMPLICIT), "transfer_syntax", ("implicit VR",)),
    "explicit declared, implicit written, padded": Trap(
        written(_LITTLE, _IMPLICIT, 8), "transfer_syntax", ("implicit VR",)
    ),
    "implicit declared, explicit written": Trap(written(_IMPLICIT, _LITTLE), "transfer_syntax", ("explicit VR",)),
    "implicit declared, explicit written, padded": Trap(
        written(_IMPLICIT, _LITTLE, 126), "transfer_syntax", ("explicit VR",)
    ),
    "big endian declared, little written": Trap(written(_BIG, _LITTLE), "transfer_syntax", ("little endian", "big")),
    "big endian declared, implicit written": Trap(written(_BIG, _IMPLICIT), "transfer_syntax", ("implicit", "big")),
    "little endian declared, big written": Trap(written(_LITTLE, _BIG), "transfer_syntax", ("big endian",)),
    "implicit declared, big endian written": Trap(written(_IMPLICIT, _BIG), "transfer_syntax", ("big endian",)),
    "deflated declared, explicit written": Trap(written(_DEFLATED, _LITTLE), "transfer_syntax", ("deflated",)),
    "deflated declared, implicit written": Trap(written(_DEFLATED, _IMPLICIT, 8), "transfer_syntax", ("deflated",)),
    "explicit declared, deflated": Trap(written(_LITTLE, _DEFLATED), "transfer_syntax", ("deflated",)),
    "JPEG-LS declared, run lengths": Trap(
        coded("pydicom_rle", declared("1.2.840.10008.1.2.4.80")), "transfer_syntax", ("as RLE", "JPEG-LS")
    ),
    "JPEG-LS declared, JPEG 2000": Trap(
        coded("jpeg_2000", declared("1.2.840.10008.1.2.4.80")), "transfer_syntax", ("as JPEG 2000", "JPEG-LS")
    ),
    "JPEG declared, JPEG-LS": Trap(
        coded("jpeg_ls", declared("1.2.840.10008.1.2.4.70")), "transfer_syntax", ("as JPEG-LS", "JPEG,")
    ),
    "JPEG-LS with comments": Trap(coded("jpeg_ls", with_comments), None),
    "compression declared, not compressed": Trap(
        written("1.2.840.10008.1.2.4.80", _LITTLE), "transfer_syntax", ("not encapsulated",)
    ),
    "compression declared, implicit written": Trap(written(RLELossless, _IMPLICIT), "transfer_syntax", ("implicit",)),
    "not compressed declared, compressed": Trap(not_compressed_declared, "transfer_syntax", ("encapsulated",)),
    "pixels alone implicit, padded": Trap(pixels_alone(_LITTLE, _IMPLICIT), "transfer_syntax", ("pixels with impl",)),
    "pixels alone explicit, padded": Trap(pixels_alone(_IMPLICIT, _LITTLE), "transfer_syntax", ("pixels with expl",)),
    "functional groups alone explicit": Trap(groups_alone(_IMPLICIT, _LITTLE), "transfer_syntax", ("groups",)),
    "functional groups alone implicit": Trap(groups_alone(_LITTLE, _IMPLICIT), None),  # read right
    "a sequence alone implicit": Trap(a_sequence_alone(_LITTLE, _IMPLICIT, False), None),
    "a sequence alone implicit, no length": Trap(a_sequence_alone(_LITTLE, _IMPLICIT, True), None),
    "a sequence alone explicit": Trap(a_sequence_alone(_IMPLICIT, _LITTLE, False), None),
    "a sequence alone explicit, no length": Trap(
        a_sequence_alone(_IMPLICIT, _LITTLE, True), None, ("a sequence is written with explicit VR",), volumes=0
    ),
    "explicit and padded": Trap(written(_LITTLE, _LITTLE, 126), None),
    "implicit and padded": Trap(written(_IMPLICIT, _IMPLICIT, 8), None),
}  # fmt: skip

# --- HighBit above the last stored bit -------------------------------------------------------------------------------


def high_bits(images: Images) -> None:
    """Values in the upper twelve bits, as the header says."""
    for image in images:
        image.PixelData = (np.frombuffer(image.PixelData, "<u2") << 4).tobytes()
        image.HighBit = 15


def high_bits_in(syntax: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        images = scan_of()
        high_bits(images)
        for number, image in enumerate(images):
            encode(image, syntax, folder / f"image_{number:03d}.dcm")

    return make


HIGH_BITS = {
    f"high bits, {syntax}": Trap(high_bits_in(syntax), None, ("HighBit 15",))
    for syntax in ("explicit", "implicit", "big_endian", "deflated", "pydicom_rle")
} | {
    f"high bits, {syntax}": Trap(coded(syntax, every(HighBit=15)), "pixel_layout", ("HighBit 15", "HighBit 11"))
    for syntax in ("jpeg_lossless", "jpeg_ls", "jpeg_2000")
}
HIGH_BITS |= {
    "high bit below the stored ones": Trap(edited(every(HighBit=7)), "pixel_layout", ("HighBit 7",)),
    "more bits stored than there are": Trap(edited(every(BitsStored=17, HighBit=16)), "pixel_layout", ("Stored 17",)),
    "high bit beyond all bits": Trap(edited(every(HighBit=16)), "pixel_layout", ("HighBit 16",)),
}
