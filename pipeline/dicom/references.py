"""Which instances a SEG or an RTSTRUCT refers to, wherever in it they are named (PS3.3 C.12.4, C.7.6.16, C.8.8.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

WAYS = (
    "ReferencedSeriesSequence",
    "StudiesContainingOtherReferencedInstancesSequence",
    "ReferencedInstanceSequence",
    "ReferencedFrameOfReferenceSequence",
    "RTReferencedStudySequence",
    "RTReferencedSeriesSequence",
    "ROIContourSequence",
    "ContourSequence",
    "ContourImageSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DerivationImageSequence",
    "SourceImageSequence",
)


def referenced_instances(dataset: Dataset) -> frozenset[str]:
    """SOP instance UIDs of the images that labels were drawn on or made from."""
    return frozenset(_walk(dataset))


def _walk(dataset: Dataset) -> Iterator[str]:
    uid = dataset.get("ReferencedSOPInstanceUID")
    if uid:
        yield str(uid)
    for way in WAYS:
        for item in dataset.get(way) or []:
            yield from _walk(item)
