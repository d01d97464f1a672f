"""Networks are averaged and mirrored as stated; OpenVINO is chosen where it can be, or the reason is told."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from segpipe.errors import UsageError
from segpipe.inference import runtimes
from segpipe.inference.averaging import average, mirrored
from segpipe.inference.openvino_runtime import NotConvertedError
from segpipe.inference.runtimes import ChosenRuntime, choose_runtime, torch_runtime
from segpipe.inference.sliding_window import Runtime
from segpipe.inference.weights import Model

SHAPE = (1, 4, 4, 4)
CPU = torch.device("cpu")


@pytest.fixture
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 3, padding=1).eval()


def chosen(wanted: str, module: torch.nn.Module, device: torch.device = CPU) -> ChosenRuntime:
    return choose_runtime(wanted, [Model(module, "model.pt", "{}")], device, SHAPE)


def test_several_networks_are_averaged() -> None:
    windows = torch.randn(2, *SHAPE)
    total = average([lambda x: x, lambda x: 3 * x, lambda x: -x])(windows)
    torch.testing.assert_close(total, windows)


def test_mirrored_windows_are_turned_back(module: torch.nn.Module) -> None:
    windows, network = torch.randn(2, *SHAPE), torch_runtime(module)
    with torch.no_grad():
        found = mirrored(network, (0, 2))(windows)
        expected = sum(network(windows.flip(dims)).flip(dims) for dims in ([], [2], [4], [2, 4])) / 4
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mirrored(lambda x: x, (0, 1, 2))(windows), windows)


def test_mirrors_are_combined() -> None:
    windows = torch.randn(1, *SHAPE)

    def watched(window: torch.Tensor) -> torch.Tensor:
        seen.append(window)
        return window

    for axes, count in (((), 1), ((0, 2), 4), ((0, 1, 2), 8)):
        seen: list[torch.Tensor] = []
        mirrored(watched, axes)(windows)
        assert len(seen) == len({window.numpy().tobytes() for window in seen}) == count
        assert torch.equal(seen[0], windows)


def test_one_runtime_computes_all_of_an_ensemble(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    models, windows = [Model(module, "a.pt", "{}"), Model(other, "b.pt", "{}")], torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = (module(windows) + other(windows)) / 2
        plain = choose_runtime("torch", models, CPU, SHAPE)
        torch.testing.assert_close(plain.run(windows), expected)
        converted: dict[str, Runtime] = {"a.pt": lambda x: x - 1, "b.pt": lambda x: x + 3}

        def convert(_network: Runtime, model: Model, *_: Any) -> Runtime:
            if model.weights not in converted:
                raise NotConvertedError("its scores differ")
            return converted[model.weights]

        monkeypatch.setattr(runtimes, "openvino_runtime", convert)
        monkeypatch.setattr(runtimes, "WORTH_CONVERTING", 0)
        both = choose_runtime("auto", models, CPU, SHAPE)
        assert both.name == "openvino" and both.reasons == ()
        torch.testing.assert_close(both.run(windows), windows + 1)
        apart = choose_runtime("auto", models, CPU, SHAPE, members=True)
        torch.testing.assert_close(apart.run(windows), torch.cat([windows - 1, windows + 3], 1))
        del converted["b.pt"]
        mixed = choose_runtime("auto", models, CPU, SHAPE)
        assert mixed.name == "torch" and mixed.reasons == ("openvino was not used: its scores differ",)
        torch.testing.assert_close(mixed.run(windows), expected)


def test_torch_is_taken_when_asked_for(module: torch.nn.Module) -> None:
    plain = chosen("torch", module)
    assert (plain.name, plain.reasons) == ("torch", ())


def test_small_networks_are_left_to_torch(module: torch.nn.Module) -> None:
    assert chosen("auto", module).reasons == ("the network is too small to be worth a conversion",)


def test_a_conversion_that_fails_falls_back_with_the_reason(
    module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NotConvertedError("its scores differ")

    monkeypatch.setattr(runtimes, "openvino_runtime", refuse)
    monkeypatch.setattr(runtimes, "WORTH_CONVERTING", 0)
    for wanted in ("auto", "openvino"):
        fallback = chosen(wanted, module)
        assert fallback.name == "torch"
        assert fallback.reasons == ("openvino was not used: its scores differ",)
        assert fallback.run(torch.zeros(1, *SHAPE)).shape == (1, 2, 4, 4, 4)


def test_openvino_is_for_the_cpu_and_has_to_be_installed(
    module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda:0")
    assert chosen("auto", module, gpu).reasons == ("openvino is for the CPU",)
    with pytest.raises(UsageError, match="cannot be used"):
        chosen("openvino", module, gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert chosen("auto", module).reasons == ("openvino is not installed",)
    with pytest.raises(UsageError) as caught:
        chosen("openvino", module)
    assert "segpipe[openvino]" in str(caught.value.hint)
