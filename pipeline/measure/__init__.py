"""What a segmentation is worth: one definition of each measure, used wherever one is quoted.

    overlap    Dice, IoU, volume
    distance   HD between voxel sets; HD95, ASSD and NSD between surfaces
    case       one prediction against one truth, label by label, with the rules for empty masks

Masks are arrays of three axes, nonzero inside. Distances are in mm, volumes in mL, scores in [0, 1].
What is not defined is None, never NaN and never infinite.
"""

from __future__ import annotations

from pipeline.measure.case import LabelMeasure, measure_case
from pipeline.measure.distance import (
    SurfaceDistances,
    assd_mm,
    hausdorff_mm,
    hd95_mm,
    nsd,
    surface_distances,
)
from pipeline.measure.overlap import dice, iou, volume_ml

DEFINITIONS = {
    "dice": "2 |A and B| / (|A| + |B|), by voxel count",
    "iou": "|A and B| / |A or B|, by voxel count",
    "hd_mm": "Hausdorff distance of the two sets of voxel centres: the largest distance from a voxel of one "
    "mask to the other mask, both ways",
    "hd95_mm": "larger of the two directed 95th percentiles of the distance between surfaces, "
    "surface elements weighted by area",
    "assd_mm": "mean distance between surfaces, over the elements of both together, weighted by area",
    "nsd": "share of the area of both surfaces that lies within the tolerance of the other surface; "
    "0 where only one of the two masks is empty",
    "truth_ml": "voxel count of the truth times the voxel's volume",
    "prediction_ml": "voxel count of the prediction times the voxel's volume",
    "difference_ml": "prediction_ml - truth_ml",
}

__all__ = [
    "DEFINITIONS",
    "LabelMeasure",
    "SurfaceDistances",
    "assd_mm",
    "dice",
    "hausdorff_mm",
    "hd95_mm",
    "iou",
    "measure_case",
    "nsd",
    "surface_distances",
    "volume_ml",
]
