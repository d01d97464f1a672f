"""Every measure against an implementation that shares no code with ours."""

from __future__ import annotations

import warnings
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import gaussian_filter

from segpipe.evaluation import measure

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.5, 0.4, 1.1)]


@pytest.fixture(scope="module")
def surface_distance() -> ModuleType:
    """DeepMind's package; it still uses names that NumPy 2 has dropped."""
    for name, value in {"Inf": np.inf, "NaN": np.nan}.items():
        if not hasattr(np, name):
            setattr(np, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("surface_distance")


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping random shapes with islands and holes, some of which touch the border."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(17, 14, 11)), 1.5)
    other = 0.7 * field + 0.3 * gaussian_filter(rng.normal(size=field.shape), 1.5)
    return field > 0.05, other > 0.06


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(5))
def test_surface_measures_equal_deepminds(surface_distance, spacing, seed) -> None:
    truth, prediction = blobs(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = surface_distance.compute_surface_distances(truth, prediction, spacing)
    areas = theirs["surfel_areas_gt"], theirs["surfel_areas_pred"]
    distances = theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]
    assd = sum((a * d).sum() for a, d in zip(areas, distances, strict=True)) / sum(a.sum() for a in areas)

    hd95 = surface_distance.compute_robust_hausdorff(theirs, 95)
    assert measure.hd95_mm(truth, prediction, spacing) == pytest.approx(hd95, rel=1e-6)
    assert measure.assd_mm(truth, prediction, spacing) == pytest.approx(assd, rel=1e-5)
    for tolerance in (0.0, 0.5, 1.0, 2.2):
        nsd = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert measure.nsd(truth, prediction, spacing, tolerance) == pytest.approx(nsd, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(5))
def test_hausdorff_equals_simpleitks(spacing, seed) -> None:
    truth, prediction = blobs(seed)
    images = []
    for mask in (truth, prediction):
        image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose())
        image.SetSpacing(spacing)
        images.append(image)
    theirs = sitk.HausdorffDistanceImageFilter()
    theirs.Execute(*images)
    ours = measure.hausdorff_mm(truth, prediction, spacing)
    assert ours == pytest.approx(theirs.GetHausdorffDistance(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_simpleitks(seed) -> None:
    truth, prediction = blobs(seed)
    theirs = sitk.LabelOverlapMeasuresImageFilter()
    theirs.Execute(*[sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, prediction)])
    assert measure.dice(truth, prediction) == pytest.approx(theirs.GetDiceCoefficient())
    assert measure.iou(truth, prediction) == pytest.approx(theirs.GetJaccardCoefficient())


def test_distances_equal_brute_force() -> None:
    truth, prediction = blobs(9)
    spacing = np.array([0.7, 1.3, 2.0])
    one, other = np.argwhere(truth) * spacing, np.argwhere(prediction) * spacing
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
    expected = max(apart.min(axis=1).max(), apart.min(axis=0).max())
    assert measure.hausdorff_mm(truth, prediction, tuple(spacing)) == pytest.approx(expected)


def test_area_of_a_large_sphere() -> None:
    """The surface elements add up to the ball's surface, a little more on a binary mask."""
    grid = np.stack(np.meshgrid(*[np.arange(-12, 13) * s for s in (2.0, 2.0, 1.0)], indexing="ij"))
    ball = (grid**2).sum(axis=0) < 10**2
    surfaces = measure.surface_distances(ball, ball, (2.0, 2.0, 1.0))
    assert surfaces is not None
    assert surfaces.truth_mm2.sum() == pytest.approx(4 * np.pi * 100, rel=0.12)
