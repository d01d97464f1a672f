"""Read one file's header: is it DICOM, is it an image, and what says where its slices lie."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import UID

from segpipe.dicom.codecs import is_lossy
from segpipe.dicom.encoding import groups_misread, has_explicit_items, misdeclared
from segpipe.dicom.frames import FrameHeader, frames_of, items, numbers, private_value, text, whole_number
from segpipe.dicom.model import CAPTURES, PassedOver, PixelStorage, Problem
from segpipe.dicom.pixel_layout import NOT_ITS_HEADER, Layout
from segpipe.dicom.pixel_storage import find_pixels
from segpipe.dicom.pixels import UNITS_BY_DEFINITION
from segpipe.dicom.privacy import kind_of

DICOM_NAMES = (".dcm", ".ima", ".dicom", ".dic")
SERIES_UID = 0x0020000E
APPLE_DOUBLE = b"\x00\x05\x16\x07"
UNNAMED = {  # newer than pydicom's dictionary
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
}
NOT_VOLUMES = ("Secondary Capture", "RT Image", "Parametric Map", "Segmentation", "Dose")
MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "IVUS", "OCT", "OPT", "IO", "PX", "OT")
IN_PLACE_OF_A_UID = """
    PatientID IssuerOfPatientID PatientName PatientBirthDate PatientSex Modality FrameOfReferenceUID SeriesNumber
    SeriesDate SeriesTime SeriesDescription ProtocolName BodyPartExamined Manufacturer StationName DeviceSerialNumber
    ImageType ScanOptions KVP ConvolutionKernel ContrastBolusAgent SequenceName EchoTime RepetitionTime FlipAngle
    AcquisitionNumber
"""
COMPARED = """
    PatientID IssuerOfPatientID PatientName PatientBirthDate PatientSex PatientPosition BodyPartExamined Laterality
    Manufacturer ManufacturerModelName DeviceSerialNumber ContrastBolusAgent Units CorrectedImage DecayCorrection
    PhotometricInterpretation BitsStored PixelRepresentation SeriesNumber SOPClassUID FrameOfReferenceUID
    MRAcquisitionType
"""
COUNTS = """
    ImagesInAcquisition NumberOfSlices NumberOfSeriesRelatedInstances NumberOfTemporalPositions NumberOfTimeSlices
    CardiacNumberOfImages
