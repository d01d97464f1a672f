"""Calibration of a case's labels, from the probabilities that were kept beside its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.measure import Calibration, calibrate_labels
from pipeline.nifti import Header, grid_difference, read_header, read_volume


def read_calibrations(
    path: Path, truth: NDArray[np.uint8], grid: Header, labels: Sequence[int]
) -> dict[int, Calibration]:
    """What the probabilities of every label are worth.

    Args:
        path: a file (X, Y, Z, C): a channel for every label value with background (softmax), or without (sigmoid).
        truth: label map (X, Y, Z).
        grid: of the truth.
        labels: values, without background.

    Raises:
        UsageError: no permission to read it.
        DataError: unreadable, on another grid, another number of channels, or values that are no probabilities.
    """
    header = read_header(path)
    spatial = header.shape[:3]
    difference = grid_difference(grid, replace(header, shape=spatial))
    if len(header.shape) > 4:
        difference = f"shape {header.shape}"
    if difference is not None:
        raise DataError("the probabilities are not on the grid of the truth", found=difference)
    channels = np.moveaxis(read_volume(header).reshape(*spatial, -1), -1, 0)
    try:
        return calibrate_labels(truth, channels, labels)
    except ValueError as error:
        raise DataError("the probabilities cannot be used", found=str(error)) from error
