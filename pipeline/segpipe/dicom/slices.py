"""Slices and groups of them, on the way from headers to volumes: copies among them, and slices that may be missing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom

from segpipe.dicom.frames import FrameHeader
from segpipe.dicom.geometry import Stack
from segpipe.dicom.headers import Header
from segpipe.dicom.model import Reason
from segpipe.dicom.pixel_storage import DEFLATED
from segpipe.dicom.privacy import no_header_text

Name = Callable[[Path], str]


class Slice(NamedTuple):
    """A frame and the file that it is in."""

    header: Header
    frame: FrameHeader


@dataclass(frozen=True)
class Group:
    """Slices that should be one volume, or that are refused whatever their geometry.

    Attributes:
        slices: one or more.
        split: what tells it from the other groups of its series; empty where there is none.
        reason, detail: why it is refused; None and empty where its geometry is to be judged.
        notes: for the user.
        copies: dropped files.
        images, volumes: how many there are in the whole series.
    """

    slices: tuple[Slice, ...]
    split: str = ""
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    copies: tuple[Path, ...] = ()
    images: int = 1
    volumes: int = 1

    def refused(self, reason: Reason, detail: str) -> Group:
        """Return the same slices, refused."""
        return replace(self, reason=reason, detail=detail)

    def part(self, slices: Sequence[Slice], split: str, *notes: str) -> Group:
        """Return some of its slices as a group of their own."""
        words = " ".join(part for part in (self.split, split) if part)
        return replace(self, slices=tuple(slices), split=words, notes=(*self.notes, *notes))


def stack_of(slices: Sequence[Slice]) -> Stack:
    """Return the geometry of slices of one matrix."""
    first = slices[0].header
    return Stack(
        np.array([part.frame.position for part in slices], dtype=np.float64),
        np.array([part.frame.orientation for part in slices], dtype=np.float64),
        np.array([part.frame.spacing for part in slices], dtype=np.float64),
        first.rows,
        first.columns,
    )


def slice_name(part: Slice, name: Name) -> str:
    """Return a slice's name as a person should read it."""
    one_of_many = f" (frame {part.frame.number + 1})" if len(part.header.frames) > 1 else ""
    return name(part.header.path) + one_of_many


def drop_duplicates(
    headers: Iterable[Header], name: Callable[[Path], str]
) -> tuple[dict[Path, Header], dict[Path, list[Path]], str]:
    """Keep the first of all files with one SOPInstanceUID.

    Returns:
        The kept headers by path, the copies of each, and, where two files differ in pixels or geometry under one
        UID, the words that name both (else empty).
    """
    kept: dict[str, Header] = {}
    copies: dict[Path, list[Path]] = {}
    for header in headers:
        first = kept.setdefault(header.sop_instance_uid, header)
        if first is header:
            continue
        if difference := _difference(first, header):
            words = (
                f"{name(first.path)} and {name(header.path)} have the same SOPInstanceUID but different {difference}; "
                "expected one image for each UID. Keep the right one of the two."
            )
            return {}, {}, words
        copies.setdefault(first.path, []).append(header.path)
    return {header.path: header for header in kept.values()}, copies, ""


def _difference(first: Header, second: Header) -> str:
    def places(header: Header) -> list[object]:
        return [(frame.position, frame.orientation, frame.spacing) for frame in header.frames]

    if places(first) != places(second):
        return "geometry"
    return "" if same_pixels(first, second) else "pixels"


def same_pixels(first: Header, second: Header) -> bool:
    """Compare the values of two images: stored bytes, or decoded ones where they are packed otherwise."""
    if (first.rows, first.columns, first.value_tags) != (second.rows, second.columns, second.value_tags):
        return False
    if first.pixels.transfer_syntax == second.pixels.transfer_syntax != DEFLATED:
        return pixel_digest(first) == pixel_digest(second)
    try:
        with no_header_text():
            pixels, others = (pydicom.dcmread(header.path, force=True).pixel_array for header in (first, second))
    except Exception:  # noqa: BLE001 - what cannot be compared is not the same
        return False
    return pixels.shape == others.shape and bool((pixels == others).all())


def pixel_digest(header: Header) -> bytes:
    """Return SHA-256 of a file's stored pixels, packed as they are."""
    with header.path.open("rb") as stream:
        stream.seek(header.pixels.offset)
        return hashlib.sha256(stream.read(header.pixels.length)).digest()


def missing_parts(headers: Iterable[Header], name: Name) -> tuple[dict[Path, str], str]:
    """Look for parts of concatenated images that are missing.

    Returns:
        For each file of such an image what a person should read, and a note where nothing can show a missing part.
    """
    concatenations: dict[str, list[Header]] = {}
    for header in headers:
        if header.concatenation is not None:
            concatenations.setdefault(header.concatenation.uid, []).append(header)
    note, missing = "", dict[Path, str]()
    for members in concatenations.values():
        parts = [(header.concatenation, header) for header in members if header.concatenation is not None]
        parts.sort(key=lambda pair: pair[0].number)
        found = [part.number for part, _ in parts]
        totals = {part.total for part, _ in parts if part.total is not None}
        expected = list(range(1, max([len(found), *found, *totals]) + 1))
        offsets = [part.offset for part, _ in parts]
        begins = [0, *itertools.accumulate(len(header.frames) for _, header in parts)][:-1]
        beside = any(offset not in (None, begin) for offset, begin in zip(offsets, begins, strict=True))
        if found != expected or len(totals) > 1 or beside:
            words = (
                f"{name(parts[-1][1].path)}: found part(s) {', '.join(map(str, found))} of a concatenated image, "
                f"expected 1 to {expected[-1]} with their frames one after the other. "
                "Find the missing files, or export the series again."
            )
            missing |= dict.fromkeys((header.path for header in members), words)
        elif not totals:
            note = "InConcatenationTotalNumber is missing: a last part of the image may be, too"
    return missing, note


def notes_on_missing_slices(group: Group) -> list[str]:
    """Compare how many images, slices and volumes headers speak of, and InstanceNumber, with what was found.

    No geometry shows a slice that is missing at an end. None of the numbers is reliable
    enough to refuse a volume; volumes split from a series number their slices anyhow.
    """
    headers = [part.header for part in group.slices]
    single = all(len(header.frames) == 1 for header in headers)
    notes = []
    for names, found, what in (
        (("ImagesInAcquisition", "NumberOfSeriesRelatedInstances") if single else (), group.images, "images"),
        (("NumberOfSlices",) if single else (), len(headers), "images"),
        (("NumberOfTemporalPositions", "NumberOfTimeSlices", "CardiacNumberOfImages"), group.volumes, "volumes"),
    ):
        expected = max((header.counts.get(name, 0) for header in headers for name in names), default=0)
        if expected > found:
            where = "slices may be missing at an end" if what == "images" else "some may be missing"
            notes.append(f"the header speaks of {expected} {what}, {found} were found: {where}")
    numbers = {header.instance_number for header in headers if header.instance_number is not None}
    if single and not group.split and len(numbers) == len(headers):
        first, last = min(numbers), max(numbers)
        if first > 1:
            notes.append(f"InstanceNumber begins at {first}: slices may be missing at an end")
        if last - first + 1 > len(numbers):
            notes.append(f"InstanceNumber leaves out {last - first + 1 - len(numbers)} of {first} to {last}")
    return list(dict.fromkeys(notes))
