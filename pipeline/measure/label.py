"""The one list of measures. To add one, add a field to `LabelMeasure`; tables, reports and metrics follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pipeline.measure.pair import Pair

Kind = Literal["score", "distance", "error", "difference", "volume"]
Flag = Literal["", "false_positive", "missed", "missing", "failed", "absent", "sheared"]


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


def _measured(*about: Any, **more: Any) -> Any:
    return field(default=None, metadata={"measure": Measure(*about, **more)})


@dataclass(frozen=True, kw_only=True)
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
    dice: float | None = _measured(
        "score", "2 |A and B| / (|A| + |B|), by voxel count", lambda pair: pair.counts.dice
    )
    iou: float | None = _measured(
        "score", "|A and B| / |A or B|, by voxel count", lambda pair: pair.counts.iou, headline=False
    )
    hd_mm: float | None = _measured(
        "distance",
        "Hausdorff distance of the two sets of voxel centres: the largest distance from a voxel of one "
        "mask to the other mask, both ways",
        Pair.hausdorff_mm,
        digits=2,
        headline=False,
    )
    hd95_mm: float | None = _measured(
        "distance",
        "larger of the two directed 95th percentiles of the distance between surfaces, "
        "surface elements weighted by area",
        Pair.hd95_mm,
        digits=2,
    )
    assd_mm: float | None = _measured(
        "distance",
        "mean distance between surfaces, over the elements of both together, weighted by area",
        Pair.assd_mm,
        digits=3,
    )
    nsd: float | None = _measured(
        "score",
        "share of the area of both surfaces that lies within the tolerance of the other surface; "
        "0 where only one of the two masks is empty",
        Pair.nsd,
    )
    precision: float | None = _measured(
        "score",
        "TP / (TP + FP), by voxel count; null where nothing is predicted",
        lambda pair: pair.counts.precision,
    )
    recall: float | None = _measured(
        "score",
        "TP / (TP + FN), by voxel count, also called sensitivity; null where the truth is empty",
        lambda pair: pair.counts.recall,
    )
    specificity: float | None = _measured(
        "score",
        "TN / (TN + FP), by voxel count over the whole volume",
        lambda pair: pair.counts.specificity,
        headline=False,
    )
    lesion_f1: float | None = _measured(
        "score",
        "2 TP / (2 TP + FN + FP) in lesions, the 26-connected components: one of the truth is found where a voxel "
        "of it is predicted, a predicted one that touches no truth is false",
        lambda pair: pair.lesions.f1,
    )
    lesion_dice: float | None = _measured(
        "score",
        "mean over lesions of the Dice of a lesion of the truth with all predicted lesions that touch it; "
        "0 for each missed and each false lesion",
        lambda pair: pair.lesions.dice,
        headline=False,
    )
    ece: float | None = _measured(
        "error",
        "expected calibration error of the label's probabilities over all voxels of the volume, in 15 equal bins; "
        "null where no probabilities were kept",
        Pair.calibration_error,
    )
    truth_ml: float | None = _measured(
        "volume", "voxel count of the truth times the voxel's volume", Pair.truth_ml
    )
    prediction_ml: float | None = _measured(
        "volume", "voxel count of the prediction times the voxel's volume", Pair.prediction_ml
    )
    difference_ml: float | None = _measured(
        "difference",
        "prediction_ml - truth_ml",
        lambda pair: pair.prediction_ml() - pair.truth_ml(),
        digits=3,
    )
    flag: Flag = ""

    @property
    def counted(self) -> bool:
        """Whether the label takes part in the mean Dice."""
        return self.dice is not None


MEASURES: dict[str, Measure] = {
    each.name: each.metadata["measure"] for each in fields(LabelMeasure) if "measure" in each.metadata
}
"""Name of a field to what there is to know of it."""
