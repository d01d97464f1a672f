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
    """Return the F1 of lesions found, missed and false; arguments as in `match_lesions`.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.
    """
    return match_lesions(truth, prediction, connectivity, iou_threshold).f1


def lesion_dice(
    truth: ArrayLike, prediction: ArrayLike, connectivity: Connectivity = 26, iou_threshold: float | None = None
) -> float | None:
    """Return lesion-wise Dice: the mean over lesions, in which a missed and a false one count 0.

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

    true, predicted = as_masks(truth, prediction)
    if true.ndim != 3:
        raise ValueError(f"masks of {true.ndim} axes, expected 3")
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity {connectivity}, expected 6, 18 or 26")
    if iou_threshold is not None and not 0 < iou_threshold <= 1:
        raise ValueError(f"IoU threshold {iou_threshold}, expected above 0 and at most 1")
    if sorted(true.shape)[1] == 1:  # a line of voxels, for which cc3d counts too few components and fails
        true, predicted = np.pad(true, 1), np.pad(predicted, 1)
    true_lesions, predicted_lesions = (
        cc3d.connected_components(mask, connectivity=connectivity) for mask in (true, predicted)
    )
    overlap = _overlap(true_lesions, predicted_lesions)
    return _touching(overlap) if iou_threshold is None else _one_to_one(overlap, iou_threshold)


@dataclass(frozen=True, eq=False)
class _Overlap:
    """Pairs of lesions that share voxels.

    Attributes:
        true, predicted: of each pair, the index of the lesion in the truth and in the prediction.
        shared: of each pair, the voxels in both.
        true_sizes, predicted_sizes: voxels of all lesions.
    """

    true: Integers
    predicted: Integers
    shared: Integers
    true_sizes: Integers
    predicted_sizes: Integers


def _overlap(true_lesions: Integers, predicted_lesions: Integers) -> _Overlap:
    true_sizes, predicted_sizes = (np.bincount(lesions.ravel())[1:] for lesions in (true_lesions, predicted_lesions))
    both = (true_lesions > 0) & (predicted_lesions > 0)
    stride = len(predicted_sizes) + 1
    codes = true_lesions[both].astype(np.int64) * stride + predicted_lesions[both]
    pairs, shared = np.unique(codes, return_counts=True)
    return _Overlap(pairs // stride - 1, pairs % stride - 1, shared, true_sizes, predicted_sizes)


def _touching(overlap: _Overlap) -> Lesions:
    n = len(overlap.true_sizes)
    common = np.bincount(overlap.true, overlap.shared, minlength=n)
    reached = np.bincount(overlap.true, overlap.predicted_sizes[overlap.predicted], minlength=n)
    found = common > 0
    dice = 2 * common[found] / (overlap.true_sizes + reached)[found]
    false = len(overlap.predicted_sizes) - len(np.unique(overlap.predicted))
    return Lesions(tuple(dice.tolist()), int(n - found.sum()), false)


def _one_to_one(overlap: _Overlap, threshold: float) -> Lesions:
    sizes = overlap.true_sizes[overlap.true] + overlap.predicted_sizes[overlap.predicted]
    iou = overlap.shared / (sizes - overlap.shared)
    paired: list[float] = []
    true_taken, predicted_taken = set[int](), set[int]()
    for index in np.argsort(-iou, kind="stable"):
        true, predicted = int(overlap.true[index]), int(overlap.predicted[index])
        if iou[index] < threshold or true in true_taken or predicted in predicted_taken:
            continue
        true_taken.add(true)
        predicted_taken.add(predicted)
        paired.append(float(2 * overlap.shared[index] / sizes[index]))
    missed, false = len(overlap.true_sizes) - len(paired), len(overlap.predicted_sizes) - len(paired)
    return Lesions(tuple(paired), missed, false)
