"""A prediction against a truth, label by label, and the one list of measures.

To add a measure, add a field to `LabelMeasure` and its entry in `MEASURES`; tables, reports and metrics follow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.evaluation.measure.distance import SurfaceDistances, hausdorff_mm, surface_distances
from segpipe.evaluation.measure.lesion import Lesions, match_lesions
from segpipe.evaluation.measure.overlap import Counts, count_voxels, volume_ml, voxel_ml
from segpipe.evaluation.measure.probabilities import Calibration

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
        """Measure as `hausdorff_mm`; None on a sheared grid too."""
        spacing = self.spacing_mm
        return None if spacing is None else hausdorff_mm(self.truth, self.prediction, spacing)

    def hd95_mm(self) -> float | None:
        """Measure as the function `hd95_mm`."""
        return None if self.surfaces is None else self.surfaces.percentile_mm(0.95)

    def assd_mm(self) -> float | None:
        """Measure as the function `assd_mm`."""
        return None if self.surfaces is None else self.surfaces.mean_mm()

    def nsd(self) -> float | None:
        """Measure as the function `nsd`; None where both masks have voxels on a sheared grid."""
        if self.counts.truth and self.counts.prediction:
            return None if self.surfaces is None else self.surfaces.share_within(self.tolerance_mm)
        return 0.0 if self.counts.truth or self.counts.prediction else None

    def truth_ml(self) -> float:
        """Return the volume of the truth."""
        return self.counts.truth * voxel_ml(self.affine)

    def prediction_ml(self) -> float:
        """Return the volume of the prediction."""
        return self.counts.prediction * voxel_ml(self.affine)

    def calibration_error(self) -> float | None:
        """Measure as `expected_calibration_error`; None without probabilities."""
        return None if self.calibration is None else self.calibration.error


def spacing_mm(affine: ArrayLike) -> tuple[float, float, float] | None:
    """Return the lengths of a voxel's edges; None where they are not at right angles.

    A tilted or oblique grid is fine. On a sheared one a voxel's edges do not give its distances.
    """
    edges = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(edges, axis=0)
    cosines = (edges / lengths).T @ (edges / lengths) - np.eye(3)
    if np.abs(cosines).max() > RIGHT_ANGLE_TOLERANCE:
        return None
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


Kind = Literal["score", "distance", "error", "difference", "volume"]
Flag = Literal["", "false_positive", "missed", "missing", "failed", "absent", "sheared", "not_annotated"]


@dataclass(frozen=True)
class Measure:
    """What there is to know of a measure.

    Attributes:
        kind: ``score`` (0 to 1, 1 is best; a case without a usable prediction scores 0), ``distance`` (mm),
            ``error`` (0 is best), ``difference`` (summed up by label alone) or ``volume`` (never summed up).
        definition: in words, for reports.
        of: measures a pair of masks; None where the measure is not defined.
        digits: after the point, on the terminal.
        headline: whether it stands in the terminal's table; files hold all.
    """

    kind: Kind
    definition: str
    of: Callable[[Pair], float | None]
    digits: int = 4
    headline: bool = True


@dataclass(frozen=True, kw_only=True)
class LabelMeasure:
    """All measures of one label in one case; None where a measure is not defined.

    Attributes:
        label: value in the label map.
        name: what it stands for.
        flag: empty where both masks have voxels, else why some measures are 0 or None:
            ``false_positive`` (absent in truth, present in prediction), ``missed`` (the reverse),
            ``missing`` (no prediction), ``failed`` (a prediction that cannot be used), ``absent`` (absent in
            both: not counted), ``sheared`` (axes not at right angles: no distances), ``not_annotated`` (nobody looked
            for it in the case: nothing is measured).
    """

    label: int
    name: str
    dice: float | None = None
    iou: float | None = None
    hd_mm: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    nsd: float | None = None
    precision: float | None = None
    recall: float | None = None
    specificity: float | None = None
    lesion_f1: float | None = None
    lesion_dice: float | None = None
    ece: float | None = None
    truth_ml: float | None = None
    prediction_ml: float | None = None
    difference_ml: float | None = None
    flag: Flag = ""

    @property
    def counted(self) -> bool:
        """Whether the label takes part in the mean Dice."""
        return self.dice is not None


MEASURES: dict[str, Measure] = {
    "dice": Measure("score", "2 |A and B| / (|A| + |B|), by voxel count", lambda pair: pair.counts.dice),
    "iou": Measure("score", "|A and B| / |A or B|, by voxel count", lambda pair: pair.counts.iou, headline=False),
    "hd_mm": Measure(
        "distance",
        "Hausdorff distance of the two sets of voxel centres: the largest distance from a voxel of one "
        "mask to the other mask, both ways",
        Pair.hausdorff_mm,
        digits=2,
        headline=False,
    ),
    "hd95_mm": Measure(
        "distance",
        "larger of the two directed 95th percentiles of the distance between surfaces, "
        "surface elements weighted by area",
        Pair.hd95_mm,
        digits=2,
    ),
    "assd_mm": Measure(
        "distance",
        "mean distance between surfaces, over the elements of both together, weighted by area",
        Pair.assd_mm,
        digits=3,
    ),
    "nsd": Measure(
        "score",
        "share of the area of both surfaces that lies within the tolerance of the other surface; "
        "0 where only one of the two masks is empty",
        Pair.nsd,
    ),
    "precision": Measure(
        "score", "TP / (TP + FP), by voxel count; null where nothing is predicted", lambda pair: pair.counts.precision
    ),
    "recall": Measure(
        "score",
        "TP / (TP + FN), by voxel count, also called sensitivity; null where the truth is empty",
        lambda pair: pair.counts.recall,
    ),
    "specificity": Measure(
        "score",
        "TN / (TN + FP), by voxel count over the whole volume",
        lambda pair: pair.counts.specificity,
        headline=False,
    ),
    "lesion_f1": Measure(
        "score",
        "2 TP / (2 TP + FN + FP) in lesions, the 26-connected components: one of the truth is found where a voxel "
        "of it is predicted, a predicted one that touches no truth is false",
        lambda pair: pair.lesions.f1,
    ),
    "lesion_dice": Measure(
        "score",
        "mean over lesions of the Dice of a lesion of the truth with all predicted lesions that touch it; "
        "0 for each missed and each false lesion",
        lambda pair: pair.lesions.dice,
        headline=False,
    ),
    "ece": Measure(
        "error",
        "expected calibration error of the label's probabilities over all voxels of the volume, in 15 equal bins; "
        "null where no probabilities were kept",
        Pair.calibration_error,
    ),
    "truth_ml": Measure("volume", "voxel count of the truth times the voxel's volume", Pair.truth_ml),
    "prediction_ml": Measure("volume", "voxel count of the prediction times the voxel's volume", Pair.prediction_ml),
    "difference_ml": Measure(
        "difference", "prediction_ml - truth_ml", lambda pair: pair.prediction_ml() - pair.truth_ml(), digits=3
    ),
}
"""Name of a field to what there is to know of it."""

DEFINITIONS = {name: measure.definition for name, measure in MEASURES.items()}


Box = tuple[slice, ...]


def measure_case(
    truth: ArrayLike,
    prediction: ArrayLike | None,
    labels: Mapping[int, str],
    affine_or_spacing: ArrayLike,
    tolerance_mm: float = 1.0,
    calibrations: Mapping[int, Calibration] | None = None,
    voxels: int | None = None,
    looked_for: Collection[int] | None = None,
) -> list[LabelMeasure]:
    """Measure every label of a case.

    Args:
        truth: label map (X, Y, Z) of whole numbers; or, where labels overlap, a mask for each (labels, X, Y, Z).
        prediction: of the same shape, or None where there is none: Dice 0 for what is in truth.
        labels: value to name, without background.
        affine_or_spacing: (4, 4) voxel index to mm, or the three edges of a voxel in mm.
        tolerance_mm: for NSD.
        calibrations: label value to what its probabilities are worth, where they were kept.
        voxels: how many count, where some do not: both are 0 there.
        looked_for: labels that somebody looked for; None: all.

    Returns:
        One entry a label, in the order of ``labels``.

    Raises:
        ValueError: the shapes differ.
    """
    affine = _affine(affine_or_spacing)
    if prediction is None:
        return without_prediction(truth, labels, affine, "missing", looked_for)
    pairs = label_pairs(truth, prediction, labels, affine, tolerance_mm, calibrations, voxels)
    return [
        LabelMeasure(
            label=value,
            name=labels[value],
            flag=_flag(pair),
            **{name: measure.of(pair) for name, measure in MEASURES.items()},
        )
        if looked_for is None or value in looked_for
        else LabelMeasure(label=value, name=labels[value], flag="not_annotated")
        for value, pair in pairs
    ]


def label_pairs(
    truth: ArrayLike,
    prediction: ArrayLike,
    labels: Mapping[int, str],
    affine_or_spacing: ArrayLike,
    tolerance_mm: float = 1.0,
    calibrations: Mapping[int, Calibration] | None = None,
    voxels: int | None = None,
) -> Iterator[tuple[int, Pair]]:
    """Yield each label's value and two masks, in the box that holds both; arguments as in `measure_case`.

    Raises:
        ValueError: the shapes differ.
    """
    from scipy.ndimage import find_objects

    affine = _affine(affine_or_spacing)
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if true.shape != predicted.shape:
        raise ValueError(f"label maps of different shapes: {true.shape} and {predicted.shape}")
    of_calibration = calibrations or {}
    if true.ndim == 4:  # masks, which may overlap
        count = true[0].size if voxels is None else voxels
        for value in labels:
            masks = true[value - 1] != 0, predicted[value - 1] != 0
            box = _union(*(find_objects(mask.view(np.uint8), max_label=1)[0] for mask in masks))
            yield value, Pair(masks[0][box], masks[1][box], count, affine, tolerance_mm, of_calibration.get(value))
        return
    count = true.size if voxels is None else voxels
    true_boxes, predicted_boxes = (find_objects(label_map, max_label=max(labels)) for label_map in (true, predicted))
    for value in labels:
        box = _union(true_boxes[value - 1], predicted_boxes[value - 1])
        masks = true[box] == value, predicted[box] == value
        yield value, Pair(*masks, count, affine, tolerance_mm, of_calibration.get(value))


def without_prediction(
    truth: ArrayLike | None,
    labels: Mapping[int, str],
    affine: ArrayLike | None,
    flag: Flag,
    looked_for: Collection[int] | None = None,
) -> list[LabelMeasure]:
    """Return what a case counts that has no usable prediction: 0 for every label in truth, in every score.

    Where the truth cannot be used either (None), every label counts 0; one that nobody looked for never does.
    """
    measures = []
    for value, name in labels.items():
        if looked_for is not None and value not in looked_for:
            measures.append(LabelMeasure(label=value, name=name, flag="not_annotated"))
            continue
        volume = None
        if truth is not None and affine is not None:
            true = np.asarray(truth)
            volume = volume_ml(true[value - 1] != 0 if true.ndim == 4 else true == value, affine)
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


def _union(first: Box | None, second: Box | None) -> Box:
    """Return the box that holds both bounding boxes; None is that of a label that does not occur."""
    if first is None or second is None:
        return first or second or (slice(0, 0),) * 3
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
