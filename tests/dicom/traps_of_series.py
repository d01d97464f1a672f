"""Traps between files: places at every scale, slices that do not agree, parts that are missing."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from make import Grid, enhanced, write
from pydicom.dataset import Dataset
from trap import Images, Trap, coded, edited, every, frames, scan_of

# --- places, at every scale ------------------------------------------------------------------------------------------


def fine(edge: float, slices: int = 20, step: float | None = None) -> Grid:
    """A stack of voxels with this edge in mm."""
    return Grid(rows=12, columns=10, slices=slices, spacing=(edge, edge), step=step or edge, origin=(-2.0, 3.1, 5.0))


def moved(images: Images, by: Callable[[int], tuple[float, float, float]], digits: int = 6) -> None:
    for number, image in enumerate(images):
        place = np.array(image.ImagePositionPatient, float) + by(number)
        image.ImagePositionPatient = [f"{value:.{digits}f}" for value in place]


def without(*numbers: int) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        for number in sorted(numbers, reverse=True):
            del images[number]

    return edit


def shifted(pixels: float, *numbers: int) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        edge = float(images[0].PixelSpacing[0])
        moved(images, lambda number: (pixels * edge if number in numbers else 0, 0, 0))

    return edit


def sheared(degrees: float, digits: int = 6) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        step = float(images[1].ImagePositionPatient[2]) - float(images[0].ImagePositionPatient[2])
        moved(images, lambda number: (0, number * step * np.tan(np.radians(degrees)), 0), digits)

    return edit


PLACED = {}
for _edge in (0.005, 0.03, 0.05, 0.1, 0.4, 3.0):
    _grid = fine(_edge)
    PLACED |= {
        f"{_edge} mm, a slice missing": Trap(edited(without(9), grid=_grid), "gap", ("1 slice(s) missing",)),
        f"{_edge} mm, a slice missing near an end": Trap(edited(without(1), grid=_grid), "gap"),
        f"{_edge} mm, one of five missing": Trap(edited(without(2), grid=fine(_edge, 5)), "gap"),
        f"{_edge} mm, a slice 5 pixels beside": Trap(edited(shifted(5, 7), grid=_grid), "in_plane_shift"),
        f"{_edge} mm, half of them a pixel beside": Trap(edited(shifted(2, *range(10)), grid=_grid), "in_plane_shift"),
        f"{_edge} mm, sheared by 0.07 degrees": Trap(edited(sheared(0.07), grid=_grid), None),
        f"{_edge} mm, tilted by 10 degrees": Trap(edited(sheared(10), grid=_grid), "gantry_tilt"),
        f"{_edge} mm, all in place": Trap(edited(lambda images: None, grid=_grid), None),
    }
PLACED |= {
    "0.0333 mm, positions of 3 decimals": Trap(edited(sheared(0, 3), grid=fine(0.0333)), None),
    "0.625 mm, positions of 1 decimal": Trap(edited(sheared(0, 1), grid=fine(0.625)), None),
    "thin pixels, a slice 5 pixels beside": Trap(edited(shifted(5, 3), grid=fine(0.01, 8, 0.1)), "in_plane_shift"),
}

# --- slices that do not agree ----------------------------------------------------------------------------------------

EIGHT = Grid(rows=12, columns=10, slices=8)


def only(start: int, step: int = 1, **attributes: Any) -> Callable[[Images], object]:
    """Give attributes to every ``step``-th slice from ``start`` on; None takes one away."""

    def edit(images: Images) -> None:
        for image in images[start::step]:
            for name, value in attributes.items():
                if value is None:
                    delattr(image, name)
                else:
                    setattr(image, name, value)

    return edit


def both(*edits: Callable[[Images], object]) -> Callable[[Images], object]:
    return lambda images: [edit(images) for edit in edits]


def one(number: int, **attributes: Any) -> Callable[[Images], object]:
    return lambda images: only(0, 1, **attributes)(images[number : number + 1])


def differs(modality: str, first: dict[str, Any], other: dict[str, Any], step: int = 2) -> Callable[[Path], object]:
    """Eight slices of which the half, alternating or the last ones, has other values."""
    return edited(both(every(**first), only(1 if step == 2 else 4, step, **other)), modality, EIGHT)


def clock(times: list[str], **more: Any) -> Callable[[Images], object]:
    def edit(images: Images) -> None:
        for image, time in zip(images, times, strict=True):
            image.AcquisitionTime = time
            for name, value in more.items():
                setattr(image, name, value)

    return edit


def numbered_by_halves(images: Images) -> None:
    """InstanceNumber 1, 5, 2, 6, ...: first one half, then the other."""
    for number, image in enumerate(images):
        image.InstanceNumber = number // 2 + 1 + 4 * (number % 2)


def of_frames(name: str, sequence: str, value: Callable[[int], Any], number: Callable[[int], bool]) -> Any:
    """Give frames of an enhanced image an attribute in a functional group."""

    def edit(image: Dataset) -> None:
        for place, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
            if number(place):
                item = Dataset()
                setattr(item, name, value(place))
                setattr(frame, sequence, [item])

    return edit


def with_table(image: Dataset) -> None:
    """Values by a table, which turns them round."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.LUTData = np.arange(4095, -1, -1, dtype="<u2").tobytes()
    table["LUTData"].VR = "OW"
    image.ModalityLUTSequence = [table]


