"""The gallery, pixel by pixel: red around the prediction, green around the truth, in true proportion."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import block, farthest, near, panel, pixels, rim
from scipy import ndimage

from segpipe.reporting.failure_gallery import gallery
from segpipe.reporting.planes import PREDICTION_COLOUR, TRUTH_COLOUR

SHAPE = (30, 24, 12)
SPACING = (1.0, 1.0, 2.0)
TRUTH = block(SHAPE, slice(18, 26), slice(5, 12), slice(3, 9))  # towards the patient's right and back
PREDICTION = block(SHAPE, slice(6, 13), slice(12, 20), slice(3, 9))
NOTHING = np.zeros(SHAPE, np.uint8)


def slices(picture: np.ndarray) -> list[tuple[slice, slice]]:
    """The black rectangles of the page that are slices, from left to right."""
    found = ndimage.find_objects(ndimage.label(ndimage.binary_closing(~near(picture, "#ffffff", 5)))[0])
    large = [box for box in found if all(side.stop - side.start > 60 for side in box)]
    return sorted(large, key=lambda box: box[1].start)


def enlarged(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A plane's mask as it should appear, rows from the top."""
    rows, columns = (np.arange(size) * old // size for size, old in zip(shape, plane.shape, strict=True))
    return plane[::-1][np.ix_(rows, columns)]


def test_red_is_the_border_of_the_prediction_and_green_that_of_the_truth() -> None:
    picture = pixels(gallery([panel(TRUTH, PREDICTION, SPACING)]))
    axial, coronal, sagittal = slices(picture)
    for box, normal in ((axial, 2), (coronal, 1), (sagittal, 0)):
        view = picture[box]
        for labels, colour in ((TRUTH, TRUTH_COLOUR), (PREDICTION, PREDICTION_COLOUR)):
            drawn = near(view, colour, 60)
            if not drawn.any():
                continue
            plane = labels.any(axis=normal).T[:, ::-1]  # a box has the same section wherever it is cut
            border = rim(enlarged(plane, view.shape[:2]))
            assert farthest(drawn, border) <= 4, (normal, colour)
            assert farthest(border, drawn) <= 5, "the whole border is drawn"
    assert near(picture[axial], TRUTH_COLOUR, 60).any()


def test_the_patients_right_is_on_the_left_and_the_front_above() -> None:
    picture = pixels(gallery([panel(TRUTH, PREDICTION, SPACING)]))
    axial = picture[slices(picture)[0]]
    green_y, green_x = np.argwhere(near(axial, TRUTH_COLOUR)).mean(axis=0)
    assert green_x < axial.shape[1] / 2 and green_y > axial.shape[0] / 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (2.0, 1.0, 1.0)])
def test_slices_are_in_true_proportion(spacing: tuple[float, float, float]) -> None:
    both = block(SHAPE, slice(1, 29), slice(1, 23), slice(1, 11))
    picture = pixels(gallery([panel(both, both, spacing)]))
    sides = np.array(SHAPE) * spacing
    for box, (across, up) in zip(slices(picture), ((0, 1), (0, 2), (1, 2)), strict=True):
        rows, columns = (side.stop - side.start for side in box)
        assert columns / rows == pytest.approx(sides[across] / sides[up], rel=0.05)


def test_equal_panels_give_equal_bytes() -> None:
    one, other = (gallery([panel(TRUTH, PREDICTION, SPACING)]) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(("truth", "prediction"), [(TRUTH, NOTHING), (NOTHING, PREDICTION), (NOTHING, NOTHING)])
def test_empty_masks_have_no_outline(truth: np.ndarray, prediction: np.ndarray) -> None:
    picture = pixels(gallery([panel(truth, prediction, SPACING)]))
    views = [picture[box] for box in slices(picture)]
    assert len(views) == 3
    assert any(near(view, TRUTH_COLOUR).any() for view in views) == truth.any()
    assert any(near(view, PREDICTION_COLOUR).any() for view in views) == prediction.any()


@pytest.mark.parametrize("shape", [(30, 24, 1), (1, 24, 30), (24, 1, 1)])
def test_a_single_slice_is_drawn(shape: tuple[int, int, int]) -> None:
    labels = np.ones(shape, np.uint8)
    assert gallery([panel(labels, np.zeros_like(labels), (1, 1, 3))]).startswith(b"\x89PNG")


def test_several_labels_are_named_and_tinted() -> None:
    both = TRUTH + 2 * PREDICTION
    names = {1: "liver", 2: "a name that is very much too long for a legend"}
    tinted = pixels(gallery([panel(both, both, SPACING, labels=names)]))
    plain = pixels(gallery([panel(TRUTH, TRUTH, SPACING, labels=names)]))
    red, _, blue = tinted[slices(tinted)[0]].astype(int).transpose(2, 0, 1)
    assert (blue - red > 30).sum() > 500, "the area of label 1 is tinted"
    assert np.ptp(plain[slices(plain)[0]].astype(int), axis=-1).max() > 0
    many = sum(block(SHAPE, slice(x, x + 1), slice(2, 20), slice(2, 9), x) for x in range(1, 26))
    assert gallery([panel(many, many, SPACING)]).startswith(b"\x89PNG")


def test_cases_are_loaded_one_after_the_other() -> None:
    assert pixels(gallery(panel(TRUTH, PREDICTION, SPACING) for _ in range(3))).shape[1] == 1080
