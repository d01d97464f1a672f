"""What a segmentation is worth: one definition of each measure, used wherever one is quoted.

    overlap      Dice, IoU, precision, recall, specificity, volume: by voxel count
    soft         Dice of probabilities
    samples      any measure per sample of a batch, where calling it on the batch pools
    distance     HD between voxel sets; HD95, ASSD and NSD between surfaces
    lesion       F1 and Dice by lesion
    calibration  expected calibration error of probabilities
    label        the one list of measures that evaluation reports
    case         one prediction against one truth, label by label, with the rules for empty masks

Masks are arrays of three axes, nonzero inside. Distances are in mm, volumes in mL, scores in [0, 1].
What is not defined is None, never NaN and never infinite.
"""

from __future__ import annotations

from pipeline.measure.calibration import Calibration, calibrate, calibrate_labels, expected_calibration_error
from pipeline.measure.case import label_pairs, measure_case, without_prediction
from pipeline.measure.distance import (
    SurfaceDistances,
    assd_mm,
    hausdorff_mm,
    hd95_mm,
    nsd,
    surface_distances,
)
from pipeline.measure.label import MEASURES, LabelMeasure, Measure
from pipeline.measure.lesion import Lesions, lesion_dice, lesion_f1, match_lesions
from pipeline.measure.overlap import (
    Counts,
    count_voxels,
    dice,
    iou,
    precision,
    recall,
    specificity,
    volume_ml,
)
from pipeline.measure.samples import mean_defined, per_sample
from pipeline.measure.soft import SoftCounts, count_soft, label_channels, soft_dice

DEFINITIONS = {name: measure.definition for name, measure in MEASURES.items()}

__all__ = [
    "DEFINITIONS",
    "MEASURES",
    "Calibration",
    "Counts",
    "LabelMeasure",
    "Lesions",
    "Measure",
    "SoftCounts",
    "SurfaceDistances",
    "assd_mm",
    "calibrate",
    "calibrate_labels",
    "count_soft",
    "count_voxels",
    "dice",
    "expected_calibration_error",
    "hausdorff_mm",
    "hd95_mm",
    "iou",
    "label_channels",
    "label_pairs",
    "lesion_dice",
    "lesion_f1",
    "match_lesions",
    "mean_defined",
    "measure_case",
    "nsd",
    "per_sample",
    "precision",
    "recall",
    "soft_dice",
    "specificity",
    "surface_distances",
    "volume_ml",
    "without_prediction",
]
