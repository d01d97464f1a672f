"""A function of the place in mm, sampled on tilted and uneven slices, is found again on the repaired grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from make import AXIAL, OBLIQUE, Grid, series, write
from pydicom import Dataset

from segpipe.dicom.model import Volume
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load, load_series
from segpipe.errors import DataError

Function = Callable[[np.ndarray], np.ndarray]
STORED_MM = 0.01  # of the value: rounding by the slope


def linear(place: np.ndarray) -> np.ndarray:
    """Linear interpolation gives it exactly."""
    return np.asarray(place @ [0.7, -1.1, 0.9] + 5)


def blob(place: np.ndarray) -> np.ndarray:
    """A bright sphere of 12 mm with a soft edge, as an organ has it."""
    return np.asarray(200 / (1 + np.exp((np.linalg.norm(place - [0, 55, 25], axis=-1) - 12) / 2)))


def sampled(
    function: Function, heights: Sequence[float], shear: float, orientation: Sequence[float] = AXIAL
) -> list[Dataset]:
    """Slices at these heights, each shifted along its columns by ``shear`` times its height (mm)."""
    grid = Grid(orientation, rows=40, columns=36, slices=len(heights), spacing=(1.5, 1.25))
    images = series(grid, RescaleSlope=str(STORED_MM))
    row, column = np.reshape(orientation, (2, 3))
    i, j = np.meshgrid(np.arange(36), np.arange(40))
    for image, height in zip(images, heights, strict=True):
        start = np.array(grid.origin) + height * grid.normal + shear * height * column
        place = start + i[..., None] * 1.25 * row + j[..., None] * 1.5 * column
        image.ImagePositionPatient = [f"{number:.8f}"[:16] for number in start]
        image.PixelData = np.rint(function(place) / STORED_MM).astype("<i2").tobytes()
    return images


def compare(volume: Volume, function: Function) -> tuple[float, float]:
    """Largest error where slices are, and the part of the grid that has none."""
    index = np.indices(volume.array.shape).reshape(3, -1).T
    place = index @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]
    expected = function(place * [-1, -1, 1]).reshape(volume.array.shape)
    outside = volume.array == volume.array.min()
    return float(np.abs(volume.array - expected)[~outside].max()), float(outside.mean())


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("degrees", [14, -20])
def test_a_tilted_stack_is_made_upright(degrees: float, orientation: Sequence[float], tmp_path: Path) -> None:
    heights = np.arange(10) * 3.0
    write(sampled(linear, heights, float(np.tan(np.radians(degrees))), orientation), tmp_path)
    (judged,) = scan(tmp_path).series
    assert judged.reason == "gantry_tilt"
    volume = load_series(judged, repair="tilt")
    worst, outside = compare(volume, linear)
    assert worst <= STORED_MM
    assert outside < 0.3
    axes = volume.affine_ras[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    assert volume.spacing_mm == pytest.approx((1.25, 1.5, 3))
    assert volume.array.shape == (36, 40 + int(np.ceil(27 * np.tan(np.radians(abs(degrees))) / 1.5)), 10)
    assert volume.repaired == ("tilt",) and volume.notes[0].startswith("repaired: tilt")


def test_an_organ_in_a_tilted_stack_keeps_its_place(tmp_path: Path) -> None:
    write(sampled(blob, np.arange(20) * 2.0, 0.3), tmp_path)
    (volume,) = load(tmp_path, repair="tilt")
    worst, _ = compare(volume, blob)
    assert worst < 12  # of 200, in an edge 2 mm wide
    inside = np.argwhere(volume.array > 100).mean(axis=0)
    centre = volume.affine_ras @ [*inside, 1]
    assert np.linalg.norm(centre[:3] * [-1, -1, 1] - [0, 55, 25]) < 0.2


@pytest.mark.parametrize("heights", [[0, 2, 4, 6, 10, 12, 14], [0, 2, 4, 7, 9, 11.5, 14, 16], [0, 1, 2, 3, 5, 7, 9]])
def test_uneven_slices_become_even(heights: list[float], tmp_path: Path) -> None:
    write(sampled(linear, heights, 0), tmp_path)
    (judged,) = scan(tmp_path).series
    assert judged.reason in ("gap", "variable_spacing")
    volume = load_series(judged, repair="spacing")
    worst, outside = compare(volume, linear)
    assert worst <= STORED_MM and outside < 1e-3
    deepest = volume.affine_ras @ [0, 0, volume.array.shape[2] - 1, 1]
    assert deepest[2] == pytest.approx(5 + heights[-1], abs=1e-4)
    assert volume.repaired == ("spacing",)


def test_slices_around_a_gap_are_not_changed(tmp_path: Path) -> None:
    images = sampled(blob, [0, 2, 4, 8, 10, 12, 14, 16], 0)
    write(images, tmp_path)
    (volume,) = load(tmp_path, repair="spacing")
    assert volume.array.shape[2] == 9
    for plane, image in zip((0, 1, 2, 4, 5, 6, 7, 8), images, strict=True):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(40, 36).T
        np.testing.assert_array_equal(volume.array[:, :, plane], (stored * STORED_MM).astype(np.float32))


def test_a_stack_with_both_faults_needs_both_repairs(tmp_path: Path) -> None:
    write(sampled(linear, [0, 3, 6, 9, 15, 18, 21, 24], 0.25), tmp_path)
    (judged,) = scan(tmp_path).series
    with pytest.raises(DataError, match="refused"):
        load_series(judged, repair="tilt")
    with pytest.raises(DataError, match="--repair tilt --repair spacing"):
        load_series(judged, repair="spacing")
    volume = load_series(judged, repair=("spacing", "tilt"))
    assert compare(volume, linear)[0] <= STORED_MM
    assert volume.repaired == ("tilt", "spacing")


def test_only_the_named_fault_is_repaired(tmp_path: Path) -> None:
    write(sampled(linear, np.arange(8) * 3.0, 0.25), tmp_path)
    with pytest.raises(DataError, match="no series can be loaded"):
        load(tmp_path, repair="spacing")


def test_a_good_series_is_left_as_it_is(tmp_path: Path) -> None:
    write(series(), tmp_path)
    (volume,) = load(tmp_path, repair=("tilt", "spacing"))
    assert volume.repaired == () and volume.array.dtype == np.int16


@pytest.mark.realdata
def test_a_real_tilted_series() -> None:
    folder = Path(os.environ["SEGPIPE_DATA"]) / "dicom" / "23_d2n_tilt4"
    (volume,) = load(folder, repair="tilt")
    assert volume.repaired == ("tilt",)
    assert volume.array.shape[0] == 512 and volume.array.shape[1] > 512 and volume.array.shape[2] == 4
