"""Valid DICOM slices of any orientation, for tests: classic and enhanced, with markers in every text attribute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
OBLIQUE = (0.9541666, -0.2080757, 0.2151061, 0.2785886, 0.880128, -0.3843997)
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}
TEXT_VRS = {"LO", "SH", "PN", "ST", "LT", "UT", "UC"}
MARKER = "MARKERXQZ"


@dataclass(frozen=True)
class Grid:
    """Where slices lie: spacing is PixelSpacing (rows first), step the distance between slices, all mm."""

    orientation: Sequence[float] = AXIAL
    rows: int = 12
    columns: int = 10
    slices: int = 6
    spacing: tuple[float, float] = (1.5, 1.25)
    step: float = 3.0
    origin: tuple[float, float, float] = (-20.0, 31.0, 5.0)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


def decimal(numbers: Iterable[float]) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [f"{number:.10g}"[:16] for number in numbers]


def series(grid: Grid = Grid(), modality: str = "CT", seed: int = 0, **attributes: Any) -> list[Dataset]:
    """A series of single-frame images, in the order of rising position, 16 bit signed."""
    study, uid, reference = generate_uid(), generate_uid(), generate_uid()
    random = np.random.default_rng(seed)
    images = []
    for number in range(grid.slices):
        image = blank(modality, SOP_CLASSES[modality], study, uid, reference)
        image.InstanceNumber = number + 1
        image.Rows, image.Columns = grid.rows, grid.columns
        image.ImageOrientationPatient = decimal(grid.orientation)
        image.ImagePositionPatient = decimal(np.array(grid.origin) + number * grid.step * grid.normal)
        image.PixelSpacing = decimal(grid.spacing)
        image.PixelData = random.integers(-1000, 1000, (grid.rows, grid.columns)).astype("<i2").tobytes()
        for name, value in attributes.items():
            setattr(image, name, value)
        images.append(image)
    return images


def tilted() -> list[Dataset]:
    """A series whose slices are shifted against each other, as by a tilted gantry."""
    images = series(Grid(slices=8))
    for number, image in enumerate(images):
        image.ImagePositionPatient[1] = float(image.ImagePositionPatient[1]) + number
    return images


def blank(modality: str, sop_class: str, study: str, uid: str, reference: str) -> Dataset:
    """An image without pixels and geometry."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = sop_class
    image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, uid, reference
    image.Modality = modality
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientName, image.PatientID = "Doe^Jane", "0815"
    image.PatientBirthDate, image.PatientSex = "19700101", "F"
    image.StudyDate, image.StudyTime = "20200102", "101112"
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "2", "Who^Doctor"
    image.SeriesNumber, image.Manufacturer = 1, "none"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = "1", "0"
    return image


def enhanced(grid: Grid = Grid(), modality: str = "MR", times: int = 1, shared: bool = True) -> Dataset:
    """An enhanced multi-frame image; time runs fastest."""
    image = blank(modality, ENHANCED[modality], generate_uid(), generate_uid(), generate_uid())
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.Rows, image.Columns = grid.rows, grid.columns
    image.NumberOfFrames = grid.slices * times
    image.PixelData = (
        np.random.default_rng(0).integers(0, 1000, (grid.slices * times, grid.rows, grid.columns)).astype("<i2")
    ).tobytes()
    common = Dataset()
    common.PixelMeasuresSequence = [Dataset()]
    common.PixelMeasuresSequence[0].PixelSpacing = decimal(grid.spacing)
    common.PlaneOrientationSequence = [Dataset()]
    common.PlaneOrientationSequence[0].ImageOrientationPatient = decimal(grid.orientation)
    image.PerFrameFunctionalGroupsSequence = []
    for number in range(grid.slices):
        for time in range(times):
            frame = Dataset()
            frame.PlanePositionSequence = [Dataset()]
            frame.PlanePositionSequence[0].ImagePositionPatient = decimal(
                np.array(grid.origin) + number * grid.step * grid.normal
            )
            frame.FrameContentSequence = [Dataset()]
            frame.FrameContentSequence[0].StackID = "1"
            frame.FrameContentSequence[0].InStackPositionNumber = number + 1
            frame.FrameContentSequence[0].TemporalPositionIndex = time + 1
            if not shared:
                frame.update(common)
            image.PerFrameFunctionalGroupsSequence.append(frame)
    if shared:
        image.SharedFunctionalGroupsSequence = [common]
    return image


def write(images: Iterable[Dataset], folder: Path, stem: str = "image") -> list[Path]:
    """Write the images as ``<stem>_000.dcm`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        path = folder / f"{stem}_{number:03d}.dcm"
        image.file_meta.MediaStorageSOPClassUID = image.get("SOPClassUID", "1.2.3")
        image.file_meta.MediaStorageSOPInstanceUID = image.get("SOPInstanceUID", "1.2.3")
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def plant(image: Dataset) -> None:
    """Put a marker into every text attribute that an image of CT, MR or PET may have, and into a private one."""
    from pydicom._dicom_dict import DicomDictionary

    for tag, (vr, multiplicity, _, retired, _) in DicomDictionary.items():
        group = tag >> 16
        if vr in TEXT_VRS and not retired and group in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040):
            value = MARKER if multiplicity == "1" else [MARKER, f"{MARKER}2"]
            setattr(image, keyword_for_tag(tag), value)
    image.private_block(0x0099, "SEGPIPE TEST", create=True).add_new(1, "LO", MARKER)


def position(image: Dataset, column: float, row: float) -> np.ndarray:
    """LPS mm of a pixel's centre by the standard's formula (PS3.3 C.7.6.2.1.1), written as its matrix."""
    x, y = (np.array(image.ImageOrientationPatient, float)[part] for part in (slice(3), slice(3, 6)))
    between_rows, between_columns = map(float, image.PixelSpacing)
    matrix = np.zeros((4, 4))
    matrix[:3, 0], matrix[:3, 1] = x * between_columns, y * between_rows
    matrix[:3, 3] = np.array(image.ImagePositionPatient, float)
    matrix[3, 3] = 1
    return (matrix @ [column, row, 0, 1])[:3]