def no_rescale_of_its_own(image: Dataset) -> None:
    del image.RescaleSlope, image.RescaleIntercept
    for place, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
        if place != 3:
            item = Dataset()
            item.RescaleSlope, item.RescaleIntercept, item.RescaleType = "2", "5", "US"
            frame.PixelValueTransformationSequence = [item]


def frames_of_reference(images: Images, own: int) -> None:
    for number, image in enumerate(images[:own]):
        image.FrameOfReferenceUID = f"1.2.3.{number + 1}"


ALTERNATING = [f"10{number % 2}{number // 2}00" for number in range(8)]  # 100000, 101000, 100100, 101100, ...
ODD_FIRST = [f"100{(number // 2 + 4 * (number % 2)):03d}" for number in range(8)]

CONSISTENCY = {
    "two patients, halves": Trap(
        differs("CT", {}, {"PatientID": "4711"}, 1), "mixed_attributes", ("PatientID", "4 of 8 slices")
    ),
    "two patients, taking turns": Trap(differs("MR", {}, {"PatientID": "4711"}), "mixed_attributes", ("PatientID",)),
    "a patient each": Trap(
        edited(lambda images: [setattr(image, "PatientID", f"P{n}") for n, image in enumerate(images)]),
        "mixed_attributes",
        ("PatientID",),
    ),
    "two issuers": Trap(
        differs("CT", {"IssuerOfPatientID": "A"}, {"IssuerOfPatientID": "B"}),
        "mixed_attributes",
        ("IssuerOfPatientID",),
    ),
    "a patient with a space": Trap(edited(one(2, PatientID="0815 ")), None),
    "no patient in one slice": Trap(edited(one(2, PatientID="")), None, ("PatientID is missing in 1 of 5 slices",)),
    "no issuer in some": Trap(edited(only(2, IssuerOfPatientID="A")), None, ("IssuerOfPatientID is missing in 2",)),
    "two units": Trap(differs("PT", {"Units": "BQML"}, {"Units": "CNTS"}), "mixed_attributes", ("Units",)),
    "two units, one slice": Trap(edited(both(every(Units="BQML"), one(4, Units="GML")), "PT"), "mixed_attributes"),
    "two rescale types": Trap(
        differs("CT", {"RescaleType": "HU"}, {"RescaleType": "US"}), "mixed_attributes", ("RescaleType",)
    ),
    "no rescale type in one": Trap(edited(one(1, RescaleType="HU")), None, ("RescaleType is missing in 4 of 5",)),
    "no slope and intercept in one": Trap(
        edited(one(2, RescaleSlope=None, RescaleIntercept=None)), "mixed_attributes", ("RescaleSlope", "all slices")
    ),
    "an empty intercept in one": Trap(edited(one(0, RescaleIntercept="")), "mixed_attributes", ("RescaleIntercept",)),
    "no slope in most": Trap(edited(only(1, RescaleSlope=None), "PT"), "mixed_attributes", ("RescaleSlope",)),
    "no rescale in one, compressed": Trap(
        coded("jpeg_ls", one(3, RescaleIntercept=None)), "mixed_attributes", ("RescaleIntercept",)
    ),
    "no rescale in one frame": Trap(frames(no_rescale_of_its_own), "mixed_attributes", ("(frame 4)", "RescaleSlope")),
    "no rescale at all": Trap(
        edited(only(0, RescaleSlope=None, RescaleIntercept=None)), None, ("values may be in no unit",)
    ),
    "a slope of 0 in one": Trap(edited(one(2, RescaleSlope="0")), "missing_tag", ("RescaleSlope", "1 of 5 files")),
    "two intercepts in one": Trap(edited(one(2, RescaleIntercept=["0", "1"])), "missing_tag", ("RescaleIntercept",)),
    "a table of values in one": Trap(
        edited(both(only(0, RescaleSlope=None, RescaleIntercept=None), lambda images: with_table(images[2])), "MR"),
        "mixed_attributes",
        ("ModalityLUTSequence",),
    ),
    "slopes in other words": Trap(edited(both(every(RescaleSlope="1"), one(2, RescaleSlope="1.000000"))), None),
    "another intercept in one": Trap(
        edited(one(2, RescaleIntercept="0")), None, ("RescaleIntercept differs between slices (2 values)",)
    ),
    "another slope in one": Trap(edited(one(2, RescaleSlope="2")), None, ("RescaleSlope differs between slices",)),
    "two echoes, taking turns": Trap(
        differs("MR", {"EchoTime": "10"}, {"EchoTime": "80"}), None, ("split by EchoTime, 2 of 2",), volumes=2
    ),
    "two echoes, halves": Trap(
        differs("MR", {"EchoTime": "10"}, {"EchoTime": "80"}, 1), None, ("split by EchoTime",), volumes=2
    ),
    "another echo in one": Trap(
        edited(both(every(EchoTime="10"), one(2, EchoTime="80")), "MR"), "mixed_attributes", ("10 and 80",)
    ),
    "another echo in one frame": Trap(
        frames(of_frames("EffectiveEchoTime", "MREchoSequence", lambda n: 10.0 + 70 * (n == 2), lambda n: True)),
        "mixed_attributes",
        ("EchoTime: 10 and 80",),
    ),
    "echoes within 1 %": Trap(edited(both(every(EchoTime="10"), one(2, EchoTime="10.05")), "MR"), None),
    "two tube voltages": Trap(differs("CT", {"KVP": "120"}, {"KVP": "80"}), None, ("split by KVP",), volumes=2),
    "another tube voltage at the end": Trap(
        edited(both(every(KVP="120"), one(4, KVP="80"))), "mixed_attributes", ("KVP: 120 and 80",)
    ),
    "two kernels": Trap(
        differs("CT", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, 1),
        None,
        ("split by ConvolutionKernel",),
        volumes=2,
    ),
    "another kernel in one": Trap(
        edited(both(every(ConvolutionKernel="B30f"), one(2, ConvolutionKernel="B70f"))),
        "mixed_attributes",
        ("ConvolutionKernel",),
    ),
    "no kernel in some": Trap(edited(only(3, ConvolutionKernel="B30f")), None, ("Kernel is missing in 3 of 5",)),
    "two flip angles": Trap(differs("MR", {"FlipAngle": "5"}, {"FlipAngle": "26"}), None, ("FlipAngle",), volumes=2),
    "two b-values": Trap(
        differs("MR", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}), None, ("DiffusionBValue",), volumes=2
    ),
    "magnitude and phase of frames": Trap(
        frames(
            of_frames(
                "ComplexImageComponent",
                "MRImageFrameTypeSequence",
                lambda number: "PHASE" if number % 2 else "MAGNITUDE",
                lambda number: True,
            )
        ),
        None,
        ("split by ComplexImageComponent",),
        volumes=2,
    ),
    "magnitude and phase": Trap(
        differs("MR", {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        None,
        ("split by ImageType, value 3",),
        volumes=2,
    ),
    "halves of two time points": Trap(
        differs("MR", {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, 1),
        None,
        ("split by TemporalPositionIdentifier",),
        volumes=2,
    ),
    "a time point each": Trap(
        edited(lambda images: [setattr(one, "TemporalPositionIdentifier", n) for n, one in enumerate(images)], "MR"),
        None,
        ("TemporalPositionIdentifier differs from slice to slice",),
    ),
    "two cardiac phases": Trap(
        differs("CT", {"NominalPercentageOfCardiacPhase": 40.0}, {"NominalPercentageOfCardiacPhase": 75.0}, 1),
        None,
        ("split by NominalPercentageOfCardiacPhase",),
        volumes=2,
    ),
    "attenuation corrected and not": Trap(
        differs("PT", {"CorrectedImage": ["ATTN", "DECY"]}, {"CorrectedImage": ["DECY"]}, 1),
        None,
        ("split by CorrectedImage",),
        volumes=2,
    ),
    "times that take turns": Trap(edited(clock(ALTERNATING), "CT", EIGHT), None, ("AcquisitionTime",), volumes=2),
    "times that take turns past midnight": Trap(
        edited(clock([f"{(235956 if n % 2 == 0 else 1000) + n // 2:06d}" for n in range(8)]), "PT", EIGHT),
        None,
        ("split by AcquisitionTime",),
        volumes=2,
    ),
    "times that take turns, MR, numbered so": Trap(
        edited(both(clock(ALTERNATING), numbered_by_halves), "MR", EIGHT), None, ("AcquisitionTime",), volumes=2
    ),
    "times that take turns, MR, 3D": Trap(
        edited(clock(ALTERNATING, MRAcquisitionType="3D"), "MR", EIGHT), None, ("AcquisitionTime",), volumes=2
    ),
    "every second slice first, MR": Trap(edited(clock(ODD_FIRST), "MR", EIGHT), None, ("takes turns",)),
    "one after the other, CT": Trap(edited(clock([f"10000{n}" for n in range(8)]), "CT", EIGHT), None),
    "a frame of reference each": Trap(
        edited(lambda images: frames_of_reference(images, 5)), None, ("FrameOfReferenceUID differs", "(5 values): no")
    ),
    "a frame of reference in nearly each": Trap(
        edited(lambda images: frames_of_reference(images, 6), "CT", EIGHT), None, ("(7 values): no DICOM SEG",)
    ),
} | {
    f"two of {name}": Trap(differs(modality, {name: first}, {name: other}), None, (f"{name} differs between slices",))
    for modality, name, first, other in (
        ("CT", "SeriesNumber", 1, 2),
        ("CT", "PatientName", "Doe^Jane", "Roe^Jane"),
        ("CT", "PatientBirthDate", "19700101", "19700102"),
        ("CT", "PatientSex", "F", "M"),
        ("CT", "PatientPosition", "HFS", "FFS"),
        ("CT", "BodyPartExamined", "CHEST", "ABDOMEN"),
        ("MR", "Laterality", "L", "R"),
        ("CT", "Manufacturer", "A", "B"),
        ("CT", "ManufacturerModelName", "A", "B"),
        ("CT", "DeviceSerialNumber", "1", "2"),
        ("CT", "ContrastBolusAgent", "A", "B"),
        ("CT", "PhotometricInterpretation", "MONOCHROME1", "MONOCHROME2"),
        ("CT", "BitsStored", 12, 16),
        ("CT", "PixelRepresentation", 0, 1),
        ("PT", "DecayCorrection", "START", "ADMIN"),
        ("CT", "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "HELIX"]),
        ("CT", "SliceThickness", "3", "5"),
        ("MR", "RepetitionTime", "500", "600"),
        ("MR", "InversionTime", "500", "600"),
        ("CT", "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"),
    )
}  # fmt: skip


# --- parts that are missing -------------------------------------------------------------------------------------------


def concatenated(parts: tuple[int, ...], **changes: Any) -> Callable[[Path], object]:
    """An enhanced image in three files of two frames, of which these are there."""

    def make(folder: Path) -> None:
        whole = enhanced()
        size = 2 * whole.Rows * whole.Columns * 2
        images = []
        for number in parts:
            image = deepcopy(whole)
            image.SOPInstanceUID = f"{whole.SOPInstanceUID[:50]}.{number}"
            image.ConcatenationUID, image.NumberOfFrames = "1.2.3.4", 2
            image.InConcatenationNumber, image.InConcatenationTotalNumber = number, 3
            image.ConcatenationFrameOffsetNumber = 2 * (number - 1)
            image.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[2 * number - 2 : 2 * number]
            image.PixelData = whole.PixelData[size * (number - 1) : size * number]
            for name, value in changes.items():
                if value is None:
                    delattr(image, name)
                else:
                    setattr(image, name, value)
            images.append(image)
        write(images, folder)

    return make


def two_times(times: Callable[[int, int], str], **more: Any) -> Callable[[Path], object]:
    """Two volumes at the same places, told apart by a time alone."""

    def make(folder: Path) -> None:
        first, second = scan_of("MR"), scan_of("MR")
        for volume, images in enumerate((first, second)):
            for number, image in enumerate(images):
                for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
                    setattr(image, name, getattr(first[0], name))
                image.AcquisitionTime = times(volume, number)
                values = np.frombuffer(image.PixelData, "<u2") // 2 + 2000 * volume  # the second is brighter
                image.PixelData = values.astype("<u2").tobytes()
                for name, value in more.items():
                    setattr(image, name, value)
        write([*first, *second], folder)

    return make


def seconds(start: int) -> Callable[[int, int], str]:
    def time(volume: int, number: int) -> str:
        at = (start + 5 * volume + number) % 86400
        return f"{at // 3600:02d}{at // 60 % 60:02d}{at % 60:02d}"

    return time


LAST_SECONDS = 86400 - 3
PARTS = {
    "the last part missing": Trap(concatenated((1, 2)), "incomplete", ("part(s) 1, 2", "1 to 3")),
    "the first part missing": Trap(concatenated((2, 3)), "incomplete", ("part(s) 2, 3",)),
    "a part within missing": Trap(concatenated((1, 3)), "incomplete", ("part(s) 1, 3",)),
    "one part of three": Trap(concatenated((2,)), "incomplete"),
    "the last part missing, no total": Trap(
        concatenated((1, 2), InConcatenationTotalNumber=None), None, ("InConcatenationTotalNumber is missing",)
    ),
    "a part within missing, no total": Trap(concatenated((1, 3), InConcatenationTotalNumber=None), "incomplete"),
    "parts that say other offsets": Trap(concatenated((1, 2, 3), ConcatenationFrameOffsetNumber=0), "incomplete"),
    "all parts": Trap(concatenated((1, 2, 3)), None),
    "fewer images than acquired": Trap(edited(every(ImagesInAcquisition=7)), None, ("speaks of 7 images, 5 were",)),
    "fewer images than in the series": Trap(
        edited(every(NumberOfSeriesRelatedInstances=7)), None, ("speaks of 7 images, 5 were",)
    ),
    "fewer slices than said": Trap(edited(every(NumberOfSlices=6), "PT"), None, ("speaks of 6 images, 5 were",)),
    "fewer time points than said": Trap(
        edited(every(NumberOfTemporalPositions=3), "MR"), None, ("speaks of 3 volumes, 1 were",)
    ),
    "fewer images than acquired, two times": Trap(
        two_times(seconds(36000), ImagesInAcquisition=15, NumberOfTemporalPositions=3),
        None,
        ("speaks of 15 images, 10 were", "speaks of 3 volumes, 2 were"),
        volumes=2,
    ),
    "two times past midnight": Trap(two_times(seconds(LAST_SECONDS)), None, ("past midnight",), volumes=2),
    "two times past midnight, the date stays": Trap(
        two_times(seconds(LAST_SECONDS), AcquisitionDate="20200101"), None, ("past midnight",), volumes=2
    ),
    "two times around midnight, the second after": Trap(two_times(seconds(86400 - 5)), None, ("midnight",), volumes=2),
    "two times of one day": Trap(two_times(seconds(36000)), None, ("split by AcquisitionTime",), volumes=2),
}
