"""Contours along pixel edges give the mask back, whatever its shape."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.dicom.write.rtstruct import contours

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def crossings(polygon: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often a ray from each pixel's centre towards +i meets the polygon's edges along j."""
    i, j = np.indices(shape) + 0.5
    found = np.zeros(shape, int)
    for (i0, j0), (i1, j1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        assert i0 == i1 or j0 == j1
        if i0 == i1:
            found += (j > min(j0, j1)) & (j < max(j0, j1)) & (i < i0)
    return found


def windings(polygon: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """The same ray, counting the edges' directions."""
    i, j = np.indices(shape) + 0.5
    found = np.zeros(shape, int)
    for (i0, j0), (i1, j1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if i0 == i1:
            found += ((j > min(j0, j1)) & (j < max(j0, j1)) & (i < i0)) * np.sign(j1 - j0)
    return found


@given(MASKS)
def test_every_rule_of_filling_gives_the_mask_back(mask: NDArray[np.bool_]) -> None:
    polygons = contours(mask)
    for rule in (
        lambda polygon: crossings(polygon, mask.shape) % 2,
        lambda polygon: windings(polygon, mask.shape) != 0,
    ):
        filled = sum((rule(polygon).astype(int) for polygon in polygons), np.zeros(mask.shape, int))
        assert np.array_equal(filled, mask)  # so united, added and even-odd readers agree


@given(MASKS)
def test_one_polygon_for_each_part_with_its_area(mask: NDArray[np.bool_]) -> None:
    polygons = contours(mask)
    parts, count = ndimage.label(mask)
    assert len(polygons) == count
    areas = []
    for polygon in polygons:
        x, y = polygon.T
        areas.append((x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
    assert sorted(areas) == sorted(np.bincount(parts.ravel())[1:].tolist())


def test_corners_only_and_a_keyhole() -> None:
    assert contours(np.ones((3, 2), bool))[0].tolist() == [[3, 0], [3, 2], [0, 2], [0, 0]]
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    (polygon,) = contours(ring)
    assert polygon.tolist().count([0, 1]) == 2  # there and back
    assert len(polygon) == 10


def test_nothing_has_no_contour() -> None:
    assert contours(np.zeros((3, 4), bool)) == []
