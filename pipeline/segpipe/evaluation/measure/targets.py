"""What of a truth is measured: labels or regions, without the voxels and labels that nobody decided on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Targets:
    """What there is to measure in a case.

    Attributes:
        names: number to name of what is measured, from 1: the labels, or the regions.
        regions: label values that each region joins, in the order of ``names``; empty where labels are measured.
        ignore_label: value of the truth's voxels that count nowhere, neither as truth nor as prediction.
        annotated: label values that were looked for in the case; None where all were.
    """

    names: Mapping[int, str]
    regions: Sequence[Collection[int]] = ()
    ignore_label: int | None = None
    annotated: frozenset[int] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether labels are measured, in every voxel."""
        return not self.regions and self.ignore_label is None

    @property
    def values(self) -> frozenset[int]:
        """Label values of a label map, without background and what is ignored."""
        return frozenset().union(*self.regions) if self.regions else frozenset(self.names)

    @property
    def looked_for(self) -> frozenset[int]:
        """Numbers of what can be measured: labels that were looked for, and regions all of whose labels were."""
        if self.annotated is None:
            return frozenset(self.names)
        if not self.regions:
            return self.annotated
        pairs = zip(self.names, self.regions, strict=True)
        return frozenset(number for number, region in pairs if self.annotated.issuperset(region))

    def counted(self, truth: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Return where a truth (X, Y, Z) says something; None where it does everywhere."""
        if self.ignore_label is None:
            return None
        here: NDArray[np.bool_] = truth != self.ignore_label
        return None if here.all() else here

    def masks(self, labels: NDArray[np.uint8], counted: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Return what is compared, 0 where nothing counts.

        Args:
            labels: label map (X, Y, Z); or, of a prediction, a mask for each region (regions, X, Y, Z).
            counted: of the truth.

        Returns:
            A label map (X, Y, Z), or of regions their masks (regions, X, Y, Z).
        """
        if self.regions and labels.ndim == 3:
            labels = region_masks(labels, self.regions)
        return labels if counted is None else np.where(counted, labels, np.uint8(0))


def region_masks(labels: NDArray[np.uint8], regions: Sequence[Collection[int]]) -> NDArray[np.uint8]:
    """Return a mask of 0 and 1 for each region: (regions, X, Y, Z) of a label map (X, Y, Z).

    >>> region_masks(np.array([[[0, 1, 2]]], np.uint8), [(1, 2), (2,)]).tolist()
    [[[[0, 1, 1]]], [[[0, 0, 1]]]]
    """
    values = np.arange(256)
    return np.stack([np.isin(values, list(region)).astype(np.uint8)[labels] for region in regions])


def painted(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a map of the last region in each voxel, from 1, of masks (regions, X, Y, Z): what a picture shows."""
    numbers = np.arange(1, len(masks) + 1, dtype=np.uint8)
    shown: NDArray[np.uint8] = (masks * numbers[:, None, None, None]).max(0)
    return shown
