"""Measures of real masks on anisotropic grids equal surface-distance, SimpleITK and torchmetrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy import ndimage
from torchmetrics.functional.classification import (
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    binary_specificity,
)
from torchmetrics.functional.segmentation import dice_score

from segpipe.evaluation import measure

pytestmark = pytest.mark.realdata
MASKS = ("CT", "PET", "MR_T1", "hippocampus_001", "hippocampus_003", "hippocampus_anisotropic")
CHANGES = ("shifted", "eroded", "dilated with an island")


@pytest.fixture(scope="module")
def surface_distance() -> Iterator[ModuleType]:
    """DeepMind's package; it still uses names that NumPy 2 has dropped."""
    for name, value in {"Inf": np.inf, "NaN": np.nan}.items():
        if not hasattr(np, name):
            setattr(np, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("surface_distance")


def real_mask(name: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A mask with some background around it, and its spacing in mm."""
    root = Path(os.environ["SEGPIPE_DATA"])
    if name.startswith("hippocampus"):
        path = root / "Task04_Hippocampus/labelsTr" / f"{name.replace('anisotropic', '004')}.nii.gz"
    else:
        path = root / "ibsi_STS_003/nifti" / f"{name}_mask.nii.gz"
    image = nib.load(path)
    mask = np.asanyarray(image.dataobj) > 0
    spacing = tuple(float(length) for length in image.header.get_zooms()[:3])
    if name.endswith("anisotropic"):
        wanted = (0.7, 1.3, 3.0)
        factors = [old / new for old, new in zip(spacing, wanted, strict=True)]
        mask, spacing = ndimage.zoom(mask.astype(np.uint8), factors, order=0) > 0, wanted
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return np.pad(mask[box], 4), spacing


@pytest.fixture(scope="module", params=[(name, change) for name in MASKS for change in CHANGES], ids=str)
def pair(request) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Truth, prediction, spacing."""
    name, change = request.param
    truth, spacing = real_mask(name)
    if change == "shifted":
        prediction = np.roll(truth, (2, -1, 1), (0, 1, 2))
    elif change == "eroded":
        prediction = ndimage.binary_erosion(truth, ndimage.generate_binary_structure(3, 1))
    else:
        prediction = ndimage.binary_dilation(truth)
        prediction[0, 0, :2] = True
    return truth, prediction, spacing


def test_surfaces_equal_deepminds(surface_distance, pair) -> None:
    truth, prediction, spacing = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = surface_distance.compute_surface_distances(truth, prediction, spacing)
    forth, back = surface_distance.compute_average_surface_distance(theirs)
    areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assd = (forth * areas[0] + back * areas[1]) / sum(areas)
    hd95 = surface_distance.compute_robust_hausdorff(theirs, 95)
    assert measure.hd95_mm(truth, prediction, spacing) == pytest.approx(hd95, rel=1e-6)
    assert measure.assd_mm(truth, prediction, spacing) == pytest.approx(assd, rel=1e-5)
    for tolerance in (0.4, 1.2, 3.7):
        nsd = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert measure.nsd(truth, prediction, spacing, tolerance) == pytest.approx(nsd, rel=1e-5)


def test_hausdorff_and_overlap_equal_simpleitks(pair) -> None:
    truth, prediction, spacing = pair
    images = []
    for mask in (truth, prediction):
        image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose())
        image.SetSpacing(spacing)
        images.append(image)
    distance, overlap = sitk.HausdorffDistanceImageFilter(), sitk.LabelOverlapMeasuresImageFilter()
    distance.Execute(*images)
    overlap.Execute(*images)
    ours = measure.hausdorff_mm(truth, prediction, spacing)
    assert ours == pytest.approx(distance.GetHausdorffDistance(), rel=1e-5)
    assert measure.dice(truth, prediction) == pytest.approx(overlap.GetDiceCoefficient())
    assert measure.iou(truth, prediction) == pytest.approx(overlap.GetJaccardCoefficient())
    # its first image is the source and its second the target; false negatives are of the target
    overlap.Execute(*images[::-1])
    assert measure.recall(truth, prediction) == pytest.approx(1 - overlap.GetFalseNegativeError())
    assert measure.precision(truth, prediction) == pytest.approx(1 - overlap.GetFalseDiscoveryRate())


def test_overlap_equals_torchmetrics(pair) -> None:
    truth, prediction, _ = pair
    target, preds = (torch.from_numpy(mask.astype(np.int64)) for mask in (truth, prediction))
    theirs = {
        "iou": binary_jaccard_index,
        "precision": binary_precision,
        "recall": binary_recall,
        "specificity": binary_specificity,
    }
    for name, function in theirs.items():
        ours = getattr(measure, name)(truth, prediction)
        assert ours == pytest.approx(float(function(preds, target)), abs=1e-6)
    dice = dice_score(preds[None, None], target[None, None], num_classes=1)
    assert measure.dice(truth, prediction) == pytest.approx(float(dice), abs=1e-6)


def test_distances_scale_with_the_spacing(pair) -> None:
    truth, prediction, spacing = pair
    for factor in (0.5, 3.7):
        scaled = tuple(factor * length for length in spacing)
        for function in (measure.hausdorff_mm, measure.hd95_mm, measure.assd_mm):
            expected = factor * function(truth, prediction, spacing)
            assert function(truth, prediction, scaled) == pytest.approx(expected, rel=1e-6)
        within = measure.nsd(truth, prediction, spacing, 1.234)
        assert measure.nsd(truth, prediction, scaled, factor * 1.234) == pytest.approx(within, rel=1e-5)
