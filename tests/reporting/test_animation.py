"""The animation: a frame an axial slice, outlines where the labels are, the same bytes each time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pictures import block, farthest, near, panel, rim
from PIL import Image

from segpipe.reporting.animation import LEAST_WIDTH, MOST_FRAMES, STRIP, gif
from segpipe.reporting.planes import PREDICTION_COLOUR, TRUTH_COLOUR, Panel

SHAPE = (30, 24, 7)
TRUTH = block(SHAPE, slice(16, 26), slice(5, 12), slice(2, 5))
PREDICTION = block(SHAPE, slice(4, 12), slice(10, 20), slice(3, 6))


def frames(content: bytes) -> list[np.ndarray]:
    """The slices without the lines of text above and below."""
    picture = Image.open(io.BytesIO(content))
    shown = []
    for index in range(picture.n_frames):
        picture.seek(index)
        shown.append(np.asarray(picture.convert("RGB"))[STRIP:-STRIP])
    return shown


def test_a_frame_an_axial_slice_with_outlines_where_the_labels_are() -> None:
    shown = frames(gif(panel(TRUTH, PREDICTION)))
    assert len(shown) == 7
    for z, frame in enumerate(shown):
        for labels, colour in ((TRUTH, TRUTH_COLOUR), (PREDICTION, PREDICTION_COLOUR)):
            drawn = near(frame, colour, 5)
            assert drawn.any() == labels[:, :, z].any()
            if drawn.any():
                plane = labels[::-1, ::-1, z].T  # rows from the front, the patient's right on the left
                rows, columns = (
                    np.arange(size) * old // size for size, old in zip(frame.shape[:2], plane.shape, strict=True)
                )
                border = rim(plane[np.ix_(rows, columns)].astype(bool))
                assert farthest(drawn, border) <= 4 and farthest(border, drawn) <= 5


def test_equal_panels_give_equal_bytes() -> None:
    assert gif(panel(TRUTH, PREDICTION)) == gif(panel(TRUTH, PREDICTION))


def test_pixels_are_square_millimetres() -> None:
    for spacing, shape in (((1, 1, 1), (24 * 320 // 30, 320)), ((2, 5, 1), (320, 160))):
        frame = frames(gif(panel(TRUTH, PREDICTION, spacing)))[0]
        assert frame.shape[:2] == (shape[0], max(shape[1], LEAST_WIDTH))
    assert frames(gif(panel(TRUTH, PREDICTION), 400))[0].shape[1] == 400


def test_one_slice_and_empty_labels() -> None:
    nothing = np.zeros((20, 20, 1), np.uint8)
    (frame,) = frames(gif(panel(nothing, nothing)))
    assert not near(frame, TRUTH_COLOUR).any() and not near(frame, PREDICTION_COLOUR).any()


def test_slices_that_look_the_same_are_frames_of_their_own() -> None:
    nothing = np.zeros((20, 20, 12), np.uint8)
    assert len(frames(gif(panel(nothing, nothing)))) == 12


def test_a_tall_scan_stays_small(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(32, 32, 400))
    labels = np.zeros(image.shape, np.uint8)
    (tmp_path / "a.gif").write_bytes(gif(Panel("a" * 128, "Dice 0.5", image, labels, labels, (1, 1, 1)), 128))
    picture = Image.open(tmp_path / "a.gif")
    assert picture.n_frames == 134 <= MOST_FRAMES and picture.info["loop"] == 0
    assert (tmp_path / "a.gif").stat().st_size < 4_000_000


@pytest.mark.parametrize("values", [np.nan, 7.0])
def test_an_image_without_contrast(values: float) -> None:
    image = np.full(SHAPE, values)
    assert gif(Panel("a", "", image, TRUTH, PREDICTION, (1, 1, 1))).startswith(b"GIF89a")
