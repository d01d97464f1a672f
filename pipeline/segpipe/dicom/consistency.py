"""Do the slices of a volume agree in what their values mean and in whose they are?

`RULES` is the whole of it: what is compared, how, and what follows where slices differ. Values are compared, not
characters: text without the spaces around it, numbers within 1 %, factors as numbers. What a header says once in each
of several slices in a way of its own (a time, a frame of reference each) tells no parts apart. Words name files and
numbers, never text of a header.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segpipe.dicom.clock import clock_order
from segpipe.dicom.frames import Key, numbers
from segpipe.dicom.geometry import judge_geometry
from segpipe.dicom.slices import Group, Name, Slice, slice_name, stack_of

Compare = Literal["text", "1 %", "rounding", "present", "interleaved"]
Effect = Literal["refuse", "split", "note"]
WITHIN = {"1 %": 0.01, "rounding": 1e-6}
MOST_INTERLEAVED = 3  # acquisitions that take turns from slice to slice
MR_COMPONENT = 2  # of ImageType: magnitude, phase, real or imaginary


@dataclass(frozen=True)
class Rule:
    """What is compared, and what follows.

    Attributes:
        name: the attribute, as in the standard.
        value: of a slice; empty where it has none.
        compare: ``text`` without insignificant spaces, numbers within ``1 %`` or ``rounding`` (a millionth),
            ``present`` (only whether there is one), or ``interleaved`` (times by which acquisitions take turns in
            space).
        effect: where slices differ. ``split`` makes a volume of each value where each is one by its geometry, and
            refuses the series otherwise. A value that is missing in some slices alone is noted, but for ``present``.
        modalities: of which alone it is asked; all where there is none.
        own: a value of its own in each slice says nothing.
        remark: what follows from a difference besides.
    """

    name: str
    value: Callable[[Slice], Key]
    compare: Compare
    effect: Effect
    modalities: tuple[str, ...] = ()
    own: bool = False
    remark: str = ""


def _tag(name: str, compare: Compare, effect: Effect, remark: str = "") -> Rule:
    """Compare what stands once in each file."""
    return Rule(name, lambda part: part.header.compared.get(name, ""), compare, effect, remark=remark)


def _key(name: str, compare: Compare, effect: Effect, label: str = "", own: bool = False) -> Rule:
    """Compare what each frame may have for itself."""
    return Rule(label or name, lambda part: part.frame.keys.get(name, ""), compare, effect, own=own)


def _scale(name: str, compare: Compare, effect: Effect, *modalities: str) -> Rule:
    """Compare what stored values are turned into measured ones by."""
    return Rule(name, lambda part: part.frame.scale.get(name, ""), compare, effect, modalities)


RULES: tuple[Rule, ...] = (
    _tag("PatientID", "text", "refuse"),
    _tag("IssuerOfPatientID", "text", "refuse"),
    _tag("Units", "text", "refuse"),
    _scale("RescaleType", "text", "refuse"),
    _scale("RescaleSlope", "present", "refuse"),
    _scale("RescaleIntercept", "present", "refuse"),
    _scale("ModalityLUTSequence", "present", "refuse"),
    _key("EchoTime", "1 %", "split"),
    _key("b-value", "1 %", "split", label="DiffusionBValue"),
    _key("FlipAngle", "1 %", "split"),
    _key("ComplexImageComponent", "text", "split"),
    Rule("ImageType, value 3", lambda part: _component(part), "text", "split", ("MR",)),
    _key("TemporalPosition", "text", "split", label="TemporalPositionIdentifier", own=True),
    _key("CardiacPhase", "1 %", "split", label="NominalPercentageOfCardiacPhase"),
    _key("KVP", "1 %", "split"),
    _key("ConvolutionKernel", "text", "split"),
    _tag("CorrectedImage", "text", "split"),
    Rule("AcquisitionTime", lambda part: part.frame.times.get("AcquisitionTime", ""), "interleaved", "split"),
    _tag("FrameOfReferenceUID", "text", "note", ": no DICOM SEG, RTSTRUCT or SR can be written"),
    _tag("SOPClassUID", "text", "note"),
    _tag("SeriesNumber", "text", "note"),
    _tag("PatientName", "text", "note"),
    _tag("PatientBirthDate", "text", "note"),
    _tag("PatientSex", "text", "note"),
    _tag("PatientPosition", "text", "note"),
    _tag("BodyPartExamined", "text", "note"),
    _tag("Laterality", "text", "note"),
    _tag("Manufacturer", "text", "note"),
    _tag("ManufacturerModelName", "text", "note"),
    _tag("DeviceSerialNumber", "text", "note"),
    _tag("ContrastBolusAgent", "text", "note"),
    _tag("PhotometricInterpretation", "text", "note"),
    _tag("BitsStored", "text", "note"),
    _tag("PixelRepresentation", "text", "note"),
    _tag("DecayCorrection", "text", "note"),
    _key("ImageType", "text", "note"),
    _key("SliceThickness", "1 %", "note"),
    _key("RepetitionTime", "1 %", "note"),
    _key("InversionTime", "1 %", "note"),
    _scale("RescaleSlope", "rounding", "note", "CT"),
    _scale("RescaleIntercept", "rounding", "note", "CT"),
)


def _component(part: Slice) -> Key:
    kinds = str(part.frame.keys.get("ImageType", "")).split("\\")
    return kinds[MR_COMPONENT] if len(kinds) > MR_COMPONENT else ""


def agreeing(group: Group, name: Name) -> list[Group]:
    """Return a group whose slices agree, with notes; or the volumes that it consists of; or the whole group refused."""
    if group.reason is not None or len(group.slices) < 2:
        return [group]
    notes = []
    for rule in RULES:
        if rule.modalities and group.slices[0].header.modality not in rule.modalities:
            continue
        parts, missing = _parts(rule, group.slices)
        if rule.compare == "interleaved" and len(parts) > 1 and not _borne_out(parts, group.slices):
            notes.append(f"{rule.name} takes turns from slice to slice: an interleaved acquisition, or two in one")
            continue
        if len(parts) > 1 and rule.effect != "note":
            if rule.own and len(parts) == len(group.slices) > 2:
                notes.append(f"{rule.name} differs from slice to slice")
                continue
            return _split(rule, parts, missing, group, name)
        if len(parts) > 1:
            notes.append(f"{rule.name} differs between slices ({len(parts)} values){rule.remark}")
        if parts and missing:
            notes.append(f"{rule.name} is missing in {len(missing)} of {len(group.slices)} slices")
    return [group.part(group.slices, "", *notes)]


def _parts(rule: Rule, slices: Sequence[Slice]) -> tuple[list[list[int]], list[int]]:
    """Return which slices have a value in common, by falling number of them, and which have none."""
    values = [rule.value(part) for part in slices]
    if rule.compare == "interleaved":
        return _interleaved(values, slices), []
    given = [index for index, value in enumerate(values) if value != ""]
    missing = [index for index, value in enumerate(values) if value == ""]
    if rule.compare == "present":
        return ([given, missing] if given and missing else [given or missing]), []
    parts: list[list[int]] = []
    last: object = None
    for index in sorted(given, key=lambda index: _sortable(values[index])):
        if parts and _same(values[index], last, WITHIN.get(rule.compare)):
            parts[-1].append(index)
        else:
            parts.append([index])
            last = values[index]
    return sorted(parts, key=len, reverse=True), missing


def _sortable(value: Key) -> tuple[tuple[float, ...], str]:
    return numbers(value), str(value)


def _same(value: Key, other: object, within: float | None) -> bool:
    if within is None:
        return _text(value) == _text(other)
    ours, theirs = numbers(value), numbers(other)
    if not ours or len(ours) != len(theirs):
        return _text(value) == _text(other)
    return bool(np.allclose(ours, theirs, rtol=within, atol=0))


def _text(value: object) -> str:
    return "\\".join(part.strip(" \0") for part in str(value).split("\\"))


def _split(rule: Rule, parts: Sequence[Sequence[int]], missing: Sequence[int], group: Group, name: Name) -> list[Group]:
    slices = [[group.slices[index] for index in part] for part in parts]
    if rule.effect == "split" and not missing and all(_is_whole(part) for part in slices):
        groups = []
        for number, part in enumerate(slices, start=1):
            by = f"{rule.name}, {number} of {len(slices)}"
            groups += agreeing(group.part(part, by, f"slices of one series split by {by}"), name)
        return groups
    words = "a value in all slices or in none" if rule.compare == "present" else "one value in a volume"
    if rule.compare == "interleaved":
        words = "slices of one acquisition"
    detail = (
        f"{slice_name(slices[0][0], name)} and {slice_name(slices[1][0], name)} differ in {rule.name}"
        f"{_numbers_of(rule, slices)} ({len(slices[0])} of {len(group.slices)} slices are like the first), "
        f"expected {words}. Export each volume as a series of its own, or the series again from its source."
    )
    return [group.refused("mixed_attributes", detail)]


def _numbers_of(rule: Rule, parts: Sequence[Sequence[Slice]]) -> str:
    if rule.compare not in WITHIN:
        return ""
    return ": " + " and ".join(", ".join(f"{one:g}" for one in numbers(rule.value(part[0]))) for part in parts[:2])


def _is_whole(slices: Sequence[Slice]) -> bool:
    return len(slices) > 1 and judge_geometry(stack_of(slices), str).affine_lps is not None


def _interleaved(values: Sequence[Key], slices: Sequence[Slice]) -> list[list[int]]:
    """Return the slices of acquisitions that take turns in space and follow each other in time; else one part."""
    every = [list(range(len(slices)))]
    times = [value for value in values if isinstance(value, float)]
    if len(times) < len(slices):
        return every
    times = clock_order(times)
    order = np.argsort(stack_of(slices).heights, kind="stable").tolist()
    for count in range(2, MOST_INTERLEAVED + 1):
        parts = [order[first::count] for first in range(count)]
        if min(map(len, parts)) > 1 and _apart(parts, times):
            return parts
    return every


def _apart(parts: Sequence[Sequence[int]], values: Sequence[float]) -> bool:
    """Return whether all values of one part lie before those of the next, in some order of the parts."""
    ends = sorted((min(values[index] for index in part), max(values[index] for index in part)) for part in parts)
    return all(earlier[1] < later[0] for earlier, later in itertools.pairwise(ends))


def _borne_out(parts: Sequence[Sequence[int]], slices: Sequence[Slice]) -> bool:
    """Return whether they are two acquisitions: in MR one often takes every second slice first."""
    if slices[0].header.modality != "MR" or slices[0].header.compared.get("MRAcquisitionType") == "3D":
        return True
    return any(_apart(parts, column) for column in _other_orders(slices))


def _other_orders(slices: Sequence[Slice]) -> Iterator[list[float]]:
    """Yield numbers by which acquisitions are told apart, where all slices have them."""
    instances = [part.header.instance_number for part in slices]
    acquisitions = [part.frame.keys.get("AcquisitionNumber") for part in slices]
    for column in (instances, acquisitions):
        values = [float(value) for value in column if isinstance(value, int | float)]
        if len(values) == len(slices):
            yield values
