"""Channels on another grid, against linear fields, which linear interpolation keeps, and against MONAI."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from segpipe.common.resampling import covered, note_on, require_covered, resample, share_outside
from segpipe.errors import DataError

CHANNEL = np.array([[4.0, 0.3, 0, -20], [-0.3, 4.0, 0, 10], [0, 0, 5.0, 3], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)


def placed(angles: tuple[float, float, float], edges: tuple[float, float, float], at: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * edges
    affine[:3, 3] = at
    return affine


def field(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A linear function of the place in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    places = affine[:3, :3] @ index + affine[:3, 3:]
    return (100 + places[0] - 2 * places[1] + 0.5 * places[2]).reshape(shape)


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    edges=st.tuples(*[st.floats(0.5, 6)] * 3),
    shift=st.tuples(*[st.floats(-15, 15)] * 3),
    flip=st.booleans(),
)
def test_a_linear_field_is_kept_and_nothing_is_extrapolated(
    angles: tuple[float, float, float], edges: tuple[float, float, float], shift: tuple[float, ...], flip: bool
) -> None:
    at = (CHANNEL @ [4, 4, 3, 1])[:3] + shift
    onto = placed(angles, (-edges[0], *edges[1:]) if flip else edges, at)
    shape = (6, 5, 4)
    found = resample(field(SHAPE, CHANNEL), CHANNEL, shape, onto)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    inside = np.linalg.inv(CHANNEL) @ np.vstack([onto[:3, :3] @ index + onto[:3, 3:], np.ones(index.shape[1])])
    between = np.all([(row >= 0) & (row <= size - 1) for row, size in zip(inside, SHAPE, strict=False)], axis=0)
    far = np.any([(row < -0.51) | (row > size - 0.49) for row, size in zip(inside, SHAPE, strict=False)], axis=0)
    np.testing.assert_allclose(found.ravel()[between], field(shape, onto).ravel()[between], rtol=1e-4, atol=1e-3)
    assert (found.ravel()[far] == np.float32(field(SHAPE, CHANNEL).min())).all()
    mask = covered(SHAPE, CHANNEL, shape, onto)
    assert mask.ravel()[between].all() and not mask.ravel()[far].any()
    assert share_outside(SHAPE, CHANNEL, shape, onto) == pytest.approx(1 - mask.mean())


def test_values_are_those_of_monai() -> None:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import ResampleToMatch

    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    onto, shape = placed((5, -3, 8), (1.1, 1.2, 2.0), np.array([-12.0, 14, 8])), (12, 11, 9)
    found = resample(values, CHANNEL, shape, onto)
    grid = MetaTensor(torch.zeros(1, *shape), affine=torch.tensor(onto))
    channel = MetaTensor(torch.from_numpy(values)[None], affine=torch.tensor(CHANNEL))
    expected = ResampleToMatch(mode="bilinear", padding_mode="border", dtype=torch.float64)(channel, img_dst=grid)
    inside = covered(SHAPE, CHANNEL, shape, onto)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected[0].numpy()[inside], atol=1e-5)


def test_the_share_outside_is_said() -> None:
    half = CHANNEL.copy()
    half[:3, 3] += 4.5 * CHANNEL[:3, 0]
    assert note_on("channel PET", SHAPE, CHANNEL, SHAPE, CHANNEL) == ""
    assert "does not cover 44 %" in note_on("channel PET", SHAPE, CHANNEL, SHAPE, half)
    coarse = CHANNEL @ np.diag([2, 2, 2, 1])
    assert "loses detail" in note_on("channel CT", SHAPE, CHANNEL, (4, 4, 3), coarse)
    far = CHANNEL.copy()
    far[0, 3] += 1000
    with pytest.raises(DataError, match="channel PET lies beside the first channel"):
        note_on("channel PET", SHAPE, far, SHAPE, CHANNEL)


def test_labels_outside_of_a_channel_are_refused() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 1, 2] = 1
    require_covered(labels, "channel PET", SHAPE, CHANNEL, CHANNEL)
    labels[8, 1, 2] = 2
    with pytest.raises(DataError, match="labels lie where channel PET was not scanned") as caught:
        require_covered(labels, "channel PET", (8, 8, 7), CHANNEL, CHANNEL)
    assert caught.value.found == "1 of 2 labelled voxels outside of it"
