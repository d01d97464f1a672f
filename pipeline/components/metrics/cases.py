"""A measure of every case, and its mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from numpy.typing import ArrayLike
from torch import Tensor

from pipeline.components.metrics.base import LabelMetric, add_case, case_means, known, label_maps
from pipeline.errors import UsageError
from pipeline.measure import MEASURES, label_pairs

KNOWN = tuple(name for name, measure in MEASURES.items() if measure.kind != "error")
NEEDS_SPACING = ("nsd", *(name for name in KNOWN if MEASURES[name].kind != "score"))


class CaseMetric(LabelMetric):
    """Mean over cases of the mean over labels of a measure, as `segpipe evaluate` reports it.

    A label counts in a case where the measure is defined there, a case where it is for a label of it. Takes label maps
    of shape (1, X, Y, Z). In a config::

        hd95: {_target_: pipeline.components.CaseMetric, measure: hd95_mm, labels: "@labels"}

    Args:
        measure: a name of `pipeline.measure.MEASURES`: dice, iou, precision, recall, specificity, nsd, hd_mm, hd95_mm,
            assd_mm, lesion_f1, lesion_dice, truth_ml, prediction_ml, difference_ml.
        labels: label names by value, background first.
        tolerance_mm: for nsd.
        spacing_mm: of a voxel; None takes it from the truth's affine.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.

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
    ) -> None:
        self.measure = known("measure", measure, KNOWN)
        self.tolerance_mm = tolerance_mm
        self.spacing_mm = spacing_mm
        super().__init__(labels, output_transform, device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self._totals = self._zeros(len(self.names) + 1, 2)

    @reinit__is_reduced
    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Add the cases of a batch."""
        for prediction, truth in zip(*output, strict=True):
            affine = self._affine(truth)
            pairs = label_pairs(*label_maps(truth, prediction), self.names, affine, self.tolerance_mm)
            add_case(self._totals, [MEASURES[self.measure].of(pair) for _, pair in pairs])

    @sync_all_reduce("_totals")
    def compute(self) -> float | None:
        """Mean over cases; where none counted 0 for a score, so that an empty validation never looks good."""
        *by_label, mean = case_means(self._totals)
        self._by_label(by_label)
        return 0.0 if mean is None and MEASURES[self.measure].kind == "score" else mean

    def _affine(self, truth: Tensor) -> ArrayLike:
        if self.spacing_mm is not None:
            return self.spacing_mm
        affine = getattr(truth, "affine", None)
        if affine is not None and affine.shape == (4, 4):
            return np.asarray(affine.cpu(), dtype=np.float64)
        if self.measure in NEEDS_SPACING:
            raise UsageError(
                f"{self.measure} is in mm, and the spacing is not known", found="a tensor without an affine",
                expected="a MetaTensor, or spacing_mm",
            )  # fmt: skip
        return (1.0, 1.0, 1.0)


class CaseDice(CaseMetric):
    """Mean over cases of the mean Dice over labels, with one value per label beside it.

    A label absent in the truth but predicted counts as 0; absent in both it does not count; a case in which
    nothing counts is left out. Takes label maps of shape (1, X, Y, Z).

    Args:
        labels: label names by value, background first.
        output_transform: from the engine's output to (predictions, truths).
        device: of the sums.
    """

    def __init__(
        self, labels: Sequence[str], output_transform: Callable | None = None, device: Any = "cpu"
    ) -> None:
        super().__init__("dice", labels, output_transform=output_transform, device=device)

    def _key(self, name: str, label: str) -> str:
        return f"dice_{label}"