"""
SCOUTS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY")


@dataclass(frozen=True)
class Concatenation:
    """Which part of a multi-frame image a file is (PS3.3 C.7.6.16.2.2.4); the first has number 1 and offset 0."""

    uid: str
    number: int
    total: int | None
    offset: int | None


@dataclass(frozen=True)
class Header:
    """What grouping and judging need to know of one image file.

    Free text stands only in ``description``, ``identity`` and ``compared``.

    Attributes:
        identity: of an image without SeriesInstanceUID, what has to agree in its place.
        counts: of `COUNTS`, how many images, slices or volumes there should be.
        compared: of `COMPARED`, what slices of a volume are compared in.
        frame_count: as the header has it, also where ``frames`` are not read.
    """

    path: Path
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    frame_of_reference_uid: str
    rows: int
    columns: int
    scout: bool
    instance_number: int | None
    counts: dict[str, int]
    compared: dict[str, str]
    concatenation: Concatenation | None
    value_tags: tuple[str, ...]
    pixels: PixelStorage
    problem: Problem | None
    notes: tuple[str, ...]
    description: str
    frames: tuple[FrameHeader, ...]
    identity: dict[str, str]
    frame_count: int

    @property
    def is_capture(self) -> bool:
        """Whether it is stored as Secondary Capture."""
        return self.sop_class_uid in CAPTURES


def read_header(path: Path) -> Header | PassedOver:
    """Read a file's header and put the file in its class.

    Returns:
        A header for an image; else what the file is, and why it is passed over.
    """
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except OSError as error:
        return PassedOver(path, "unreadable", f"the file cannot be read ({kind_of(error)})")


def _read(path: Path, stream: BinaryIO) -> Header | PassedOver:
    start = stream.read(132)
    named = path.suffix.lower() in DICOM_NAMES
    magic = start[128:132] == b"DICM"
    if start[:4] == APPLE_DOUBLE and path.name.startswith("._"):
        return PassedOver(path, "not_dicom", "the Finder's companion of a file")
    if not (magic or named or _begins_like_dicom(start)):
        return PassedOver(path, "not_dicom")
    looks = magic or named
    stream.seek(0)
    try:
        other = misdeclared(stream)
        stream.seek(0)
        dataset = other.dataset if other else pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        sop_class = sop_class_of(dataset)
        plausible = sop_class.is_valid and len(sop_class) > 10 and not sop_class.startswith("1.2.840.10008.1.2")
        if plausible or (text(dataset, "Modality") and whole_number(dataset, "Rows")):
            return _classify(path, stream, dataset, sop_class, other.problem if other else None)
        words = "the header ends early or is damaged" if start else "the file is empty"
    except (MemoryError, KeyboardInterrupt):
        raise
    except zlib.error:
        words = "the deflated data end early or are damaged"
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken file leads it to
        words = f"the header is damaged ({kind_of(error)})"
    if looks and has_explicit_items(stream):
        words = "a sequence is written with explicit VR, the rest with implicit VR as the transfer syntax says"
    return PassedOver(path, "unreadable", words) if looks else PassedOver(path, "not_dicom")


def _begins_like_dicom(start: bytes) -> bool:
    """Return whether a file without preamble starts with an element of group 0002 or 0008, in either byte order."""
    if len(start) < 8 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    if re.fullmatch(rb"[A-Z]{2}", start[4:6]):
        return True
    return int.from_bytes(start[4:8], "little") < 1 << 16  # implicit VR: a length


def sop_class_of(dataset: FileDataset) -> UID:
    """Return SOPClassUID, or what the file's meta information has in its place; empty where there is neither."""
    meta = getattr(dataset, "file_meta", None)
    return UID(text(dataset, "SOPClassUID") or (text(meta, "MediaStorageSOPClassUID") if meta else ""))


def _classify(
    path: Path, stream: BinaryIO, dataset: FileDataset, sop_class: UID, problem: Problem | None
) -> Header | PassedOver:
    name = UNNAMED.get(sop_class, sop_class.name)
    known = name != str(sop_class) and bool(sop_class)
    if known:
        image = "Image Storage" in name or "Volume Storage" in name
        image = image or name.startswith(("Enhanced", "Legacy Converted Enhanced"))
        image = image and not any(word in name for word in NOT_VOLUMES)
        image = image and "SR" not in name.split()
    else:
        image = bool(whole_number(dataset, "Rows") and whole_number(dataset, "Columns"))
    cut = max(dataset.keys(), default=0) <= SERIES_UID  # before, or within, what says where it belongs
    if (cut or not (text(dataset, "SeriesInstanceUID") or whole_number(dataset, "Rows"))) and (image or not known):
        return PassedOver(path, "unreadable", "the header ends early")
    capture = str(sop_class) in CAPTURES and whole_number(dataset, "Rows") and whole_number(dataset, "Columns")
    if not image and not capture:
        return PassedOver(path, "non_image", name if known else "a private SOP class")
    pixels = PixelStorage("", problem=problem) if problem else find_pixels(dataset, stream)
    if pixels.problem is None:
        pixels = replace(pixels, problem=groups_misread(dataset, pixels.transfer_syntax))
    return _header(path, dataset, sop_class, pixels)


