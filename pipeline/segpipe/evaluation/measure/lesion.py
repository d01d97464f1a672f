"""Measures that count lesions: connected components of a mask.

Two rules say which lesions match:

    overlap (the default)   a lesion of the truth is found where at least one voxel of it is predicted; all
                            predicted lesions that touch it found it together, and one may find several. A predicted
                            lesion that touches no truth is false. This is how the lesion-wise scores of ISLES and
                            BraTS 2023 match (Saluja et al. 2023, github.com/rachitsaluja/BraTS-2023-Metrics), here
                            without BraTS's dilation and without its smallest volume.
    one to one              with ``iou_threshold``: pairs in order of falling IoU, from the threshold on, each lesion
                            in one pair at most ("greedy by localisation", Maier-Hein et al. 2024,
                            doi:10.1038/s41592-023-02151-z, Metrics Reloaded). From 0.5 on the pairs are unique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.evaluation.measure.overlap import as_masks

Connectivity = Literal[6, 18, 26]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Lesions:
    """Which lesions were found.

    Attributes:
        found: for each lesion of the truth that was found, its Dice with what found it.
        missed: lesions of the truth that were not found.
        false: predicted lesions that found nothing.
    """

    found: tuple[float, ...]
    missed: int
    false: int

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FN + FP) in lesions; 0 where one mask is empty, None where both are."""
        total = 2 * len(self.found) + self.missed + self.false
        return 2 * len(self.found) / total if total else None

    @property
    def dice(self) -> float | None:
        """Mean Dice of the lesions, 0 for each that is missed or false; empty masks as in `f1`."""
        total = len(self.found) + self.missed + self.false
        return sum(self.found) / total if total else None


def lesion_f1(
    truth: ArrayLike, prediction: ArrayLike, connectivity: Connectivity = 26, iou_threshold: float | None = None
) -> float | None:
    """F1 of lesions found, missed and false; arguments as in `match_lesions`.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    return match_lesions(truth, prediction, connectivity, iou_threshold).f1


def lesion_dice(
    truth: ArrayLike, prediction: ArrayLike, connectivity: Connectivity = 26, iou_threshold: float | None = None
) -> float | None:
    """Lesion-wise Dice: the mean over lesions, in which a missed and a false one count 0.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    return match_lesions(truth, prediction, connectivity, iou_threshold).dice


def match_lesions(
    truth: ArrayLike, prediction: ArrayLike, connectivity: Connectivity = 26, iou_threshold: float | None = None
) -> Lesions:
    """Match the lesions of two masks by one of the module's two rules.

    Args:
        truth: mask (X, Y, Z).
        prediction: mask of the same shape.
        connectivity: voxels of one lesion share a face (6), an edge (18) or a corner (26).
        iou_threshold: above 0 and up to 1, for matches one to one; None for the rule of overlap.

    Raises:
        ValueError: shapes differ or are not of three axes; another connectivity or threshold.
    """
    import cc3d

    one, other = as_masks(truth, prediction)
    if one.ndim != 3:
        raise ValueError(f"masks of {one.ndim} axes, expected 3")
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity {connectivity}, expected 6, 18 or 26")
    if iou_threshold is not None and not 0 < iou_threshold <= 1:
        raise ValueError(f"IoU threshold {iou_threshold}, expected above 0 and at most 1")
    ours, theirs = (cc3d.connected_components(mask, connectivity=connectivity) for mask in (one, other))
    our_sizes, their_sizes = np.bincount(ours.ravel())[1:], np.bincount(theirs.ravel())[1:]
    overlap = _Overlap.of(ours, theirs, our_sizes, their_sizes)
    return overlap.touching() if iou_threshold is None else overlap.one_to_one(iou_threshold)


@dataclass(frozen=True, eq=False)
class _Overlap:
    """Pairs of lesions that share voxels: index in truth, index in prediction, voxels shared; and all sizes."""

    ours: Integers
    theirs: Integers
    shared: Integers
    our_sizes: Integers
    their_sizes: Integers

    @classmethod
    def of(cls, ours: Integers, theirs: Integers, our_sizes: Integers, their_sizes: Integers) -> _Overlap:
        both = (ours > 0) & (theirs > 0)
        stride = len(their_sizes) + 1
        codes, shared = np.unique(ours[both].astype(np.int64) * stride + theirs[both], return_counts=True)
        return cls(codes // stride - 1, codes % stride - 1, shared, our_sizes, their_sizes)

    def touching(self) -> Lesions:
        n = len(self.our_sizes)
        common = np.bincount(self.ours, self.shared, minlength=n)
        reached = np.bincount(self.ours, self.their_sizes[self.theirs], minlength=n)
        found = common > 0
        dice = 2 * common[found] / (self.our_sizes + reached)[found]
        false = len(self.their_sizes) - len(np.unique(self.theirs))
        return Lesions(tuple(dice.tolist()), int(n - found.sum()), false)

    def one_to_one(self, threshold: float) -> Lesions:
        sizes = self.our_sizes[self.ours] + self.their_sizes[self.theirs]
        iou = self.shared / (sizes - self.shared)
        paired: list[float] = []
        taken: tuple[set[int], set[int]] = (set(), set())
        for index in np.argsort(-iou, kind="stable"):
            one, other = int(self.ours[index]), int(self.theirs[index])
            if iou[index] < threshold or one in taken[0] or other in taken[1]:
                continue
            taken[0].add(one)
            taken[1].add(other)
            paired.append(float(2 * self.shared[index] / sizes[index]))
        return Lesions(tuple(paired), len(self.our_sizes) - len(paired), len(self.their_sizes) - len(paired))
