"""Distances in mm between two masks on one grid with axes at right angles.

HD is between the two sets of voxel centres. HD95, ASSD and NSD are between the two surfaces: each 2x2x2
neighbourhood that is neither empty nor full is one surface element, whose area follows from the neighbourhood
(marching cubes) and the spacing. So a surface counts by its area and not by how many voxels touch it
(Nikolov et al. 2021, doi:10.2196/26151). Outside of the image is background: a mask that touches the border
is closed there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.evaluation.measure.overlap import as_masks

# Spacings come from headers in single precision: without slack, a distance of one voxel of 1 mm would miss a
# tolerance of 1 mm, and a share of exactly 95 % would fall on either side by rounding alone.
TOLERANCE_SLACK_MM = 1e-5
SHARE_SLACK = 1e-9

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def hausdorff_mm(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> float | None:
    """Return the Hausdorff distance of the two voxel sets (Huttenlocher et al. 1993, doi:10.1109/34.232073, eq. 1).

    Args:
        truth: mask of shape (X, Y, Z).
        prediction: mask of the same shape.
        spacing_mm: length of a voxel's three edges.

    Returns:
        mm; None where a mask is empty.
    """
    true, predicted = _cropped(truth, prediction)
    if not true.any() or not predicted.any():
        return None
    return max(_farthest(true, predicted, spacing_mm), _farthest(predicted, true, spacing_mm))


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Both surfaces, element by element: distance to the other surface, and area.

    Attributes:
        truth_mm: (N,) from each element of the truth's surface to the prediction's.
        truth_mm2: (N,) areas.
        prediction_mm: (M,) from each element of the prediction's surface to the truth's.
        prediction_mm2: (M,) areas.
    """

    truth_mm: Floats
    truth_mm2: Floats
    prediction_mm: Floats
    prediction_mm2: Floats

    def percentile_mm(self, share: float = 0.95) -> float:
        """Return the larger of the two directed distances within which this share of a surface's area lies."""
        return max(
            _weighted_percentile(self.truth_mm, self.truth_mm2, share),
            _weighted_percentile(self.prediction_mm, self.prediction_mm2, share),
        )

    def mean_mm(self) -> float:
        """Return the mean over the elements of both surfaces together, weighted by area."""
        total = self.truth_mm @ self.truth_mm2 + self.prediction_mm @ self.prediction_mm2
        return float(total / (self.truth_mm2.sum() + self.prediction_mm2.sum()))

    def share_within(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces' area that lies within a tolerance of the other surface."""
        limit = tolerance_mm + TOLERANCE_SLACK_MM
        within = self.truth_mm2[self.truth_mm <= limit].sum()
        within += self.prediction_mm2[self.prediction_mm <= limit].sum()
        return min(1.0, float(within / (self.truth_mm2.sum() + self.prediction_mm2.sum())))


def surface_distances(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> SurfaceDistances | None:
    """Return the distances between the two surfaces; None where a mask is empty. Arguments as in `hausdorff_mm`."""
    from scipy.spatial import KDTree

    true, predicted = _cropped(truth, prediction)
    if not true.any() or not predicted.any():
        return None
    truth_points, truth_mm2 = _surface(true, spacing_mm)
    prediction_points, prediction_mm2 = _surface(predicted, spacing_mm)
    truth_mm = KDTree(prediction_points).query(truth_points)[0]
    prediction_mm = KDTree(truth_points).query(prediction_points)[0]
    return SurfaceDistances(truth_mm, truth_mm2, prediction_mm, prediction_mm2)


def hd95_mm(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> float | None:
    """Return the 95 % Hausdorff distance between the surfaces in mm; None where a mask is empty."""
    surfaces = surface_distances(truth, prediction, spacing_mm)
    return None if surfaces is None else surfaces.percentile_mm(0.95)


def assd_mm(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> float | None:
    """Return the average symmetric surface distance in mm; None where a mask is empty."""
    surfaces = surface_distances(truth, prediction, spacing_mm)
    return None if surfaces is None else surfaces.mean_mm()


def nsd(
    truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> float | None:
    """Return the normalised surface Dice at a tolerance; 0 where one mask is empty, None where both are."""
    surfaces = surface_distances(truth, prediction, spacing_mm)
    if surfaces is not None:
        return surfaces.share_within(tolerance_mm)
    return 0.0 if np.any(truth) or np.any(prediction) else None


def _cropped(truth: ArrayLike, prediction: ArrayLike) -> tuple[Mask, Mask]:
    """Return both masks within their common bounding box and one voxel of background around it."""
    from scipy.ndimage import find_objects

    true, predicted = as_masks(truth, prediction)
    if true.ndim != 3:
        raise ValueError(f"masks of {true.ndim} axes, expected 3")
    box = find_objects((true | predicted).view(np.uint8), max_label=1)[0] or (slice(0, 0),) * 3
    return np.pad(true[box], 1), np.pad(predicted[box], 1)


def _farthest(source: Mask, target: Mask, spacing_mm: Sequence[float]) -> float:
    """Return the largest distance from a voxel of the source to the nearest voxel of the target."""
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    outside = np.argwhere(source & ~target) * np.asarray(spacing_mm, dtype=np.float64)
    if not len(outside):
        return 0.0
    # From outside, the nearest voxel of a set always has a face neighbour that is not in the set.
    rim = np.argwhere(target & ~binary_erosion(target)) * np.asarray(spacing_mm, dtype=np.float64)
    return float(KDTree(rim).query(outside)[0].max())


def _surface(mask: Mask, spacing_mm: Sequence[float]) -> tuple[Floats, Floats]:
    """Return positions (N, 3) in mm and areas (N,) in mm2 of a mask's surface elements."""
    areas, kernel = _element_areas(tuple(float(length) for length in spacing_mm))
    code = np.zeros([size - 1 for size in mask.shape], dtype=np.uint8)
    for (i, j, k), weight in np.ndenumerate(kernel):
        x, y, z = code.shape
        code += mask[i : i + x, j : j + y, k : k + z].astype(np.uint8) * weight
    element = (code != 0) & (code != 255)
    points = np.argwhere(element).astype(np.float64) * np.asarray(spacing_mm, dtype=np.float64)
    return points, areas[code[element]]


@lru_cache(maxsize=256)
def _element_areas(spacing_mm: tuple[float, ...]) -> tuple[Floats, NDArray[np.uint8]]:
    """Return the area of each of the 256 neighbourhoods, and the kernel (2, 2, 2) that numbers them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics.utils import get_code_to_measure_table

        areas, kernel = get_code_to_measure_table(spacing_mm)
    return areas.double().numpy(), kernel.numpy().reshape(2, 2, 2).astype(np.uint8)


def _weighted_percentile(values: Floats, weights: Floats, share: float) -> float:
    """Return the smallest value at which the sorted weights add up to a share of their sum."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    index = int(np.searchsorted(reached, share - SHARE_SLACK))
    return float(values[order][min(index, len(values) - 1)])
