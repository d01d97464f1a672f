"""One prediction against one truth, label by label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.measure.distance import hausdorff_mm, surface_distances
from pipeline.measure.overlap import dice, iou, volume_ml

RIGHT_ANGLE_TOLERANCE = 1e-3  # cosine between two axes; 0.06 degrees, well above rounding in headers

Flag = Literal["", "false_positive", "missed", "missing", "failed", "absent", "sheared"]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class LabelMeasure:
    """All measures of one label in one case; None where a measure is not defined.

    Attributes:
        label: value in the label map.
        name: what it stands for.
        flag: empty where both masks have voxels, else why some measures are 0 or None:
            ``false_positive`` (absent in truth, present in prediction), ``missed`` (the reverse),
            ``missing`` (no prediction), ``failed`` (a prediction that cannot be used), ``absent`` (absent in
            both: not counted), ``sheared`` (axes not at right angles: no distances).
    """

    label: int
    name: str
    dice: float | None
    iou: float | None
    hd_mm: float | None
    hd95_mm: float | None
    assd_mm: float | None
    nsd: float | None
    truth_ml: float | None
    prediction_ml: float | None
    difference_ml: float | None
    flag: Flag = ""

    @property
    def counted(self) -> bool:
        """Whether the label takes part in means."""
        return self.dice is not None


def measure_case(
    truth: ArrayLike,
    prediction: ArrayLike | None,
    labels: Mapping[int, str],
    affine_or_spacing: ArrayLike,
    tolerance_mm: float = 1.0,
) -> list[LabelMeasure]:
    """Measure every label of a case.

    Args:
        truth: label map (X, Y, Z) of whole numbers.
        prediction: label map of the same shape, or None where there is none: Dice 0 for what is in truth.
        labels: value to name, without background.
        affine_or_spacing: (4, 4) voxel index to mm, or the three edges of a voxel in mm.
        tolerance_mm: for NSD.

    Returns:
        One entry a label, in the order of ``labels``.

    Raises:
        ValueError: the shapes differ.
    """
    affine = np.asarray(affine_or_spacing, dtype=np.float64)
    if affine.shape == (3,):
        affine = np.diag([*affine, 1.0])
    if prediction is None:
        return without_prediction(truth, labels, affine, "missing")
    one, other = np.asarray(truth), np.asarray(prediction)
    if one.shape != other.shape:
        raise ValueError(f"label maps of different shapes: {one.shape} and {other.shape}")
    boxes, other_boxes = _boxes(one, max(labels)), _boxes(other, max(labels))
    measures = []
    for value, name in labels.items():
        box = _union(boxes[value - 1], other_boxes[value - 1])
        inside = [array[box] == value for array in (one, other)]
        measures.append(_measure_label(value, name, inside[0], inside[1], affine, tolerance_mm))
    return measures


def without_prediction(
    truth: ArrayLike | None, labels: Mapping[int, str], affine: ArrayLike | None, flag: Flag
) -> list[LabelMeasure]:
    """What a case counts that has no usable prediction: 0 for every label in truth.

    Where the truth cannot be used either (None), every label counts 0.
    """
    measures = []
    for value, name in labels.items():
        volume = None
        if truth is not None and affine is not None:
            volume = volume_ml(np.asarray(truth) == value, affine)
        score, reason = (None, "absent") if volume == 0 else (0.0, flag)
        measures.append(
            LabelMeasure(value, name, score, score, None, None, None, score, volume, None, None, reason)  # type: ignore[arg-type]
        )
    return measures


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


def _measure_label(
    value: int,
    name: str,
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    affine: NDArray[np.float64],
    tolerance_mm: float,
) -> LabelMeasure:
    truth_ml, prediction_ml = volume_ml(truth, affine), volume_ml(prediction, affine)
    volumes = (truth_ml, prediction_ml, prediction_ml - truth_ml)
    if not truth_ml or not prediction_ml:
        flag: Flag = "missed" if truth_ml else "false_positive" if prediction_ml else "absent"
        score = None if flag == "absent" else 0.0
        return LabelMeasure(value, name, score, score, None, None, None, score, *volumes, flag)
    overlap = (dice(truth, prediction), iou(truth, prediction))
    spacing = spacing_mm(affine)
    surfaces = None if spacing is None else surface_distances(truth, prediction, spacing)
    if spacing is None or surfaces is None:
        return LabelMeasure(value, name, *overlap, None, None, None, None, *volumes, "sheared")
    return LabelMeasure(
        value,
        name,
        *overlap,
        hausdorff_mm(truth, prediction, spacing),
        surfaces.percentile_mm(0.95),
        surfaces.mean_mm(),
        surfaces.share_within(tolerance_mm),
        *volumes,
    )


def _boxes(label_map: NDArray[np.generic], highest: int) -> list[Box | None]:
    """Bounding box of each value from 1 to the highest; None where it does not occur."""
    from scipy.ndimage import find_objects

    boxes: list[Box | None] = find_objects(label_map, max_label=highest)
    return boxes


def _union(one: Box | None, other: Box | None) -> Box:
    if one is None or other is None:
        return one or other or (slice(0, 0),) * 3
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
