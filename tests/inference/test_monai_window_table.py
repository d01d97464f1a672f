"""The parameters of MONAI's own sliding-window tests, and more, through our class; MONAI's class is the oracle.

Where MONAI answers, ours gives the same tensors bit by bit; where MONAI refuses, ours refuses with the same error.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, list_data_collate
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode

from segpipe.inference.inferer import StreamingSlidingWindowInferer

# inputs (N, C, ...), roi, windows at once, overlap, mode
WINDOWS: list[tuple[tuple[int, ...], Any, int, Any, str]] = [
    ((2, 3, 16), (4,), 3, 0.25, "constant"),
    ((2, 3, 16, 15, 7, 9), 4, 3, 0.25, "constant"),
    ((1, 2, 6, 5, 7, 9), 4, 3, 0.5, "gaussian"),
    *[((n, 3, 16, 15, 7), (4, -1, 7), 3, 0.25, "constant") for n in (1, 2, 3)],
    *[((1, 3, 16, 15, 7), (4, 10, 7), 3, 0.25, mode) for mode in ("constant", "gaussian")],
    ((3, 3, 16, 15, 7), (4, 10, 7), 3, 0.25, "gaussian"),
    *[((n, 3, 16, 15, 7), (4, 1, 7), 3, 0.25, "constant") for n in (1, 5)],
    *[((1, 3, 16, 15, 7), (20, 22, 23), 10, overlap, "constant") for overlap in (0.25, 0.5)],
    ((2, 3, 15, 7), (2, 6), 1000, 0.25, "constant"),
    ((1, 3, 16, 7), (80, 50), 7, 0.25, "constant"),
    ((1, 3, 16, 7), (80, 50), 7, 0.5, "gaussian"),
    ((2, 3, 10, 11), (7, 10), 5, 0.8, "gaussian"),
    ((2, 3, 10, 11), (15, 12), 2, 0, "constant"),
    ((2, 3, 10, 11), (10, 11), 3, 0, "gaussian"),
    ((2, 1, 61, 47), (24, 20), 5, 0.4, "gaussian"),
    ((1, 3, 64, 48), (64, 20), 5, 0.125, "constant"),
    ((2, 3, 10, 11, 12), (7, 8, 10), 2, 0.2, "gaussian"),
    ((1, 1, 25, 52, 40), (19, 19, 20), 20, (0.4, 0.32, 0), "gaussian"),
    ((1, 3, 16, 15, 7), (0, -1, 4), 4, 0.5, "gaussian"),
    ((1, 3, 16, 15, 7), (None, 6, 4), 4, 0.75, "constant"),
    ((1, 3, 16, 15, 7), -1, 4, 0.75, "gaussian"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "sigma": {"mode": "gaussian", "sigma_scale": 1.0},
    "sigmas": {"mode": "gaussian", "sigma_scale": [1.0, 0.25, 0.5]},
    "kept map": {"mode": "gaussian", "sigma_scale": [1.0] * 3, "cache_roi_weight_map": True},
    "kept map, one device": {"cache_roi_weight_map": True, "device": torch.device("cpu")},
    "words of MONAI": {"mode": BlendMode.GAUSSIAN, "padding_mode": PytorchPadMode.REPLICATE},
    "fill": {"roi_size": (20, 20, 20), "cval": -1},
    **{
        word: {"roi_size": (13, 12, 5), "padding_mode": word}
        for word in ("constant", "reflect", "replicate", "circular")
    },
    "devices": {"sw_device": "cpu", "device": torch.device("cpu")},
    "stitched on the CPU": {"cpu_thresh": 10},
    "not stitched there": {"cpu_thresh": 10**9},
    "list": {"roi_size": [4, 5, 6]},
    "array": {"roi_size": np.array([4, 5, 6])},
    **{
        f"buffer of {steps} along {axis}": {"buffer_steps": steps, "buffer_dim": axis, "mode": mode}
        for steps, mode in ((1, "constant"), (3, "gaussian"), (4, "gaussian"))
        for axis in (-1, 0, 1)
    },
    "no buffer": {"buffer_steps": 0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "overlap of one": {"overlap": 1.0},
    "negative overlap": {"overlap": (-0.1, 0, 0)},
    "overlaps": {"overlap": (0.5, 0.25)},
    "roi of two": {"roi_size": (4, 4)},
    "blend": {"mode": "other"},
    "padding": {"roi_size": 20, "padding_mode": "other"},
    "no window at once": {"sw_batch_size": 0},
    "buffer": {"buffer_steps": 2, "buffer_dim": 7},
}


def scores(windows: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
    """Two channels that differ by place in the window."""
    ramp = torch.linspace(-1, 1, windows[0, 0].numel()).reshape(windows.shape[2:]).to(windows)
    mean = windows.mean(1, keepdim=True) * named.get("times", 1)
    added = sum(item for item in more if isinstance(item, (int, float, torch.Tensor)))
    return torch.cat([mean + ramp + added, torch.sin(mean) - ramp * ramp], 1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answer(kind: type[SlidingWindowInferer], inputs: torch.Tensor, network: Any, call: Any, **options: Any) -> Any:
    """What an inferer says, or the type of its error; the table's network may not change what is kept here."""
    more, named = call
    try:
        return kind(**options)(copy.deepcopy(inputs), network, *more, **named)
    except Exception as error:  # noqa: BLE001 - what MONAI refuses is compared as well
        return type(error)


