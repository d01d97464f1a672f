"""The measures of `segpipe.evaluation` as Ignite metrics, reduced over processes.

Under several processes every case should come once: a sampler that pads its last batch counts some twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from segpipe.components.metric_base import (
    LabelMetric,
    ScoreMetric,
    case_means,
    label_map,
    label_maps,
    region_maps,
    require_known,
    sum_and_count,
)
from segpipe.components.truth_coding import coding_of
from segpipe.errors import UsageError
from segpipe.evaluation import (
    MEASURES,
    Calibration,
    Counts,
    SoftCounts,
    Targets,
    calibrate,
    count_soft,
    label_pairs,
    mean_defined,
)

KNOWN_POOLED = ("dice", "iou", "precision", "recall", "specificity")
KNOWN_PER_CASE = tuple(name for name, measure in MEASURES.items() if measure.kind != "error")
NEEDS_SPACING = ("nsd", *(name for name in KNOWN_PER_CASE if MEASURES[name].kind != "score"))


class CaseMetric(LabelMetric):
    """Mean over cases of the mean over labels of a measure, as `segpipe evaluate` reports it.

    A label counts in a case where the measure is defined there, a case where it is for a label of it. Takes label maps
    of shape (1, X, Y, Z); of regions the prediction is a mask for each, (regions, X, Y, Z). In a config::

        hd95: {_target_: segpipe.components.CaseMetric, measure: hd95_mm, labels: "@labels"}

    Args:
        measure: a name of `MEASURES`: dice, iou, precision, recall, specificity, nsd, hd_mm, hd95_mm,
            assd_mm, lesion_f1, lesion_dice, truth_ml, prediction_ml, difference_ml.
        labels: label names by value, background first.
        tolerance_mm: for nsd.
        spacing_mm: of a voxel; None takes it from the truth's affine.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.
        ignore_label, regions, annotated_sets: what the truth says, as of `coding_of`; regions are measured instead of
            labels.

    Raises:
        UsageError: no such measure; later, values that are no label maps, or mm asked for where no spacing is known.
    """

    def __init__(
        self,
        measure: str,
        labels: Sequence[str],
        tolerance_mm: float = 1.0,
        spacing_mm: Sequence[float] | None = None,
        output_transform: Callable | None = None,
        device: Any = "cpu",
        ignore_label: int | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        annotated_sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.measure = require_known("measure", measure, KNOWN_PER_CASE)
        self.tolerance_mm = tolerance_mm
        self.spacing_mm = spacing_mm
        self.coding = coding_of(len(labels), ignore_label, regions, annotated_sets)
        super().__init__(["background", *regions] if regions else labels, output_transform, device)

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for prediction, truth in zip(*output, strict=True):
            affine = self._affine(truth)
            true, predicted, targets = self._compared(truth, prediction)
            counted = targets.counted(true)
            masks = targets.masks(true, counted), targets.masks(predicted, counted)
            voxels = None if counted is None else int(np.count_nonzero(counted))
            pairs = label_pairs(*masks, self.names, affine, self.tolerance_mm, voxels=voxels)
            looked_for = targets.looked_for
            values = [MEASURES[self.measure].of(pair) if value in looked_for else None for value, pair in pairs]
            self._add(sum_and_count(values))

    def compute(self) -> float | None:
        """Return the mean over cases; 0 for a score where none counted: an empty validation never looks good."""
        (totals,) = self._sums_of_all((len(self.names) + 1, 2))
        *by_label, mean = case_means(totals)
        self._by_label(by_label)
        return 0.0 if mean is None and MEASURES[self.measure].kind == "score" else mean

    def _compared(self, truth: Tensor, prediction: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Targets]:
        """Return the truth's label map, the prediction's (or its masks of regions), and what is measured."""
        regions = [set(region) for region in self.coding.regions]
        if not regions:
            true, predicted = label_maps(truth, prediction)
        else:
            true, predicted = label_map(truth, "the truth"), region_maps(prediction, len(regions))
            if predicted.shape[1:] != true.shape:
                raise UsageError(
                    "prediction and truth have different shapes", found=predicted.shape[1:], expected=true.shape
                )
        annotated = None
        for code, known in zip(self.coding.codes, self.coding.annotated_sets, strict=True):
            if (here := true == code).any():
                true, annotated = np.where(here, np.uint8(0), true), frozenset(known)
        return true, predicted, Targets(self.names, regions, self.coding.ignore_label, annotated)

    def _affine(self, truth: Tensor) -> ArrayLike:
        if self.spacing_mm is not None:
            return self.spacing_mm
        affine = getattr(truth, "affine", None)
        if affine is not None and affine.shape == (4, 4):
            return np.asarray(affine.cpu(), dtype=np.float64)
        if self.measure in NEEDS_SPACING:
            raise UsageError(
                f"{self.measure} is in mm, and the spacing is not known",
                found="a tensor without an affine",
                expected="a MetaTensor, or spacing_mm",
            )
        return (1.0, 1.0, 1.0)


class CaseDice(CaseMetric):
    """Mean over cases of the mean Dice over labels, with one value per label beside it.

    A label absent in the truth but predicted counts as 0; absent in both it does not count; a case in which
    nothing counts is left out. Takes label maps of shape (1, X, Y, Z).

    Args:
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.
        ignore_label, regions, annotated_sets: as of `CaseMetric`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        output_transform: Callable | None = None,
        device: Any = "cpu",
        ignore_label: int | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        annotated_sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(
            "dice",
            labels,
            output_transform=output_transform,
            device=device,
            ignore_label=ignore_label,
            regions=regions,
            annotated_sets=annotated_sets,
        )

    def _key(self, name: str, label: str) -> str:
        return f"dice_{label}"


