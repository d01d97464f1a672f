"""Slices and groups of them, on the way from headers to volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.dicom.frames import FrameHeader
from pipeline.dicom.geometry import Stack
from pipeline.dicom.headers import Header
from pipeline.dicom.model import Reason

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
    """

    slices: tuple[Slice, ...]
    split: str = ""
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    copies: tuple[Path, ...] = ()

    def refused(self, reason: Reason, detail: str) -> Group:
        """The same slices, refused."""
        return replace(self, reason=reason, detail=detail)

    def part(self, slices: Sequence[Slice], split: str, *notes: str) -> Group:
        """Some of its slices as a group of their own."""
        words = " ".join(part for part in (self.split, split) if part)
        return replace(self, slices=tuple(slices), split=words, notes=(*self.notes, *notes))


def stack_of(slices: Sequence[Slice]) -> Stack:
    """The geometry of slices of one matrix."""
    first = slices[0].header
    return Stack(
        np.array([part.frame.position for part in slices], dtype=np.float64),
        np.array([part.frame.orientation for part in slices], dtype=np.float64),
        np.array([part.frame.spacing for part in slices], dtype=np.float64),
        first.rows,
        first.columns,
    )


def slice_name(part: Slice, name: Name) -> str:
    """A slice as a person should read it."""
    one_of_many = f" (frame {part.frame.number + 1})" if len(part.header.frames) > 1 else ""
    return name(part.header.path) + one_of_many
