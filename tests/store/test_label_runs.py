"""The places of labels as runs: the lists that NumPy and MONAI make, without a list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.store.label_runs import Indices, LabelRuns

SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
MAPS = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3)))


def listed(indices: Indices) -> list[int]:
    return [int(indices[rank]) for rank in range(len(indices))]


@settings(max_examples=80, deadline=None)
@given(MAPS, st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
def test_every_voxel_has_the_rank_that_numpy_gives_it(labels, widths) -> None:
    padded = np.pad(labels, widths)
    runs = LabelRuns.of(labels).padded([before for before, _ in widths], padded.shape)
    flat = padded.reshape(-1)
    assert listed(runs.foreground()) == np.flatnonzero(flat).tolist()
    assert listed(runs.background()) == np.flatnonzero(flat == 0).tolist()
    for value in range(5):
        expected = np.flatnonzero(flat == value)
        indices = runs.of_label(value)
        assert listed(indices) == expected.tolist()
        assert indices[np.arange(len(expected))].tolist() == expected.tolist()


def test_a_rank_beyond_the_last_is_no_voxel() -> None:
    runs = LabelRuns.of(np.array([[[0, 1, 1]]], np.uint8))
    for indices, count in ((runs.foreground(), 2), (runs.background(), 1), (runs.of_label(2), 0)):
        for rank in (count, -1):
            try:
                indices[rank]
            except IndexError:
                continue
            raise AssertionError(f"rank {rank} of {count}")
