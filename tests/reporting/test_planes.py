"""Where to cut, how to turn, and the outlines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pictures import block, panel

from segpipe.errors import DataError
from segpipe.reporting.case_overlay import AXIAL, PLANES, outlines
from segpipe.reporting.planes import Panel, grey, labelled_box, window, worst_place


def area(line: np.ndarray) -> float:
    """Signed area within a closed line (shoelace formula)."""
    x, y = line.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2)),
    st.sampled_from([(1.0, 1.0), (0.5, 3.0), (4.0, 1.0), (0.7, 0.7)]),
)
def test_outlines_close_and_hold_the_area_of_the_labels(labels: np.ndarray, pixel_mm: tuple[float, float]) -> None:
    lines = list(outlines(labels, pixel_mm))
    whole = np.array(labels.shape[::-1]) * pixel_mm
    for line in lines:
        assert np.array_equal(line[0], line[-1])
        assert (line >= -1e-9).all() and (line <= whole + 1e-9).all()
    # every corner is cut by a triangle of an eighth of the smallest part of a pixel
    parts = np.prod(pixel_mm) / np.prod([max(1, round(side / min(pixel_mm))) for side in pixel_mm])
    corners = 4 * np.count_nonzero(labels)
    assert abs(abs(sum(map(area, lines))) - np.count_nonzero(labels) * np.prod(pixel_mm)) <= corners * parts / 8 + 1e-9


def test_an_outline_runs_along_the_borders_of_pixels() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 2:7] = 5
    (line,) = outlines(labels, (2.0, 3.0))
    x, y = line.T
    assert (x.min(), x.max(), y.min(), y.max()) == (4, 14, 3, 9)
    assert list(outlines(np.zeros((3, 3)), (1, 1))) == []


def test_planes_show_the_right_on_the_left_and_the_head_above() -> None:
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    axial, coronal, sagittal = (plane.cut(volume, 1) for plane in PLANES)
    assert axial.tolist() == [[volume[1, y, 1], volume[0, y, 1]] for y in range(3)]
    assert coronal.tolist() == [[volume[1, 1, z], volume[0, 1, z]] for z in range(4)]
    assert sagittal.tolist() == [[volume[1, y, z] for y in (2, 1, 0)] for z in range(4)]
    assert [plane.pixel_mm((1, 2, 3)) for plane in PLANES] == [(1, 2), (1, 3), (2, 3)]


def test_a_missed_lump_comes_before_a_long_rim() -> None:
    truth = block((40, 40, 10), slice(2, 38), slice(2, 4), slice(0, 10))  # a long thin plate
    truth[20:26, 20:26, 3:9] = 1
    x, y, z = worst_place(truth, np.zeros_like(truth), (1, 1, 1))
    assert 22 <= x <= 23 and 22 <= y <= 23 and 5 <= z <= 6


def test_depth_is_in_mm() -> None:
    truth = block((30, 30, 8), slice(0, 9), slice(0, 9), slice(0, 3))  # 9 x 9 x 3 mm, or 9 x 9 x 15
    truth[20:25, 20:25, 3:8] = 1  # 5 x 5 x 5 mm, or 5 x 5 x 25
    assert worst_place(truth, np.zeros_like(truth), (1, 1, 1)) == (22, 22, 5)
    assert worst_place(truth, np.zeros_like(truth), (1, 1, 5))[:2] == (4, 4)


def test_where_all_agrees_most_of_the_labels_is_shown() -> None:
    truth = block((10, 12, 14), slice(2, 5), slice(3, 8), slice(11, 12))
    truth[3, 4, 10] = 2
    assert worst_place(truth, truth, (1, 1, 1)) == (3, 4, 11)
    nothing = np.zeros((10, 12, 14), np.uint8)
    assert worst_place(nothing, nothing, (1, 1, 1)) == (5, 6, 7)


@given(arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 2)), arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 2)))
def test_the_worst_place_is_a_disagreement(truth: np.ndarray, prediction: np.ndarray) -> None:
    place = worst_place(truth, prediction, (1, 2, 3))
    assert (truth == prediction).all() or truth[place] != prediction[place]


def test_the_view_is_what_is_labelled_with_a_margin() -> None:
    truth = block((100, 100, 50), slice(40, 50), slice(0, 10), slice(20, 22))
    far = block((100, 100, 50), slice(70, 80), slice(5, 6), slice(20, 22))
    box = labelled_box(panel(truth, np.zeros_like(truth), (1, 1, 5)))
    assert box == (slice(30, 60), slice(0, 20), slice(18, 24))
    box = labelled_box(panel(truth, far, (1, 1, 5)))
    assert box == (slice(28, 92), slice(0, 22), slice(18, 24))
    whole = labelled_box(panel(np.zeros_like(truth), np.zeros_like(truth)))
    assert whole == (slice(0, 100), slice(0, 100), slice(0, 50))


def test_window_and_grey_survive_what_is_not_finite() -> None:
    image = np.array([[[0.0, np.nan, np.inf, 10.0]]])
    low, high = window(image)
    assert 0 <= low < high <= 10
    assert np.isfinite(grey(image, low, high)).all() and grey(image, low, high)[0, 0, 1] == 0
    assert window(np.full((2, 2, 2), np.nan)) == (0, 1)
    assert window(np.full((2, 2, 2), 7.0)) == (7, 8)


def test_volumes_of_different_shape_are_never_drawn_over_each_other() -> None:
    image, labels = np.zeros((4, 4, 4)), np.zeros((4, 4, 3))
    with pytest.raises(DataError, match="over each other") as caught:
        Panel("a", "", image, labels, labels, (1, 1, 1))
    assert caught.value.case_id == "a"


def test_axial_letters() -> None:
    assert (AXIAL.name, AXIAL.letters) == ("axial", "RLPA")
