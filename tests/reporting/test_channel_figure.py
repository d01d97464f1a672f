"""The picture of a case's channels: what lies apart is seen at the borders of the checkerboard."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from segpipe.reporting.case_overlay import PLANES, SIDE_LETTERS, plane_picture
from segpipe.reporting.channel_figure import FIELD_MM, channel_figure, checkerboard, draw_channels


def test_the_fields_are_cubes_in_mm() -> None:
    fields = checkerboard((60, 30, 20), (1.0, 2.0, 5.0))
    assert fields[0, 0, 0] and fields[24, 12, 4]
    assert not fields[25, 0, 0] and not fields[0, 13, 0] and not fields[0, 0, 5]
    assert fields[25, 13, 0] and not fields[25, 13, 5]
    assert FIELD_MM == 25.0


def test_fields_are_of_one_channel_or_the_other(tmp_path: Path) -> None:
    """A dark and a bright channel, the other way round in their last slices: the board is of both."""
    shape, spacing = (100, 100, 50), (1.0, 1.0, 2.0)
    dark, bright = np.zeros(shape), np.full(shape, 9.0)
    dark[..., -5:], bright[..., -5:] = 9, 0
    picture = Image.open(io.BytesIO(channel_figure([dark, bright], np.zeros(shape, np.uint8), spacing, ["CT", "PET"])))
    pixels = np.asarray(picture.convert("L"))
    height = pixels.shape[0] // 3
    rows = [pixels[n * height + 40 : (n + 1) * height - 20, 20:300] for n in range(3)]
    assert rows[0].mean() < 80 < 170 < rows[1].mean()
    assert 0.3 < (rows[2] < 60).mean() < 0.6 and 0.3 < (rows[2] > 200).mean() < 0.6
    for name, volume in (("a", dark), ("b", bright)):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([-1.0, -1, 2, 1])), tmp_path / f"{name}.nii.gz")
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    draw_channels(files, None, ["CT", "PET"], tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").size == picture.size


@pytest.mark.parametrize(("plane", "sides"), [(0, "APIS"), (1, "RLIS"), (2, "RLPA")])
@pytest.mark.parametrize("grey", [0, 255])
def test_the_patients_sides_stand_at_the_edges(plane: int, sides: str, grey: int) -> None:
    """Each edge is compared with all six letters as pictures; white with a dark stroke is seen on black and white."""
    image = np.full((40, 40, 40), grey, np.uint8)
    shown = next(one for one in PLANES if one.normal == plane)
    pixels = np.asarray(plane_picture(shown, image, np.zeros_like(image), 20, (1, 1, 1), 5.0).convert("L"))
    at_edges = {
        "left": pixels[80:120, :20],
        "right": pixels[80:120, -20:],
        "bottom": pixels[-20:, 90:110],
        "top": pixels[:20, 90:110],
    }
    for letter, (edge, found) in zip(sides, at_edges.items(), strict=True):
        likeness = {other: np.abs(found - drawn(other, edge, found.shape, grey)).mean() for other in "RLAPIS"}
        assert min(likeness, key=lambda other: likeness[other]) == letter, edge
        assert np.ptp(found.astype(int)) > 150  # white with a dark stroke, on black and on white


def drawn(letter: str, edge: str, shape: tuple[int, ...], grey: int) -> np.ndarray:
    anchor, x, y = {
        "left": ("lm", 4, shape[0] / 2),
        "right": ("rm", shape[1] - 4, shape[0] / 2),
        "bottom": ("mb", shape[1] / 2, shape[0] - 4),
        "top": ("mt", shape[1] / 2, 4),
    }[edge]
    canvas = Image.new("L", (shape[1], shape[0]), grey)
    font = ImageFont.load_default(SIDE_LETTERS)
    ImageDraw.Draw(canvas).text((x, y), letter, fill=255, stroke_width=2, stroke_fill=40, font=font, anchor=anchor)
    return np.asarray(canvas).astype(float)


def test_a_bright_side_is_drawn_at_its_letter() -> None:
    """The voxels towards the patient's right, front and head are where R, A and S stand."""
    for axis, letter in ((0, "R"), (1, "A"), (2, "S")):
        image = np.zeros((40, 40, 40), np.uint8)
        np.moveaxis(image, axis, 0)[20:] = 200
        for plane in PLANES:
            if letter in plane.letters:
                pixels = np.asarray(plane_picture(plane, image, np.zeros_like(image), 20, (1, 1, 1), 5.0).convert("L"))
                halves = (pixels[:, :100], pixels[:, 100:], pixels[100:], pixels[:100])
                means = [half.mean() for half in halves]
                assert int(np.argmax(means)) == plane.letters.index(letter), (plane.name, letter)
