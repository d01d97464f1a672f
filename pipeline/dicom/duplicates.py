"""Copies of one image: equal ones are dropped, conflicting ones are named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pydicom

from pipeline.dicom.headers import Header
from pipeline.dicom.pixel_storage import DEFLATED
from pipeline.dicom.privacy import no_header_text


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
    """Whether two images have the same values: their stored bytes, or decoded ones where they are packed otherwise."""
    if (first.rows, first.columns, first.value_tags) != (second.rows, second.columns, second.value_tags):
        return False
    if first.pixels.transfer_syntax == second.pixels.transfer_syntax != DEFLATED:
        return pixel_digest(first) == pixel_digest(second)
    try:
        with no_header_text():
            one, other = (pydicom.dcmread(header.path, force=True).pixel_array for header in (first, second))
    except Exception:  # noqa: BLE001 - what cannot be compared is not the same
        return False
    return one.shape == other.shape and bool((one == other).all())


def pixel_digest(header: Header) -> bytes:
    """SHA-256 of a file's stored pixels, packed as they are."""
    with header.path.open("rb") as stream:
        stream.seek(header.pixels.offset)
        return hashlib.sha256(stream.read(header.pixels.length)).digest()
