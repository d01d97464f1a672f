"""Have nibabel take a quaternion that rounding made longer than 1, as the reference library of NIfTI does.

A header has b, c and d of a unit quaternion; a is the root of what is left to 1. In half a turn nothing is left, and
float32 or printed decimals may leave a little less, which nibabel refuses. Valid public data are stored so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = 1e-3  # by which the square may exceed 1: three decimals


def nibabel_that_shortens() -> Any:
    """Return nibabel, after `accept_rounded_quaternions`."""
    import nibabel

    accept_rounded_quaternions()
    return nibabel


def accept_rounded_quaternions() -> None:
    """Have nibabel shorten a quaternion to 1 whose square exceeds that by up to `TOLERANCE`, before it judges it.

    For the whole process, since MONAI reads through nibabel: training then takes the files that prediction takes.
    """
    from nibabel import nifti1

    exact = nifti1.fillpositive
    if getattr(exact, "shortens", False):
        return

    def shortened(xyz: Any, w2_thresh: Any = None) -> Any:
        vector = np.asarray(xyz, np.float64)
        square = float(vector @ vector)
        if 1 < square <= 1 + TOLERANCE:
            return np.concatenate([[0.0], vector / np.sqrt(square)])
        return exact(xyz, w2_thresh)

    shortened.shortens = True  # type: ignore[attr-defined]
    nifti1.fillpositive = shortened
