"""Which cases to look at, and their volumes brought to one orientation to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluate.cases import CaseResult
from pipeline.evaluate.summary import case_value
from pipeline.manifest import Case
from pipeline.nifti import Header, grid_difference, read_header, read_volume
from pipeline.report.planes import Panel
from pipeline.results import find_segmentation


def worst_cases(results: Sequence[CaseResult], number: int) -> list[CaseResult]:
    """The measured cases of lowest mean Dice, the worst first; one that failed has no prediction to look at."""
    scores = {result.id: case_value(result, "dice") for result in results if result.failure is None}
    ranked = sorted((score, id) for id, score in scores.items() if score is not None)
    by_id = {result.id: result for result in results}
    return [by_id[id] for _, id in ranked[:number]]


def read_panel(case: Case, data: Path, predictions: Path, labels: Mapping[int, str], caption: str) -> Panel:
    """A case's image, truth and prediction, with axes towards the patient's right, front and head.

    Of several channels the first is taken. All three are turned in the same way, by the truth's affine, so that they
    cannot come apart.

    Args:
        case: with a label.
        data: folder that the case's paths start from.
        predictions: folder of predictions.
        labels: value to name, without background.
        caption: what to write beside the case's id.

    Raises:
        UsageError: the image is not there.
        DataError: there is no prediction, a file cannot be read, or their grids differ.
    """
    path = find_segmentation(predictions, case.id)
    if case.label is None or path is None:
        raise DataError("there is no prediction to draw", case_id=case.id)
    truth, prediction, image = (
        read_header(file) for file in (data / case.label, path, data / case.images[0])
    )
    for what, header in (("prediction", prediction), ("image", replace(image, shape=image.shape[:3]))):
        difference = grid_difference(truth, header)
        if difference is not None:
            raise DataError(f"the {what} is not on the grid of the truth", found=difference, case_id=case.id)
    turned = [_turned(_first_channel(header), truth) for header in (image, truth, prediction)]
    return Panel(case.id, caption, turned[0], turned[1], turned[2], _turned_spacing(truth), labels)


def _first_channel(header: Header) -> NDArray[np.generic]:
    values = read_volume(header)
    return values.reshape(*values.shape[:3], -1)[..., 0]


def _turned(volume: NDArray[np.generic], header: Header) -> NDArray[np.generic]:
    """The volume with each axis towards right, front or head, whichever of the header's affine is nearest."""
    from nibabel.orientations import apply_orientation, io_orientation

    turned: NDArray[np.generic] = apply_orientation(volume, io_orientation(header.affine))
    return turned


def _turned_spacing(header: Header) -> tuple[float, float, float]:
    from nibabel.orientations import io_orientation

    axes = io_orientation(header.affine)[:, 0].astype(int)  # where each stored axis goes
    x, y, z = (header.spacing_mm[int(stored)] for stored in np.argsort(axes))
    return x, y, z
