"""The attributes of a header, and of each of its frames: where it lies, and what tells it from others at its place.

A classic image has all attributes at the top of its header; an enhanced one in its functional groups, shared ones and
each frame's own (PS3.3 C.7.6.16), either of which may be absent. pydicom converts values when they are asked for, and
raises whatever a broken one leads it to: here a broken value is an absent one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from segpipe.dicom.clock import CLOCKS, seconds_of
from segpipe.dicom.derived import kind_of_code, kind_of_words
from segpipe.dicom.model import Derived

ASCII = frozenset(["CS", "DA", "DS", "DT", "IS", "TM", "UI"])  # no character set changes them
BLOCKS = range(0x10, 0x20)  # where private creators are, in practice


def text(dataset: Dataset, name: str) -> str:
    """Return a value as text, several joined by backslashes; empty where it is absent or cannot be read."""
    tag, vr = _tag(name)
    if tag not in dataset.keys():  # noqa: SIM118 - a data set's own `in` is ten times slower, and most are absent
        return ""
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.VR in (vr, None) and isinstance(raw.value, bytes):
        if vr in ASCII:  # what pydicom would make of it takes most of the time of a scan
            return "\\".join(part.strip("\0 ") for part in raw.value.decode("latin-1").split("\\"))
        if vr == "US" and len(raw.value) == 2:
            return str(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big"))
    value = _get(dataset, tag)
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value).strip()
    return "\\".join(str(part).strip() for part in value)


def numbers(value: Any) -> tuple[float, ...]:
    """Return the finite numbers of a value of any form; empty where one of them is none."""
    if value is None or isinstance(value, bytes):
        return ()
    parts = value.split("\\") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    try:
        values = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return ()
    return values if all(math.isfinite(number) for number in values) else ()


def whole_number(dataset: Dataset, name: str) -> int | None:
    """Return a value as a whole number, or None."""
    values = numbers(text(dataset, name))
    return int(values[0]) if values else None


def items(dataset: Dataset, name: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent or cannot be read."""
    value = _get(dataset, _tag(name)[0])
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else []


