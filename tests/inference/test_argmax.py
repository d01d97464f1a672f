"""The argmax found class after class is that of NumPy, ties and bits included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.inference.argmax import likeliest

FEW = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, float("-inf")])  # so that there are ties


@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5)), elements=FEW))
def test_the_first_of_the_highest(scores: np.ndarray) -> None:
    best = likeliest(torch.from_numpy(scores), "softmax")
    np.testing.assert_array_equal(best.labels.numpy(), scores.argmax(0))
    np.testing.assert_array_equal(best.score.numpy(), scores.max(0))


@given(arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 9)), elements=FEW))
def test_a_bit_of_each_region(scores: np.ndarray) -> None:
    bits = likeliest(torch.from_numpy(scores), "sigmoid").labels.numpy()
    np.testing.assert_array_equal(bits, ((scores >= 0.5) << np.arange(len(scores))[:, None]).sum(0))


@pytest.mark.parametrize("classes", [2, 254, 255, 256])
def test_as_many_classes_as_a_byte_holds(classes: int) -> None:
    """Two values more are kept free for voxels without a label."""
    scores = torch.rand(classes, 300, generator=torch.Generator().manual_seed(1))
    labels = likeliest(scores, "softmax").labels
    assert torch.equal(labels.long(), scores.argmax(0))
    assert torch.iinfo(labels.dtype).max >= classes + 1
