"""The corners at which slices are judged."""

from __future__ import annotations

import numpy as np

from segpipe.dicom.geometry import Stack


def test_corners_of_pixels_that_are_not_square() -> None:
    """PS3.3 C.7.6.2.1.1: the first value of PixelSpacing is from row to row, along the direction of a column."""
    orientation = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]  # sagittal: rows run along y, columns against z
    stack = Stack(np.array([[5.0, 6.0, 7.0]]), np.array([orientation]), np.array([[2.0, 0.5]]), rows=4, columns=9)

    assert stack.corners()[0].tolist() == [[5, 6, 7], [5, 10, 7], [5, 6, 1], [5, 10, 1]]
