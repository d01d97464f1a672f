"""The streaming inferer gives, bit for bit, what MONAI's gives for the same call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer

from segpipe.inference.inferer import StreamingSlidingWindowInferer
from segpipe.inference.sliding_window import WindowGrid, stream_blocks

# inputs (N, C, ...), roi, window batch, overlap, mode
TABLE: list[tuple[tuple[int, ...], Any, int, Any, str]] = [
    ((2, 3, 16), (4,), 3, 0.25, "constant"),
    ((1, 3, 16, 15, 7), (4, 10, 7), 3, 0.25, "constant"),
    ((1, 3, 16, 15, 7), (4, -1, 7), 3, 0.25, "constant"),
    ((1, 3, 16, 15, 7), (4, None, 7), 3, 0.25, "gaussian"),
    ((1, 3, 16, 15, 7), (20, 22, 23), 10, 0.25, "constant"),
    ((2, 3, 15, 7), (2, 6), 1000, 0.25, "constant"),
    ((1, 3, 16, 7), (80, 50), 7, 0.25, "gaussian"),
    ((1, 3, 16, 15, 7), (20, 22, 23), 10, 0.5, "gaussian"),
    ((1, 3, 7, 6), 4, 10, 0.5, "gaussian"),
    ((1, 1, 16, 15, 7), (4, 10, 7), 3, (0.5, 0.25, 0.0), "gaussian"),
    ((3, 2, 9, 8, 11), 5, 4, 0.8, "gaussian"),
    ((2, 1, 12, 13, 14), (12, 13, 14), 1, 0.6, "constant"),
    ((1, 1, 8, 7, 6), (3, 3, 3), 2, 0.99, "constant"),
    ((1, 2, 1, 9, 9), (4, 4, 4), 5, 0.5, "gaussian"),
]


class Uneven(torch.nn.Module):
    """Two scores that differ by place in the window, so that no error of position can hide."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        ramp = torch.linspace(-1, 1, windows[0, 0].numel()).reshape(windows.shape[2:]).to(windows)
        mean = windows.mean(1, keepdim=True)
        return torch.cat([mean * 3 + ramp, torch.sin(mean) - ramp * ramp + 0.01 * self.calls], 1)


def both(inputs: torch.Tensor, *call: Any, network: Any = Uneven, **options: Any) -> tuple[Any, Any]:
    return (
        SlidingWindowInferer(**options)(inputs.clone(), network(), *call),
        StreamingSlidingWindowInferer(**options)(inputs.clone(), network(), *call),
    )


@pytest.mark.parametrize(("shape", "roi", "batch", "overlap", "mode"), TABLE)
def test_the_result_is_that_of_monai(shape: Any, roi: Any, batch: int, overlap: Any, mode: str) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected, got = both(inputs, roi_size=roi, sw_batch_size=batch, overlap=overlap, mode=mode)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("padding", ["constant", "replicate", "reflect", "circular"])
def test_padding_of_a_volume_smaller_than_the_window(padding: str) -> None:
    inputs = torch.randn(1, 1, 7, 8, 20)
    expected, got = both(inputs, roi_size=(10, 9, 8), padding_mode=padding, cval=-1.5 if padding == "constant" else 0)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_scale": 1.0, "mode": "gaussian"},
        {"sigma_scale": [0.5, 1.0, 0.25], "mode": "gaussian"},
        {"cache_roi_weight_map": True, "mode": "gaussian"},
        {"cpu_thresh": 10},
        {"device": "cpu", "sw_device": "cpu"},
        {"buffer_steps": 1, "buffer_dim": 0},
        {"buffer_steps": 2},
    ],
)
def test_every_option_is_that_of_monai(options: dict[str, Any]) -> None:
    inputs = torch.randn(2, 1, 11, 9, 10)
    expected, got = both(inputs, roi_size=(5, 4, 6), sw_batch_size=3, overlap=0.5, **options)
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)


def test_coordinates_arguments_and_types_reach_the_network() -> None:
    def network(windows: torch.Tensor, places: Any, plus: float, times: float = 1.0) -> torch.Tensor:
        return (windows + plus) * times + torch.tensor([float(place[-1].start) for place in places]).reshape(
            -1, 1, 1, 1
        )

    inputs = torch.randn(2, 3, 17, 8, dtype=torch.float64)
    options = {"roi_size": (5, 3), "sw_batch_size": 4, "with_coord": True}
    expected = SlidingWindowInferer(**options)(inputs, network, 2.0, times=3.0)
    got = StreamingSlidingWindowInferer(**options)(inputs, network, 2.0, times=3.0)
    assert got.dtype == torch.float64
    assert torch.equal(got, expected)
    named = StreamingSlidingWindowInferer(roi_size=(5, 3))(inputs, lambda x: x, device="cpu", buffer_steps=None)
    assert torch.allclose(named, inputs)


