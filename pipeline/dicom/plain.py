"""A judged series as plain values, to be handed to another process, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dicom.model import Frame, Series

TUPLES = ("shape", "spacing_mm", "notes")


def as_plain(series: Series) -> dict[str, Any]:
    """Values that JSON can hold; `Series.description` is left out, since nobody needs it to read the voxels."""
    plain = {each.name: getattr(series, each.name) for each in fields(series) if each.name != "description"}
    numbers = {path: index for index, path in enumerate(series.files)}
    return {
        **plain,
        "files": [str(path) for path in series.files],
        "frames": [_frame_as_plain(frame, numbers) for frame in series.frames],
        "affine_ras": None if series.affine_ras is None else series.affine_ras.tolist(),
    }


def from_plain(plain: Mapping[str, Any]) -> Series:
    """The series again."""
    values = dict(plain)
    files = tuple(Path(name) for name in values.pop("files"))
    frames = tuple(_frame(part, files) for part in values.pop("frames"))
    affine = values.pop("affine_ras")
    for name in TUPLES:
        values[name] = None if values[name] is None else tuple(values[name])
    return Series(
        files=files, frames=frames, affine_ras=None if affine is None else np.array(affine, float), **values
    )


def _frame_as_plain(frame: Frame, numbers: Mapping[Path, int]) -> list[Any]:
    return [
        numbers[frame.path], frame.number, frame.sop_instance_uid,
        frame.position_mm, frame.orientation, frame.pixel_spacing_mm,
    ]  # fmt: skip


def _frame(part: list[Any], files: tuple[Path, ...]) -> Frame:
    index, number, uid, position, orientation, spacing = part
    return Frame(files[index], number, uid, tuple(position), tuple(orientation), tuple(spacing))
