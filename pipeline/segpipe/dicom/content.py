"""Whether a case is still the one that something was made of: by its slices, and by what these are.

A series keeps its UIDs where somebody removes a face, mends a rescale or moves slices. So a hash of its slices is not
enough, and one of pixels, places and what the pixels stand for is kept beside it. Where sizes and times of the files
have not changed, nothing is read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from segpipe.common.files import sha256_of
from segpipe.dicom.model import Frame, Series

TOLD_BY = ("slices", "stat", "content")


def describe_series(series: Series) -> dict[str, str]:
    """Return what tells a case again: hashes of its slices, of the times of its files, and of its content.

    The latter two are missing where a file cannot be read.
    """
    described = {"slices": slices_of(series)}
    with suppress(OSError):
        described |= {"stat": _stat(series), "content": _content(series)}
    return described


def has_other_slices(series: Series, before: Mapping[str, Any]) -> bool:
    """Return whether a case has other slices than `describe_series` said, in other channels, or otherwise resampled."""
    return before.get("slices") != slices_of(series)


def has_other_content(series: Series, before: Mapping[str, Any]) -> bool:
    """Return whether the same slices show or lie otherwise than `describe_series` said; a copy elsewhere does not."""
    if "content" not in before:
        return False
    try:
        return before.get("stat") != _stat(series) and before["content"] != _content(series)
    except OSError:  # gone or not to be read: then there is nothing to compare with
        return False


def slices_of(series: Series) -> str:
    """Return a hash of which slices each channel of a case has, in the order of the channels, wherever they lie."""
    words: list[object] = []
    for channel in series.channels:
        words += ["channel"] if words else []
        words += sorted((frame.sop_instance_uid, frame.number) for frame in channel.frames)
        words += [channel.registration.matrix_ras] if channel.registration else []
        words += [(channel.converted_to, *channel.repaired)] if channel.converted_to or channel.repaired else []
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _stat(series: Series) -> str:
    stats = [path.stat() for path in series.all_files]
    return hashlib.sha256(repr([(each.st_size, each.st_mtime_ns) for each in stats]).encode()).hexdigest()


def _content(series: Series) -> str:
    digest = hashlib.sha256()
    for channel in series.channels:
        frames = sorted(channel.frames, key=lambda frame: (frame.sop_instance_uid, frame.number))
        for frame in frames:
            digest.update(repr((frame.position_mm, frame.orientation, frame.pixel_spacing_mm)).encode())
        for frame in {frame.path: frame for frame in reversed(frames)}.values():
            digest.update(_of_file(frame, whole=bool(channel.converted_to)).encode())  # a unit is of many headers
    return digest.hexdigest()


def _of_file(frame: Frame, whole: bool) -> str:
    pixels = frame.pixels
    if whole or pixels is None or pixels.offset < 0 or not pixels.attributes:
        return sha256_of(frame.path)
    digest = hashlib.sha256(repr((pixels.transfer_syntax, pixels.attributes)).encode())
    with frame.path.open("rb") as stream:
        stream.seek(pixels.offset)
        left = pixels.length if pixels.length >= 0 else frame.path.stat().st_size
        while left > 0 and (part := stream.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()
