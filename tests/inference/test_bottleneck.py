"""What a network holds in its bottleneck: where that is, and that torch, OpenVINO and mirrors give the same mean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, UNet

from segpipe.inference.bottleneck import Bottleneck, Pooled, bottleneck_of, pooled
from segpipe.inference.openvino_runtime import openvino_runtime
from segpipe.inference.precision import ChosenPrecision
from segpipe.inference.runtimes import choose_runtime, torch_runtime
from segpipe.inference.slices import OfSlices
from segpipe.inference.weights import Model

CPU = torch.device("cpu")
SHAPE = (1, 16, 16, 16)
NETWORKS: dict[str, tuple[Any, int]] = {  # and the channels of its coarsest level
    "unet": (lambda: UNet(3, 1, 2, (4, 8, 12), (2, 2)), 8 + 12),  # the lowest layer beside its input
    "dynunet": (lambda: DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, [4, 8, 12], deep_supervision=True), 12),
    "basicunet": (lambda: BasicUNet(3, 1, 2, (4, 4, 8, 8, 12, 4)), 12),
    "segresnet": (lambda: SegResNet(3, 8, 1, 2), 32),
    "unetr": (lambda: UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2), 12),
}


def unet(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return UNet(3, 1, 2, (4, 8, 12), (2, 2)).eval()


def held_by(runtime: Any, bottleneck: Bottleneck, windows: torch.Tensor) -> np.ndarray:
    bottleneck.watch()
    with torch.inference_mode():
        runtime(windows)
    return bottleneck.taken()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_where_the_fewest_voxels_are(name: str) -> None:
    make, channels = NETWORKS[name]
    network, shape = make().eval(), (1, 32, 32, 32)
    place = bottleneck_of(network, shape)
    assert place is not None
    both = Pooled(network, place)
    windows = torch.randn(2, *shape)
    with torch.inference_mode():
        scores, held = both(windows)
        expected = network(windows)
    assert torch.equal(scores, expected)
    assert held.shape == (2, channels)
    assert held.abs().max() > 0


def test_it_is_the_mean_of_that_output_and_depends_on_the_window() -> None:
    network, seen = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, [4, 8, 12]).eval(), []
    network.bottleneck.register_forward_hook(lambda *given: seen.append(given[2].clone()))
    windows, bottleneck = torch.randn(3, *SHAPE), Bottleneck()
    found = held_by(torch_runtime(pooled(network, SHAPE), bottleneck=bottleneck), bottleneck, windows)
    np.testing.assert_allclose(found, seen[-1].mean((0, 2, 3, 4)).numpy(), rtol=1e-5, atol=1e-7)


def test_a_network_of_one_size_has_none() -> None:
    flat = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))
    assert bottleneck_of(flat, SHAPE) is None
    assert pooled(flat, SHAPE) is flat
    chosen = choose_runtime("torch", [Model(flat, "model.pt", "{}")], CPU, SHAPE)
    assert held_by(chosen.run, chosen.bottlenecks[0], torch.randn(1, *SHAPE)).shape == (0,)


def test_what_averages_a_whole_window_is_passed_over() -> None:
    class Squeezed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = torch.nn.Conv3d(1, 4, 2, stride=4), torch.nn.Upsample(scale_factor=4)
            self.average, self.weigh = torch.nn.AdaptiveAvgPool3d(1), torch.nn.Conv3d(4, 4, 1)

        def forward(self, windows: torch.Tensor) -> Any:
            low = self.down(windows)
            return self.up(low * torch.sigmoid(self.weigh(self.average(low))))

    place = bottleneck_of(Squeezed().eval(), SHAPE)
    assert place is not None
    assert place.module == "up"


def test_nothing_is_kept_while_nobody_watches() -> None:
    bottleneck = Bottleneck()
    runtime = torch_runtime(pooled(unet(), SHAPE), bottleneck=bottleneck)
    windows = torch.randn(2, *SHAPE)
    runtime(windows)
    assert bottleneck.taken().shape == (0,)
    first = held_by(runtime, bottleneck, windows)
    bottleneck.watch()
    for window in windows.split(1):
        runtime(window)
    np.testing.assert_allclose(bottleneck.taken(), first, rtol=1e-4, atol=1e-6)


def test_members_are_held_apart_and_mirrors_are_passed_over() -> None:
    models = [Model(unet(seed), f"{seed}.pt", "{}") for seed in (1, 2)]
    alone = []
    for model in models:
        bottleneck = Bottleneck()
        runtime = torch_runtime(pooled(model.module, SHAPE), bottleneck=bottleneck)
        alone.append(held_by(runtime, bottleneck, torch.linspace(-1, 2, 16**3).reshape(1, *SHAPE)))
    for mirror in ((), (0, 2)):
        chosen = choose_runtime("torch", models, CPU, SHAPE, mirror=mirror, members=True)
        for bottleneck in chosen.bottlenecks:
            bottleneck.watch()
        with torch.inference_mode():
            chosen.run(torch.linspace(-1, 2, 16**3).reshape(1, *SHAPE))
        for bottleneck, expected in zip(chosen.bottlenecks, alone, strict=True):
            np.testing.assert_allclose(bottleneck.taken(), expected, rtol=1e-4, atol=1e-6)


def test_slices_have_one_as_well() -> None:
    network = OfSlices(UNet(2, 1, 2, (4, 8), (2,)).eval(), axis=2)
    assert bottleneck_of(network, (1, 16, 16, 1)) is None  # a quarter of a slice is not few
    deeper = OfSlices(UNet(2, 1, 2, (4, 8, 12), (2, 2)).eval(), axis=2)
    bottleneck = Bottleneck()
    runtime = torch_runtime(pooled(deeper, (1, 16, 16, 1)), bottleneck=bottleneck)
    assert held_by(runtime, bottleneck, torch.randn(2, 1, 16, 16, 1)).shape == (20,)


def test_bfloat16_holds_about_the_same() -> None:
    network, windows = pooled(unet(), SHAPE), torch.randn(1, *SHAPE)
    exact, rough = Bottleneck(), Bottleneck()
    first = held_by(torch_runtime(network, bottleneck=exact), exact, windows)
    second = held_by(torch_runtime(network, ChosenPrecision("bfloat16"), rough), rough, windows)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(second, first, atol=0.03 * np.abs(first).max())


def test_openvino_holds_what_torch_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    module, bottleneck, windows = pooled(unet(), SHAPE), Bottleneck(), torch.randn(3, *SHAPE)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    model = Model(module, str(tmp_path / "model.pt"), "{}", bottleneck=bottleneck)
    network = torch_runtime(copy.deepcopy(module), bottleneck=bottleneck)
    expected = held_by(network, bottleneck, windows)
    for _ in range(2):  # converted, and from the cache
        found = held_by(openvino_runtime(network, model, SHAPE, 1), bottleneck, windows)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
