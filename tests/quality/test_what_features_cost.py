"""Features of large volumes: the same as by plain formulas over the whole, at a small part of the memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from segpipe.inference import Observation
from segpipe.quality import features, features_of

shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
edges = st.sampled_from([0.3, 0.45, 0.8, 1.0, 1.5, 2.0, 4.0, 5.0])


@given(arrays(bool, shapes, elements=st.sampled_from([False, False, False, True])), st.tuples(edges, edges, edges))
def test_around_a_label_is_what_a_distance_transform_calls_near(mask: np.ndarray, spacing: tuple[float, ...]) -> None:
    apart = ndimage.distance_transform_edt(~mask, sampling=spacing) if mask.any() else np.zeros(mask.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "AT_ONCE", 20)  # several parts
        found = features._around(mask, np.array(spacing))
    assert np.array_equal(found, (apart > 0) & (apart <= features.SHELL_MM))


@pytest.mark.parametrize("samples", [10, 500, 100_000])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 18])
def test_neighbours_are_compared_part_by_part(at_once: int, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "AT_ONCE", at_once)
    monkeypatch.setattr(features, "SAMPLES", samples)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(11, 7, 13)).astype(np.float32))
    for axis in range(3):
        size = values.shape[axis] - 2
        before, here, after = (values.narrow(axis, first, size) for first in range(3))
        squares, bent = features._unlike_neighbours(values, axis)
        assert squares == pytest.approx(float((here - before).double().square().mean()), rel=1e-6)
        whole = (before - 2 * here + after).abs().flatten()
        assert bent == float(whole[:: max(1, whole.numel() // samples)].median())


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-4, 4, width=32)))
def test_quantiles_are_those_of_numpy(values: np.ndarray) -> None:
    found = features._quantiles(np.sort(values), (0, 5, 25, 50, 75, 95, 100))
    np.testing.assert_allclose(found, np.percentile(values, (0, 5, 25, 50, 75, 95, 100)), atol=1e-6)


def test_a_label_all_over_the_volume_takes_little_memory() -> None:
    """As with single voxels far from the organ: no distance of 8 bytes is held of each voxel of the box."""
    shape, seen = (120, 110, 100), Observation()
    labels = np.zeros(shape, np.uint8)
    labels[40:60, 40:60, 40:60] = labels[0, 0, 0] = labels[-1, -1, -1] = 1
    seen.image, seen.labels, seen.spacing_mm = torch.zeros((1, *shape)), labels, (1.5, 1.5, 2.0)
    seen.hard = seen.soft = seen.sure = np.ones((1, 2))
    features_of(seen, {1: "liver"})  # what is imported is not counted
    tracemalloc.start()
    try:
        features_of(seen, {1: "liver"})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * math.prod(shape)