class PooledMetric(LabelMetric):
    """An overlap measure of the voxels of all cases together, and its mean over labels.

    Large cases weigh more than small ones here, and no case is ever undefined. Takes label maps of shape (1, X, Y, Z).

    Args:
        measure: dice, iou, precision, recall or specificity.
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.

    Raises:
        UsageError: no such measure; later, values that are no label maps.
    """

    def __init__(
        self, measure: str, labels: Sequence[str], output_transform: Callable | None = None, device: Any = "cpu"
    ) -> None:
        self.measure = require_known("measure", measure, KNOWN_POOLED)
        super().__init__(labels, output_transform, device)

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for prediction, truth in zip(*output, strict=True):
            pairs = label_pairs(*label_maps(truth, prediction), self.names, (1.0, 1.0, 1.0))
            counts = [pair.counts for _, pair in pairs]
            self._add(torch.tensor([[each.both, each.truth, each.prediction, each.voxels] for each in counts]))

    def compute(self) -> float | None:
        """Return the mean over labels; 0 where the measure is defined for none."""
        (totals,) = self._sums_of_all((len(self.names), 4))
        values = [getattr(Counts(*map(int, row)), self.measure) for row in totals.tolist()]
        self._by_label(values)
        return mean_defined(values) or 0.0


class SoftDice(ScoreMetric):
    """Dice of each label's probabilities, with the plain or the squared denominator; mean over labels.

    Pooled over all voxels of all cases, or per sample: then the mean over cases of the mean over labels. In a config::

        soft_dice: {_target_: segpipe.components.SoftDice, labels: "@labels", activation: "@activation", squared: true}

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, None for probabilities; see `ScoreMetric`.
        squared: square the terms of the denominator.
        smooth: added below, in voxels.
        smooth_above: added above; as ``smooth`` where it is not given.
        per_sample: whether each case has a Dice of its own.
        output_transform: from the engine's output to (scores, truths).
        device: of the sums.

    Raises:
        UsageError: no such activation; later, values that are no probabilities, or another number of channels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        activation: str | None = None,
        squared: bool = False,
        smooth: float = 0.0,
        smooth_above: float | None = None,
        per_sample: bool = False,
        output_transform: Callable | None = None,
        device: Any = "cpu",
    ) -> None:
        self.squared = squared
        self.smoothing = smooth, smooth_above
        self.per_sample = per_sample
        super().__init__(labels, activation, output_transform, device)

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for case in self._cases(output):
            counts = [count_soft(truth, probability, self.squared) for truth, probability in case]
            sums = torch.tensor([[label.product, label.terms] for label in counts], dtype=torch.float64)
            self._add(sums, sum_and_count([label.dice(*self.smoothing) for label in counts]))

    def compute(self) -> float | None:
        """Return the Dice; 0 where no case counted."""
        labels = len(self.names)
        sums, totals = self._sums_of_all((labels, 2), (labels + 1, 2))
        if self.per_sample:
            *by_label, mean = case_means(totals)
        else:
            by_label = [SoftCounts(*row).dice(*self.smoothing) for row in sums.tolist()]
            mean = mean_defined(by_label) if totals[-1, 1] else None
        self._by_label(by_label)
        return mean or 0.0


class CalibrationError(ScoreMetric):
    """Expected calibration error of each label's probabilities, all voxels of all cases together; mean over labels.

    In a config::

        ece: {_target_: segpipe.components.CalibrationError, labels: "@labels", activation: "@activation"}

    Args:
        labels: label names by value, background first.
        activation: ``softmax`` or ``sigmoid`` of logits, None for probabilities; see `ScoreMetric`.
        bins: equal bins of probability.
        output_transform: from the engine's output to (scores, truths).
        device: of the sums.

    Raises:
        UsageError: no such activation; later, values that are no probabilities, or another number of channels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        activation: str | None = None,
        bins: int = 15,
        output_transform: Callable | None = None,
        device: Any = "cpu",
    ) -> None:
        self.bins = bins
        super().__init__(labels, activation, output_transform, device)

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for case in self._cases(output):
            labels = [calibrate(truth, probability, self.bins) for truth, probability in case]
            parts = ([getattr(each, name) for each in labels] for name in ("voxels", "probability", "events"))
            self._add(*(torch.from_numpy(np.stack(part)) for part in parts))

    def compute(self) -> float | None:
        """Return the mean over labels; None without cases."""
        parts = (part.numpy() for part in self._sums_of_all(*[(len(self.names), self.bins)] * 3))
        errors = [Calibration(*row).error for row in zip(*parts, strict=True)]
        self._by_label(errors)
        return mean_defined(errors)