def private_value(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """Return a private value (PS3.5 7.8.1), or None."""
    present = dataset.keys()
    for block in BLOCKS:
        place = group << 16 | block
        if place in present and str(_get(dataset, BaseTag(place))).strip() == creator:
            return _get(dataset, BaseTag(group << 16 | block << 8 | element))
    return None


def _get(dataset: Dataset, tag: BaseTag) -> Any:
    if tag not in dataset.keys():  # noqa: SIM118 - see `text`
        return None
    try:
        return dataset[tag].value
    except Exception:  # noqa: BLE001 - see above
        return None


@cache
def _tag(name: str) -> tuple[BaseTag, str]:
    tag = Tag(name)
    return tag, dictionary_VR(tag)


Key = float | str | tuple[float, ...]
Triple = tuple[float, float, float]
Six = tuple[float, float, float, float, float, float]
Pair = tuple[float, float]
# What a position may be repeated for, in the order in which it is tried: name, sequence of functional groups, tag.
CATEGORIES = (
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("EchoTime", "", "EchoTime"),
    ("EchoNumbers", "", "EchoNumbers"),
    ("b-value", "MRDiffusionSequence", "DiffusionBValue"),
    ("b-value", "", "DiffusionBValue"),
    ("TemporalPosition", "FrameContentSequence", "TemporalPositionIndex"),
    ("TemporalPosition", "", "TemporalPositionIdentifier"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("TriggerTime", "", "TriggerTime"),
    ("CardiacPhase", "", "NominalPercentageOfCardiacPhase"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("AcquisitionNumber", "", "AcquisitionNumber"),
    ("InversionTime", "MRModifierSequence", "InversionTimes"),
    ("InversionTime", "", "InversionTime"),
    ("FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("FlipAngle", "", "FlipAngle"),
    ("FrameReferenceTime", "", "FrameReferenceTime"),
    ("RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    ("RepetitionTime", "", "RepetitionTime"),
    ("KVP", "CTXRayDetailsSequence", "KVP"),
    ("KVP", "", "KVP"),
    ("SliceThickness", "PixelMeasuresSequence", "SliceThickness"),
    ("SliceThickness", "", "SliceThickness"),
    ("SequenceName", "", "SequenceName"),
    ("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"),
    ("ConvolutionKernel", "", "ConvolutionKernel"),
    ("ComplexImageComponent", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("ComplexImageComponent", "", "ComplexImageComponent"),
)
SCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")
TABLE = "ModalityLUTSequence"
PRIVATE_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
    (0x0065, "Image Private Header", 0x09),
)
FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")


@dataclass(frozen=True)
class FrameHeader:
    """One frame: geometry in mm and LPS (None where it is missing or unusable), and what may tell it apart.

    Attributes:
        number: within its file, from 0.
        position: ImagePositionPatient.
        orientation: ImageOrientationPatient.
        spacing: PixelSpacing, rows first.
        stack: StackID.
        keys: values that may differ where positions repeat.
        times: values of which later volumes have later ones; clock times in s, of the day where there is no date.
        derived: what it was computed as, of other images.
        scale: what stored values are turned into measured ones by, those of `SCALE` that there are, and whether
            there is a `TABLE`.
    """

    number: int
    position: Triple | None
    orientation: Six | None
    spacing: Pair | None
    stack: str = ""
    keys: dict[str, Key] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    derived: Derived | None = None
    scale: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> tuple[Triple, Six, Pair]:
        """Position, orientation and spacing of a frame that has all of them.

        Raises:
            ValueError: one is missing.
        """
        if self.position is None or self.orientation is None or self.spacing is None:
            raise ValueError("this frame has no place")
        return self.position, self.orientation, self.spacing


def frames_of(dataset: Dataset) -> tuple[FrameHeader, ...]:
    """Read the attributes of every frame of an image, in the order of the file."""
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    own = items(dataset, "PerFrameFunctionalGroupsSequence")
    count = whole_number(dataset, "NumberOfFrames") or 1
    if not own:
        bare = count > 1 and not shared  # many frames and one position: no frame has a place of its own
        return tuple(_frame(number, [*shared, dataset], dataset, bare) for number in range(count))
    dimensions = _free_dimensions(dataset)
    return tuple(
        _frame(number, [*own[number : number + 1], *shared, dataset], dataset, number >= len(own), dimensions)
        for number in range(count)
    )


def _frame(
    number: int, levels: list[Dataset], top: Dataset, bare: bool, dimensions: tuple[int, ...] = ()
) -> FrameHeader:
    position = _found(levels, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _found(levels, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _found(levels, "PixelMeasuresSequence", "PixelSpacing")
    keys: dict[str, Key] = {}
    for name, sequence, tag in CATEGORIES:
        value = _value(levels, sequence, tag) if sequence else text(top, tag)
        if value and name not in keys:
            parsed = numbers(value)
            keys[name] = parsed[0] if len(parsed) == 1 else parsed or value
    _diffusion(levels, top, keys)
    kind = next((kind for name in FRAME_TYPES if (kind := _value(levels, name, "FrameType"))), "")
    keys["ImageType"] = kind or text(top, "ImageType")
    indices = numbers(_value(levels, "FrameContentSequence", "DimensionIndexValues"))
    keys |= {f"dimension {axis + 1}": indices[axis] for axis in dimensions if axis < len(indices)}
    whens = {
        "AcquisitionTime": _value(levels, "FrameContentSequence", "FrameAcquisitionDateTime")
        or text(top, "AcquisitionDateTime")
        or f"{text(top, 'AcquisitionDate')[:8]:8}{text(top, 'AcquisitionTime')}",
        "ContentTime": f"{text(top, 'ContentDate')[:8]:8}{text(top, 'ContentTime')}",
    }
    times = {name: seconds for name in CLOCKS if (seconds := seconds_of(whens[name])) is not None}
    for name in ("TriggerTime", "FrameReferenceTime"):
        if isinstance(delay := keys.get(name), float):
            times[name] = delay
    found = {name: _value(levels, "PixelValueTransformationSequence", name) or text(top, name) for name in SCALE}
    stack = _value(levels, "FrameContentSequence", "StackID")
    return FrameHeader(
        number,
        (position[0], position[1], position[2]) if not bare and len(position) == 3 else None,
        _perpendicular(orientation),
        (spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        stack,
        keys,
        times,
        _derived(levels, top, str(keys["ImageType"])),
        {name: value for name, value in found.items() if value} | ({TABLE: "1"} if TABLE in top else {}),
    )


def _derived(levels: list[Dataset], top: Dataset, image_type: str) -> Derived | None:
    for level in levels:
        for derivation in (level, *items(level, "DerivationImageSequence")):
            for code in items(derivation, "DerivationCodeSequence"):
                if kind := kind_of_code(text(code, "CodingSchemeDesignator"), text(code, "CodeValue")):
                    return kind
    if text(top, "MonoenergeticEnergyEquivalent"):
        return "spectral"
    technique = "VolumeBasedCalculationTechnique"
    said = next((value for name in FRAME_TYPES if (value := _value(levels, name, technique))), "") or text(
        top, technique
    )
    return kind_of_words(image_type, said, text(top, "Modality"))


def _value(levels: list[Dataset], sequence: str, tag: str) -> str:
    """Return the text of a tag in the first item of a sequence of the nearest level that has it."""
    for level in levels:
        for item in items(level, sequence)[:1]:
            if value := text(item, tag):
                return value
    return ""


def _found(levels: list[Dataset], sequence: str, tag: str) -> tuple[float, ...]:
    return numbers(_value(levels, sequence, tag) or text(levels[-1], tag))


def _diffusion(levels: list[Dataset], top: Dataset, keys: dict[str, Key]) -> None:
    direction = numbers(text(top, "DiffusionGradientOrientation"))
    for level in levels:
        for item in items(level, "MRDiffusionSequence")[:1]:
            for inner in items(item, "DiffusionGradientDirectionSequence")[:1]:
                direction = numbers(text(inner, "DiffusionGradientOrientation")) or direction
    if direction:
        keys["gradient direction"] = direction
    if "b-value" not in keys and (value := _private_b_value(top)) is not None:
        keys["b-value"] = value


def _private_b_value(dataset: Dataset) -> float | None:
    for group, creator, element in PRIVATE_B_VALUES:
        value = private_value(dataset, group, creator, element)
        if isinstance(value, bytes):
            value = value.decode("ascii", "ignore").strip("\0 ")
        if values := numbers(value):
            return values[0] % 1e6  # GE stores 1000000000 + b
    return None


def _free_dimensions(dataset: Dataset) -> tuple[int, ...]:
    """Return the axes of DimensionIndexValues that are neither stack, nor place in it, nor position."""
    places = {0x00209056, 0x00209057, 0x00200032, 0x00209113}
    pointers = [item.get("DimensionIndexPointer") for item in items(dataset, "DimensionIndexSequence")]
    return tuple(axis for axis, pointer in enumerate(pointers) if pointer is not None and pointer not in places)


def _perpendicular(orientation: tuple[float, ...]) -> Six | None:
    """Return directions of length 1 at right angles, within what three decimals of a header lose; else None."""
    if len(orientation) != 6:
        return None
    a, b, c, d, e, f = orientation
    across = a * d + b * e + c * f
    off = max(abs(math.hypot(a, b, c) - 1), abs(math.hypot(d, e, f) - 1), abs(across))
    return (a, b, c, d, e, f) if off < 5e-3 else None
