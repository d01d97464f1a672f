"""One prediction against one truth, label by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.measure.calibration import Calibration
from pipeline.measure.label import MEASURES, Flag, LabelMeasure
from pipeline.measure.overlap import volume_ml
from pipeline.measure.pair import Pair

Box = tuple[slice, ...]


def measure_case(
    truth: ArrayLike,
    prediction: ArrayLike | None,
    labels: Mapping[int, str],
    affine_or_spacing: ArrayLike,
    tolerance_mm: float = 1.0,
    calibrations: Mapping[int, Calibration] | None = None,
) -> list[LabelMeasure]:
    """Measure every label of a case.

    Args:
        truth: label map (X, Y, Z) of whole numbers.
        prediction: label map of the same shape, or None where there is none: Dice 0 for what is in truth.
        labels: value to name, without background.
        affine_or_spacing: (4, 4) voxel index to mm, or the three edges of a voxel in mm.
        tolerance_mm: for NSD.
        calibrations: label value to what its probabilities are worth, where they were kept.

    Returns:
        One entry a label, in the order of ``labels``.

    Raises:
        ValueError: the shapes differ.
    """
    affine = _affine(affine_or_spacing)
    if prediction is None:
        return without_prediction(truth, labels, affine, "missing")
    pairs = label_pairs(truth, prediction, labels, affine, tolerance_mm, calibrations)
    return [
        LabelMeasure(
            label=value,
            name=labels[value],
            flag=_flag(pair),
            **{name: measure.of(pair) for name, measure in MEASURES.items()},
        )
        for value, pair in pairs
    ]


def label_pairs(
    truth: ArrayLike,
    prediction: ArrayLike,
    labels: Mapping[int, str],
    affine_or_spacing: ArrayLike,
    tolerance_mm: float = 1.0,
    calibrations: Mapping[int, Calibration] | None = None,
) -> Iterator[tuple[int, Pair]]:
    """Each label's value and two masks, in the box that holds both; arguments as in `measure_case`.

    Raises:
        ValueError: the shapes differ.
    """
    affine = _affine(affine_or_spacing)
    one, other = np.asarray(truth), np.asarray(prediction)
    if one.shape != other.shape:
        raise ValueError(f"label maps of different shapes: {one.shape} and {other.shape}")
    boxes, other_boxes = _boxes(one, max(labels)), _boxes(other, max(labels))
    for value in labels:
        box = _union(boxes[value - 1], other_boxes[value - 1])
        calibration = None if calibrations is None else calibrations.get(value)
        yield (
            value,
            Pair(one[box] == value, other[box] == value, one.size, affine, tolerance_mm, calibration),
        )


def without_prediction(
    truth: ArrayLike | None, labels: Mapping[int, str], affine: ArrayLike | None, flag: Flag
) -> list[LabelMeasure]:
    """What a case counts that has no usable prediction: 0 for every label in truth, in every score.

    Where the truth cannot be used either (None), every label counts 0.
    """
    measures = []
    for value, name in labels.items():
        volume = None
        if truth is not None and affine is not None:
            volume = volume_ml(np.asarray(truth) == value, affine)
        score, reason = (None, "absent") if volume == 0 else (0.0, flag)
        scores = {key: score for key, measure in MEASURES.items() if measure.kind == "score"}
        measures.append(
            LabelMeasure(label=value, name=name, truth_ml=volume, flag=reason, **scores)  # type: ignore[arg-type]
        )
    return measures


def _affine(affine_or_spacing: ArrayLike) -> NDArray[np.float64]:
    affine = np.asarray(affine_or_spacing, dtype=np.float64)
    return np.diag([*affine, 1.0]) if affine.shape == (3,) else affine


def _flag(pair: Pair) -> Flag:
    if not pair.counts.truth:
        return "false_positive" if pair.counts.prediction else "absent"
    if not pair.counts.prediction:
        return "missed"
    return "sheared" if pair.spacing_mm is None else ""


def _boxes(label_map: NDArray[np.generic], highest: int) -> list[Box | None]:
    """Bounding box of each value from 1 to the highest; None where it does not occur."""
    from scipy.ndimage import find_objects

    boxes: list[Box | None] = find_objects(label_map, max_label=highest)
    return boxes


def _union(one: Box | None, other: Box | None) -> Box:
    if one is None or other is None:
        return one or other or (slice(0, 0),) * 3
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
