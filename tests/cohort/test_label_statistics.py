"""Statistics of labels against shapes whose numbers are known, and against scikit-image."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from segpipe.cohort import COLUMNS, label_statistics, write_meshes

TURNED = np.array([[0, -2.0, 0, 12], [1.5, 0, 0, -7], [0, 0, 3.0, 3], [0, 0, 0, 1.0]])


def ball(radius_mm: float, edges: tuple[float, ...], shape: tuple[int, ...] = (40, 40, 40)) -> np.ndarray:
    grids = np.meshgrid(*(np.arange(size) - size // 2 for size in shape), indexing="ij")
    return sum((grid * mm) ** 2 for grid, mm in zip(grids, edges, strict=True)) <= radius_mm**2


def test_a_ball_has_the_numbers_of_a_ball() -> None:
    edges = (1.0, 1.0, 1.0)
    found = label_statistics({"ball": ball(12, edges)}, np.diag([*edges, 1.0]))["ball"]
    assert set(found) == set(COLUMNS)
    assert found["volume_ml"] == pytest.approx(4 / 3 * math.pi * 1.2**3, rel=0.02)
    assert found["surface_mm2"] == pytest.approx(4 * math.pi * 144, rel=0.05)
    assert found["sphericity"] == pytest.approx(1, abs=0.05)
    for name in ("equivalent_diameter_mm", "longest_axis_mm", "shortest_axis_mm"):
        assert found[name] == pytest.approx(24, rel=0.04)
    assert found["feret_diameter_mm"] == pytest.approx(24, rel=0.08)
    assert found["components"] == 1
    assert found["mean"] is None


def test_places_are_those_of_the_patient_whatever_the_axes_of_the_array() -> None:
    mask = np.zeros((20, 24, 16), bool)
    mask[5:9, 10:20, 4:6] = True
    found = label_statistics({"block": mask}, TURNED)["block"]
    centre = TURNED @ [6.5, 14.5, 4.5, 1]
    for axis, name in enumerate(("right", "front", "head")):
        assert found[f"centroid_{name}_mm"] == pytest.approx(centre[axis])
    assert found["extent_right_mm"] == pytest.approx(10 * 2.0)
    assert found["extent_front_mm"] == pytest.approx(4 * 1.5)
    assert found["extent_head_mm"] == pytest.approx(2 * 3.0)
    assert found["volume_ml"] == pytest.approx(4 * 10 * 2 * 9 / 1000)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_voxels_axes_and_intensities_are_those_of_scikit_image(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((9, 8, 7)) < 0.5
    mask[4, 4, 3] = True
    image = random.normal(size=mask.shape)
    found = label_statistics({"any": mask}, np.eye(4), image)["any"]
    region = regionprops(mask.astype(int), intensity_image=image)[0]
    assert found["voxels"] == region.num_pixels
    assert found["mean"] == pytest.approx(region.intensity_mean, abs=1e-5)
    assert found["maximum"] == pytest.approx(region.intensity_max, abs=1e-5)
    centroid = [found[f"centroid_{name}_mm"] for name in ("right", "front", "head")]
    np.testing.assert_allclose(centroid, region.centroid, atol=1e-5)


def test_an_empty_label_and_a_single_voxel() -> None:
    one = np.zeros((5, 5, 5), bool)
    assert label_statistics({"none": one}, np.eye(4))["none"]["volume_ml"] == 0
    assert label_statistics({"none": one}, np.eye(4))["none"]["surface_mm2"] is None
    one[0, 4, 2] = True
    found = label_statistics({"one": one}, np.eye(4), np.ones(one.shape))["one"]
    assert found["voxels"] == 1
    assert found["sd"] is None
    assert found["centroid_front_mm"] == 4


@pytest.mark.parametrize("affine", [np.diag([1.0, 1.5, 2.0, 1.0]), TURNED], ids=["plain", "turned"])
def test_surfaces_are_closed_look_outwards_and_lie_in_lps(tmp_path: Path, affine: np.ndarray) -> None:
    edges = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    mask = ball(12, edges, (32, 30, 28))
    written = write_meshes(tmp_path, {"none": np.zeros_like(mask), "ball": mask}, affine, "stl")
    assert written == {"ball": "surface_2.stl"}
    content = (tmp_path / "surface_2.stl").read_bytes()
    assert content[:80].decode().strip() == "segpipe SPACE=LPS"
    (count,) = struct.unpack("<I", content[80:84])
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.frombuffer(content[84:], kind)
    assert len(triangles) == count
    corners = triangles["corners"].astype(float)
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(mask.sum() * abs(np.linalg.det(affine[:3, :3])), rel=0.02)  # closed, outwards
    middle = (affine @ [*(np.argwhere(mask).mean(0)), 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(corners.reshape(-1, 3).mean(0), middle, atol=0.3)


def test_obj_has_the_same_points(tmp_path: Path) -> None:
    mask = ball(6, (1.0, 1.0, 1.0), (20, 20, 20))
    write_meshes(tmp_path, {"ball": mask}, np.eye(4), "obj")
    lines = (tmp_path / "surface_1.obj").read_text().splitlines()
    points = np.array([[float(x) for x in line.split()[1:]] for line in lines if line.startswith("v ")])
    faces = np.array([[int(x) for x in line.split()[1:]] for line in lines if line.startswith("f ")])
    assert faces.min() == 1
    assert faces.max() == len(points)
    np.testing.assert_allclose(points.mean(0), [-10, -10, 10], atol=0.2)