def test_what_does_not_stream_is_that_of_monai_and_no_window_is_computed_twice() -> None:
    def outputs(kind: str) -> Any:
        def network(windows: torch.Tensor) -> Any:
            calls.append(len(windows))
            small = torch.nn.functional.avg_pool3d(windows, 2)
            return {"dict": {"a": windows * 2, "b": windows + 1}, "small": small, "list": [windows * 4]}.get(
                kind, (windows, windows + 1)
            )

        return network

    inputs, calls = torch.randn(1, 1, 12, 12, 12), []
    options = {"roi_size": (4, 4, 4), "sw_batch_size": 4, "overlap": 0.5}
    for kind in ("dict", "small", "list", "tuple"):
        calls.clear()
        expected = SlidingWindowInferer(**options)(inputs, outputs(kind))
        stock_calls = list(calls)
        calls.clear()
        got = StreamingSlidingWindowInferer(**options)(inputs, outputs(kind))
        assert calls == stock_calls
        assert type(got) is type(expected)
        pairs = zip(*(list(x.values()) if kind == "dict" else x for x in (got, expected)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    condition = torch.randn_like(inputs)
    for inferer in (SlidingWindowInferer(**options), StreamingSlidingWindowInferer(**options)):
        conditioned = inferer(inputs, lambda x, condition: x + condition, condition=condition)
        assert torch.allclose(conditioned, inputs + condition, atol=1e-6)


def test_metadata_stays_and_the_input_is_not_touched() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    inputs = MetaTensor(torch.randn(1, 1, 9, 8, 7), affine=affine)
    kept = inputs.as_tensor().clone()
    expected, got = both(inputs, roi_size=(4, 4, 4), overlap=0.5)
    assert isinstance(got, MetaTensor)
    assert torch.equal(got.affine, expected.affine)
    StreamingSlidingWindowInferer(roi_size=(4, 4, 4), overlap=0.5)(inputs, lambda windows: windows)
    assert torch.equal(inputs.as_tensor(), kept)


def test_what_cannot_be_is_refused() -> None:
    inputs = torch.zeros(1, 1, 6, 6, 6)
    for options in ({"overlap": 1.0}, {"overlap": -0.1}, {"roi_size": (3, 3)}):
        inferer = StreamingSlidingWindowInferer(**{"roi_size": (3, 3, 3), **options})
        with pytest.raises(ValueError, match=r"overlap|dimensions"):
            inferer(inputs, lambda x: x)
    sometimes = iter([1, 2])
    with pytest.raises(ValueError, match="scores of shape"):
        StreamingSlidingWindowInferer(roi_size=(3, 3, 3))(inputs, lambda x: x[..., next(sometimes) - 1 :])


def test_gradients_flow() -> None:
    inputs = torch.randn(1, 1, 6, 6, 6, requires_grad=True)
    scores = StreamingSlidingWindowInferer(roi_size=(4, 4, 4), overlap=0.5, mode="gaussian")(inputs, lambda x: x * 3)
    scores.sum().backward()
    assert torch.allclose(inputs.grad, torch.full_like(inputs, 3.0), atol=1e-5)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=3),
    overlap=st.floats(0, 0.95),
)
def test_windows_lie_where_monai_puts_them(sizes: list[tuple[int, int]], overlap: float) -> None:
    size, roi = zip(*sizes, strict=True)
    grid = WindowGrid.place(size, roi, [overlap] * len(size))
    step = [r if r == n else max(int(r * (1 - overlap)), 1) for r, n in zip(roi, grid.padded, strict=True)]
    expected = dense_patch_slices(grid.padded, roi, step)
    assert [tuple(slice(s, s + r) for s, r in zip(p, roi, strict=True)) for p in grid.positions()] == expected


@settings(max_examples=40)
@given(
    order=st.permutations([0, 1, 2]),
    border=st.integers(0, 2),
    overlap=st.sampled_from([0, 0.25, 0.5, 0.7]),
    strips=st.integers(1, 3),
)
def test_blocks_cover_the_volume_once_whatever_the_order(
    order: list[int], border: int, overlap: float, strips: int
) -> None:
    volume = torch.randn(1, 1, 9, 11, 7)
    grid = replace(WindowGrid.place((9, 11, 7), (4, 5, 8), [overlap] * 3, tuple(order)), strips=strips)
    seen = torch.zeros(grid.padded)
    whole = torch.nn.functional.pad(volume, [n for pad in reversed(grid.pad) for n in pad])[0]
    for block in stream_blocks(volume, grid, torch.rand(4, 5, 8) + 0.1, lambda x, _: x, batch=3, border=border):
        inner = [slice(border if axis in grid.block_axes else 0, None) for axis in range(3)]
        scores = block.scores[(slice(None), *inner)]
        place = tuple(slice(s, s + n) for s, n in zip(block.start, scores.shape[1:], strict=True))
        seen[place] += 1
        np.testing.assert_allclose(scores, whole[(slice(None), *place)], atol=1e-5)
    assert (seen == 1).all()


def test_scores_are_kept_only_where_windows_still_touch() -> None:
    grid = WindowGrid.place((400, 12, 12), (16, 12, 12), [0.5] * 3)
    blocks = stream_blocks(torch.zeros(1, 1, 400, 12, 12), grid, torch.ones(16, 12, 12), lambda x, _: x)
    rows = [block.scores.shape[1] for block in blocks]
    assert sum(rows) == 400
    assert max(rows) <= 16