def _header(path: Path, dataset: FileDataset, sop_class: UID, pixels: PixelStorage) -> Header:
    size = (whole_number(dataset, "Rows") or 0) * (whole_number(dataset, "Columns") or 0)
    frames = frames_of(dataset) if size > 0 and pixels.problem is None else ()  # a damaged count may be endless
    image_type = tuple(value.upper() for value in text(dataset, "ImageType").split("\\"))
    notes = []
    if is_lossy(dataset, pixels.transfer_syntax):
        notes.append("lossy compression: values are not those of the scanner")
    if not text(dataset, "SOPClassUID"):
        notes.append("SOPClassUID is missing: no DICOM SEG can refer to these slices")
    scaled = "ModalityLUTSequence" in dataset or any("RescaleSlope" in frame.scale for frame in frames)
    if text(dataset, "Modality") in UNITS_BY_DEFINITION and frames and not scaled:
        notes.append("RescaleSlope is missing: values may be in no unit")
    if pixels.problem is None and (note := Layout.of(dataset).note):
        notes.append(note)
    return Header(
        path=path,
        study_uid=text(dataset, "StudyInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        sop_class_uid=str(sop_class),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        modality=modality if (modality := text(dataset, "Modality")) in MODALITIES else "OT",
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        rows=whole_number(dataset, "Rows") or 0,
        columns=whole_number(dataset, "Columns") or 0,
        scout=any(value.startswith(SCOUTS) for value in image_type),
        instance_number=whole_number(dataset, "InstanceNumber"),
        counts=_counts(dataset),
        compared={name: value for name in COMPARED.split() if (value := text(dataset, name))},
        concatenation=_concatenation(dataset),
        value_tags=tuple(
            text(dataset, name) for name in ("RescaleSlope", "RescaleIntercept", "BitsStored", "PixelRepresentation")
        ),
        pixels=pixels,
        problem=_problem(dataset, image_type, pixels, frames),
        notes=tuple(notes),
        description=text(dataset, "SeriesDescription"),
        frames=frames,
        identity={} if text(dataset, "SeriesInstanceUID") else _identity(dataset),
        frame_count=whole_number(dataset, "NumberOfFrames") or 1,
    )


def _identity(dataset: FileDataset) -> dict[str, str]:
    return {name: text(dataset, name) for name in IN_PLACE_OF_A_UID.split()}


def _counts(dataset: FileDataset) -> dict[str, int]:
    counts = {name: count for name in COUNTS.split() if (count := whole_number(dataset, name))}
    if not text(dataset, "SeriesType").startswith("DYNAMIC"):  # of a static PET it counts beds
        counts.pop("NumberOfTimeSlices", None)
    return counts


def _concatenation(dataset: FileDataset) -> Concatenation | None:
    number = whole_number(dataset, "InConcatenationNumber")
    if number is None:
        return None
    return Concatenation(
        text(dataset, "ConcatenationUID"),
        number,
        whole_number(dataset, "InConcatenationTotalNumber"),
        whole_number(dataset, "ConcatenationFrameOffsetNumber"),
    )


def _problem(
    dataset: FileDataset, image_type: tuple[str, ...], pixels: PixelStorage, frames: tuple[FrameHeader, ...]
) -> Problem | None:
    """Return the first thing that keeps a file out of any volume, in the order in which it matters."""
    if "MOSAIC" in image_type or mosaic_tiles(dataset) > 1:
        return Problem(
            "mosaic",
            "all slices of a volume as tiles of one image",
            "one slice an image",
            "export it as enhanced multi-frame, or convert it with a tool that knows the vendor's mosaic",
        )
    photometric = text(dataset, "PhotometricInterpretation")
    samples = whole_number(dataset, "SamplesPerPixel")
    if (samples or 1) != 1 or (photometric and not photometric.startswith("MONOCHROME")):
        found = f"{samples} samples a pixel" if samples not in (None, 1) else "a palette, or no grey values"
        return Problem(
            "color", found, "grey values (MONOCHROME1 or MONOCHROME2)", "use the series that this picture was made from"
        )
    problem = pixels.problem or _missing_tag(dataset, frames) or _more_groups_than_frames(dataset, frames)
    return problem or (_capture_problem(dataset) if text(dataset, "SOPClassUID") in CAPTURES else None)


def _capture_problem(dataset: FileDataset) -> Problem | None:
    """Return what shows that a Secondary Capture is the picture of a screen, or of no known unit."""
    hint = "use the series that this picture was made from"
    bits = whole_number(dataset, "BitsStored") or 0
    if bits <= 8:
        return Problem("secondary_capture", f"a Secondary Capture of {bits} bits a pixel", "more than 8", hint)
    if text(dataset, "BurnedInAnnotation").upper() == "YES":
        return Problem("secondary_capture", "a Secondary Capture with burned-in annotation", "none", hint)
    groups = [*items(dataset, "SharedFunctionalGroupsSequence"), *items(dataset, "PerFrameFunctionalGroupsSequence")]
    scaled = [dataset, *(item for group in groups for item in items(group, "PixelValueTransformationSequence"))]
    if text(dataset, "Modality") == "CT" and not any(
        text(one, "RescaleSlope") and text(one, "RescaleIntercept") for one in scaled
    ):
        found = "a Secondary Capture of CT without RescaleSlope and RescaleIntercept"
        return Problem("secondary_capture", found, "both, so that values are HU", hint)
    return None


def _more_groups_than_frames(dataset: FileDataset, frames: tuple[FrameHeader, ...]) -> Problem | None:
    groups = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    if groups <= len(frames):
        return None
    found, expected = f"functional groups of {groups} frames", f"{len(frames)}, the number of frames"
    return Problem("pixel_layout", found, expected, NOT_ITS_HEADER)


def _missing_tag(dataset: FileDataset, frames: tuple[FrameHeader, ...]) -> Problem | None:
    hint = "ask for the original images of the scanner"
    for name in ("SOPInstanceUID", "Rows", "Columns", "BitsAllocated"):
        value = text(dataset, name)
        if not value or value == "0":
            return Problem("missing_tag", f"no {name}", "a value", hint)
    for frame in frames:
        where = f" in frame {frame.number + 1}" if len(frames) > 1 else ""
        for measure, name, expected in (
            (frame.position, "ImagePositionPatient", "three finite numbers"),
            (frame.orientation, "ImageOrientationPatient", "two perpendicular directions of length 1"),
            (frame.spacing, "PixelSpacing", "two numbers above 0"),
        ):
            if measure is None:
                return Problem("missing_tag", f"no usable {name}{where}", expected, hint)
        for name in ("RescaleSlope", "RescaleIntercept"):
            value = frame.scale.get(name, "0" if name == "RescaleIntercept" else "1")
            if len(factor := numbers(value)) != 1 or (name == "RescaleSlope" and not factor[0]):
                found, hint = f"a {name}{where} that is no number, or 0", "export the series again from its source"
                return Problem("missing_tag", found, "one number, of a slope not 0", hint)
    if not frames:
        return Problem("missing_tag", "no frame", "NumberOfFrames of at least 1", hint)
    return None


def mosaic_tiles(dataset: FileDataset) -> int:
    """Return how many slices a vendor says to have tiled into one image; 0 where none says so.

    Siemens: private ``(0019,xx0A)`` or the CSA header's NumberOfImagesInMosaic; UIH: private ``(0065,xx50)``.
    """
    for group, creator, element in ((0x0019, "SIEMENS MR HEADER", 0x0A), (0x0065, "Image Private Header", 0x50)):
        if values := numbers(private_value(dataset, group, creator, element)):
            return int(values[0])
    raw = private_value(dataset, 0x0029, "SIEMENS CSA HEADER", 0x10)
    if not isinstance(raw, bytes):
        return 0
    at = raw.find(b"NumberOfImagesInMosaic")
    count = re.match(rb"\s*(\d+)", raw[at + 100 : at + 116]) if at >= 0 else None
    return int(count[1]) if count else 0
