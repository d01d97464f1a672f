"""One label of one case: the two masks, and what several measures need of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.measure.calibration import Calibration
from pipeline.measure.distance import SurfaceDistances, hausdorff_mm, surface_distances
from pipeline.measure.lesion import Lesions, match_lesions
from pipeline.measure.overlap import Counts, count_voxels, voxel_ml

RIGHT_ANGLE_TOLERANCE = 1e-3  # cosine between two axes; 0.06 degrees, well above rounding in headers

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pair:
    """Truth and prediction of one label. What is asked for is computed once, and nothing else is.

    Attributes:
        truth: mask (X, Y, Z), perhaps of a box that holds both masks.
        prediction: mask of the same shape.
        voxels: of the whole volume.
        affine: (4, 4), voxel index to mm.
        tolerance_mm: for NSD.
        calibration: of the label's probabilities over the whole volume, where there are any.
    """

    truth: Mask
    prediction: Mask
    voxels: int
    affine: NDArray[np.float64]
    tolerance_mm: float = 1.0
    calibration: Calibration | None = None

    @cached_property
    def counts(self) -> Counts:
        """Voxels, with those of the whole volume."""
        counts = count_voxels(self.truth, self.prediction)
        return Counts(counts.both, counts.truth, counts.prediction, self.voxels)

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """As `spacing_mm`."""
        return spacing_mm(self.affine)

    @cached_property
    def surfaces(self) -> SurfaceDistances | None:
        """None where a mask is empty or the grid is sheared."""
        spacing = self.spacing_mm
        return None if spacing is None else surface_distances(self.truth, self.prediction, spacing)

    @cached_property
    def lesions(self) -> Lesions:
        """Connected components by the rule of overlap, 26-connected."""
        return match_lesions(self.truth, self.prediction)

    def hausdorff_mm(self) -> float | None:
        """As `hausdorff_mm`; None on a sheared grid too."""
        spacing = self.spacing_mm
        return None if spacing is None else hausdorff_mm(self.truth, self.prediction, spacing)

    def hd95_mm(self) -> float | None:
        """As `pipeline.measure.hd95_mm`."""
        return None if self.surfaces is None else self.surfaces.percentile_mm(0.95)

    def assd_mm(self) -> float | None:
        """As `pipeline.measure.assd_mm`."""
        return None if self.surfaces is None else self.surfaces.mean_mm()

    def nsd(self) -> float | None:
        """As `pipeline.measure.nsd`; None where both masks have voxels on a sheared grid."""
        if self.counts.truth and self.counts.prediction:
            return None if self.surfaces is None else self.surfaces.share_within(self.tolerance_mm)
        return 0.0 if self.counts.truth or self.counts.prediction else None

    def truth_ml(self) -> float:
        """Volume of the truth."""
        return self.counts.truth * voxel_ml(self.affine)

    def prediction_ml(self) -> float:
        """Volume of the prediction."""
        return self.counts.prediction * voxel_ml(self.affine)

    def calibration_error(self) -> float | None:
        """As `expected_calibration_error`; None without probabilities."""
        return None if self.calibration is None else self.calibration.error


def spacing_mm(affine: ArrayLike) -> tuple[float, float, float] | None:
    """Lengths of a voxel's edges; None where they are not at right angles.

    A tilted or oblique grid is fine. On a sheared one a voxel's edges do not give its distances.
    """
    edges = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(edges, axis=0)
    cosines = (edges / lengths).T @ (edges / lengths) - np.eye(3)
    if np.abs(cosines).max() > RIGHT_ANGLE_TOLERANCE:
        return None
    return float(lengths[0]), float(lengths[1]), float(lengths[2])