def compare(inputs: torch.Tensor, network: Any = scores, *more: Any, named: Any = None, **options: Any) -> Any:
    options = {"roi_size": (4, 5, 6), "sw_batch_size": 3, "overlap": 0.5, **options}
    expected, got = (
        answer(kind, inputs, network, (more, dict(named or {})), **options)
        for kind in (SlidingWindowInferer, StreamingSlidingWindowInferer)
    )
    assert type(got) is type(expected), (got, expected)
    if isinstance(expected, type):
        return expected
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        got, expected = tuple(got.values()), tuple(expected.values())
    for one, other in zip(*((x,) if torch.is_tensor(x) else x for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return got


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(("shape", "roi", "batch", "overlap", "mode"), WINDOWS)
def test_every_window_of_the_table(
    shape: Any, roi: Any, batch: int, overlap: Any, mode: str, conditioned: bool
) -> None:
    options = {"roi_size": roi, "sw_batch_size": batch, "overlap": overlap, "mode": mode}
    if conditioned:
        network = lambda windows, condition: windows + condition  # noqa: E731
        compare(noise(*shape), network, named={"condition": noise(*shape, seed=1)}, **options)
        return
    compare(noise(*shape), **options)
    counted = torch.arange(float(np.prod(shape))).reshape(shape) if mode == "constant" else torch.ones(shape)
    (got,) = compare(counted, lambda windows: windows + 1, **options)[None]
    torch.testing.assert_close(got, counted + 1)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    result = compare(noise(2, 1, 11, 9, 10), **OPTIONS[name])
    assert torch.is_tensor(result)


@pytest.mark.parametrize("name", REFUSED)
def test_what_monai_refuses_is_refused_alike(name: str) -> None:
    assert issubclass(compare(noise(1, 1, 9, 9, 9), **REFUSED[name]), Exception)


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (16, 16, 16), (1, 1, 16, 16, 16, 16)])
def test_inputs_of_another_number_of_axes(shape: tuple[int, ...]) -> None:
    inferer = StreamingSlidingWindowInferer((16, 16, 16), 4)
    with pytest.raises(ValueError, match="Inputs must have 5 dimensions"):
        inferer(torch.zeros(shape), lambda windows: windows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_every_type_of_number(dtype: torch.dtype, mode: str) -> None:
    compare(noise(2, 2, 9, 8, 10).to(dtype), lambda windows: windows * 2, mode=mode)


@pytest.mark.parametrize("meta", [False, True])
def test_gradients_and_the_kind_of_tensor(meta: bool) -> None:
    data = torch.ones(3, 16, 15, 7)
    inputs = list_data_collate([MetaTensor(data) if meta else data])
    inputs.requires_grad = True
    got = StreamingSlidingWindowInferer((4, 10, 7), 10)(inputs, lambda windows: windows + 1)
    assert got.requires_grad and isinstance(got, MetaTensor) == meta
    torch.testing.assert_close(torch.as_tensor(got.detach()), torch.full((1, 3, 16, 15, 7), 2.0))


def test_arguments_of_the_call() -> None:
    inputs = noise(1, 1, 9, 8, 10)
    compare(inputs, scores, torch.ones(1), 2.0, named={"times": torch.full((1,), 3.0)})
    compare(inputs, scores, named={"device": "cpu", "buffer_steps": 2, "buffer_dim": 1, "times": 2})
    compare(inputs, scores, named={"device": None, "buffer_steps": None}, buffer_steps=2)
    seen: dict[type, list[Any]] = {}
    for kind in (SlidingWindowInferer, StreamingSlidingWindowInferer):
        places = seen.setdefault(kind, [])
        network = lambda windows, where, plus, places=places: (places.extend(where), windows + plus)[1]  # noqa: E731
        kind((4, 5, 6), 3, 0.5, with_coord=True)(inputs, network, 1.0)
    ours, theirs = seen[StreamingSlidingWindowInferer], seen[SlidingWindowInferer]
    assert ours and ours == theirs


@pytest.mark.parametrize("kind", ["tuple", "dict", "list", "one in a list", "one in a dict", "larger", "one small"])
def test_several_outputs_of_several_sizes(kind: str) -> None:
    def network(windows: torch.Tensor) -> Any:
        small, smaller = windows[:, ::3, ::2, ::2] + 2, windows[:, ::2, ::4, ::4] + 3
        larger = torch.nn.functional.interpolate(windows, scale_factor=2.0)
        return {
            "tuple": (windows + 1, small, smaller),
            "dict": {1: windows + 1, 2: small, 3: smaller},
            "list": [windows + 1, windows * 2],
            "one in a list": [windows + 1],
            "one in a dict": {"pred": windows},
            "larger": larger,
            "one small": small,
        }[kind]

    for roi, size in (((8, 8), 20), ((8, 8), 8)):
        got = compare(noise(1, 6, size, size), network, roi_size=roi, sw_batch_size=10, cval=-1)
        assert not isinstance(got, type)


def test_it_is_an_inferer_of_monai_wherever_one_is_asked_for() -> None:
    inferer = StreamingSlidingWindowInferer((4, 4, 4), 2, 0.5, "gaussian", cache_roi_weight_map=True)
    assert isinstance(inferer, SlidingWindowInferer) and isinstance(inferer, Inferer)
    inputs = noise(1, 1, 9, 9, 9)
    for twin in (copy.deepcopy(inferer), pickle.loads(pickle.dumps(inferer))):
        assert torch.equal(twin(inputs, scores), inferer(inputs, scores))
    assert inferer(inputs=inputs, network=scores).shape == (1, 2, 9, 9, 9)


@settings(max_examples=40)
@given(
    size=st.lists(st.integers(1, 13), min_size=1, max_size=3),
    data=st.data(),
    batch=st.integers(1, 5),
    images=st.integers(1, 2),
    mode=st.sampled_from(["constant", "gaussian"]),
    padding=st.sampled_from(["constant", "replicate"]),
    broken=st.sampled_from([None, float("nan"), float("inf")]),
)
def test_any_size_window_and_overlap(
    size: list[int], data: Any, batch: int, images: int, mode: str, padding: str, broken: float | None
) -> None:
    roi = tuple(data.draw(st.integers(-1, 9)) for _ in size)
    overlap = tuple(data.draw(st.sampled_from([0, 0.25, 0.5, 0.75, 0.9])) for _ in size)
    inputs = noise(images, 2, *size)
    if broken is not None:  # the network's answer to it goes wherever MONAI lets it go
        inputs.view(-1)[data.draw(st.integers(0, inputs.numel() - 1))] = broken
    compare(inputs, roi_size=roi, overlap=overlap, sw_batch_size=batch, mode=mode, padding_mode=padding)
