"""A case to draw, and where to cut it: the same for every picture that compares two label maps.

Volumes are (X, Y, Z) with axes towards the patient's right, front and head (RAS). The patient's right is drawn on
the left, as a radiologist sees it. The outline of the truth is green and thick, that of the prediction red and thin,
so that they are told apart without colours too, and neither hides the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.errors import DataError

TRUTH_COLOUR, PREDICTION_COLOUR = "#22dd33", "#ff2b20"
LEAST_MARGIN_MM = 10.0
MARGIN = 0.3  # of the longest side of what is labelled
SAMPLES = 2_000_000  # enough voxels for a grey window
MOST_PARTS, MOST_VOXELS = 5, 8_000_000  # that are searched for the place of worst disagreement

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Panel:
    """One case to draw.

    Attributes:
        case_id: its name; the only thing in a picture that tells who it is.
        caption: a few words beside the name, such as the score.
        image: (X, Y, Z), any unit.
        truth: (X, Y, Z) label map.
        prediction: (X, Y, Z) label map; all 0 where there is none.
        spacing_mm: voxel size along X, Y and Z.
        labels: value to name, for the legend; may be empty.

    Raises:
        DataError: the three volumes are not of one shape.
    """

    case_id: str
    caption: str
    image: NDArray[Any]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    spacing_mm: Sequence[float]
    labels: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {self.image.shape, self.truth.shape, self.prediction.shape}
        if len(shapes) > 1 or self.image.ndim != 3:
            raise DataError(
                "image, truth and prediction cannot be drawn over each other",
                case_id=self.case_id,
                found=f"shapes {', '.join(map(str, sorted(shapes)))}",
                expected="one 3D grid",
            )


def window(image: NDArray[Any]) -> tuple[float, float]:
    """Return the values to draw black and white: percentiles 0.5 and 99.5 of the finite ones."""
    values = image.reshape(-1)
    values = values[:: max(1, values.size // SAMPLES)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return low, high if high > low else low + 1.0


def grey(image: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Return brightness from 0 to 1; what is not a number is black."""
    return np.nan_to_num(np.clip((image.astype(np.float64) - low) / (high - low), 0, 1), nan=0.0)


def worst_place(truth: NDArray[Any], prediction: NDArray[Any], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Return the voxel of the worst disagreement: the one farthest, in mm, from any voxel on which the two agree.

    So a missed lump comes before a long and thin rim. Of equals it is the one whose three planes show most
    disagreement. Where the two agree everywhere: the planes with most of the labels; without labels the middle.
    """
    wrong = truth != prediction
    if not wrong.any():
        return _place_of_most((truth != 0).astype(np.int64))
    parts = cc3d.statistics(cc3d.connected_components(wrong, connectivity=6))
    sizes, boxes = parts["voxel_counts"][1:], parts["bounding_boxes"][1:]
    best, place = 0.0, np.unravel_index(int(wrong.argmax()), wrong.shape)
    for part in np.argsort(-sizes.astype(np.int64), kind="stable")[:MOST_PARTS]:
        depth, inner = _deepest(wrong[boxes[part]], spacing_mm)
        if depth > best:
            best, place = depth, tuple(side.start + at for side, at in zip(boxes[part], inner, strict=True))
    x, y, z = (int(index) for index in place)
    return x, y, z


def _deepest(wrong: NDArray[Any], spacing_mm: Sequence[float]) -> tuple[float, tuple[int, ...]]:
    """Return depth in mm and place of a part's innermost voxel; of a large part only every n-th voxel is tried."""
    step = max(1, math.ceil((wrong.size / MOST_VOXELS) ** (1 / 3)))
    tried = wrong[::step, ::step, ::step]
    depth = ndimage.distance_transform_edt(np.pad(tried, 1), sampling=[mm * step for mm in spacing_mm])
    depth = depth[1:-1, 1:-1, 1:-1]
    seen = sum(_counts(tried, axis) for axis in range(3))
    innermost = tried & (depth >= depth.max() * (1 - 1e-9))
    place = np.unravel_index(int(np.where(innermost, seen, -1).argmax()), tried.shape)
    return float(depth.max()), tuple(int(index) * step for index in place)


def labelled_box(panel: Panel) -> Box:
    """Return the part of the volume worth drawing: what is labelled, with a margin; without labels all of it."""
    boxes = ndimage.find_objects(((panel.truth != 0) | (panel.prediction != 0)).view(np.uint8))
    if not boxes:
        x, y, z = (slice(0, size) for size in panel.image.shape)
        return x, y, z
    sides = [(part.stop - part.start) * mm for part, mm in zip(boxes[0], panel.spacing_mm, strict=True)]
    margin_mm = max(LEAST_MARGIN_MM, MARGIN * max(sides))
    x, y, z = (
        slice(max(0, part.start - round(margin_mm / mm)), min(size, part.stop + round(margin_mm / mm)))
        for part, mm, size in zip(boxes[0], panel.spacing_mm, panel.image.shape, strict=True)
    )
    return x, y, z


def _counts(mask: NDArray[Any], axis: int) -> NDArray[Any]:
    """Count the voxels set in each plane along an axis, shaped to be added to the volume."""
    return mask.sum(axis=tuple({0, 1, 2} - {axis}), keepdims=True)


def _place_of_most(weights: NDArray[Any]) -> tuple[int, int, int]:
    if not weights.any():
        x, y, z = (size // 2 for size in weights.shape)
        return x, y, z
    x, y, z = (int(_counts(weights, axis).argmax()) for axis in range(3))
    return x, y, z
