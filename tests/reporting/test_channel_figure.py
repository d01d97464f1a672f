"""The picture of a case's channels: what lies apart is seen at the borders of the checkerboard."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

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
