"""Volumes of one voxel across, smaller than a window, of several channels, sheared or not finite, against MONAI's path.

The volumes are made in memory: from files, an image of one slice or with NaN is refused before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd
from scipy.ndimage import gaussian_filter
from test_restore import CPU, MIDDLES, TIE, Blurred, steps, tilted

from segpipe.common.nifti import Header
from segpipe.errors import DataError
from segpipe.inference.engine import segment_source
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import Source, read_source
from segpipe.inference.transforms import Preprocessing

UNSPACED = ["turned only", "cut, not spaced"]


def volume(shape: tuple[int, ...], channels: int, seed: int) -> np.ndarray:
    """(C, X, Y, Z) float32, smooth, of both signs."""
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    return np.stack([gaussian_filter(part, 1) for part in noise]).astype(np.float32) * 4000


def source(voxels: np.ndarray, affine: np.ndarray) -> Source:
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return Source(Header(Path("made"), voxels.shape[1:], affine, (x, y, z), "float32"), voxels.copy())


def assert_stock(voxels: np.ndarray, affine: np.ndarray, middle: str, windowing: Windowing, classes: int) -> None:
    """Labels are those of activation, Invertd (linear) and argmax or threshold; they differ at ties alone."""
    way = Preprocessing.parse(steps(MIDDLES[middle])[2:])
    before, network = Compose(way.build()), Blurred(len(voxels), classes, False)
    inferer = SlidingWindowInferer(windowing.roi_size, windowing.batch, windowing.overlap, windowing.mode)
    final = {"argmax": True} if windowing.activation == "softmax" else {"threshold": 0.5}
    with torch.inference_mode():
        batch = list_data_collate([before({"image": source(voxels, affine).tensor()})])
        item = decollate_batch({**batch, "pred": inferer(batch["image"], network)})[0]
        item = Activationsd("pred", **{windowing.activation: True})(item)
        item = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)(item)
        best = item["pred"].as_tensor().clone().topk(min(2, classes), 0).values.numpy()
        expected = AsDiscreted("pred", **final)(item)["pred"].as_tensor()[0].numpy()
        labels = segment_source(source(voxels, affine), way, windowing, network, CPU, {})
    assert labels.shape == expected.shape == voxels.shape[1:]
    margin = best[0] - best[1] if classes > 1 else np.abs(best[0] - 0.5)
    assert (margin[labels != expected] < TIE).all()


@settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    shape=st.tuples(*[st.integers(1, 11)] * 3),
    thin=st.sampled_from([(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)]),
    channels=st.sampled_from([1, 4]),
    classes=st.sampled_from([1, 3]),
    angles=st.tuples(*[st.sampled_from([0.0, 90.0, 7.0, -33.0])] * 3),
    spacing=st.tuples(*[st.floats(0.6, 3.5)] * 3),
    shear=st.tuples(*[st.sampled_from([0.0, 0.15, -0.3])] * 3),
    roi=st.tuples(*[st.integers(3, 13)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    mode=st.sampled_from(["gaussian", "constant"]),
    middle=st.sampled_from(sorted(MIDDLES)),
    seed=st.integers(0, 1000),
)
def test_any_volume(
    shape: Any,
    thin: Any,
    channels: int,
    classes: int,
    angles: Any,
    spacing: Any,
    shear: Any,
    roi: Any,
    overlap: float,
    mode: Any,
    middle: str,
    seed: int,
) -> None:
    size = tuple(1 if axis in thin else voxels for axis, voxels in enumerate(shape))
    affine, slant = tilted(angles, spacing), np.eye(4)
    slant[[0, 0, 1], [1, 2, 2]] = shear
    windowing = Windowing(roi, overlap, 2, mode, "softmax" if classes > 1 else "sigmoid")
    assert_stock(volume(size, channels, seed), affine @ slant, middle, windowing, classes)


@pytest.mark.parametrize("middle", UNSPACED)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_voxels_that_are_not_finite(broken: float, middle: str) -> None:
    voxels = volume((14, 12, 9), 1, 0)
    voxels[0, 5, 6, 4] = voxels[0, 0, 0, 0] = broken
    affine = tilted((0, 90, 0), (1.0, 2.0, 1.5))
    assert_stock(voxels, affine, middle, Windowing((6, 6, 6), 0.5, 2, "gaussian"), 3)


@settings(max_examples=10)
@given(places=st.sets(st.integers(0, 5 * 6 * 7 - 1), min_size=1, max_size=4), kind=st.sampled_from("nf"))
def test_a_file_that_is_not_finite_is_refused(
    places: set[int], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    voxels = volume((5, 6, 7), 1, 0)[0]
    voxels.flat[list(places)] = np.nan if kind == "n" else -np.inf
    path = tmp_path_factory.mktemp("broken") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(DataError, match="not finite") as caught:
        read_source([path], 1)
    assert str(caught.value.found).startswith(f"{len(places)} ")
