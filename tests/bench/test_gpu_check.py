"""The checks of a GPU, run on the CPU: each finds the device equal to itself; and what they say where one is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_check

    return gpu_check


@pytest.fixture
def size(gpu_check: Any) -> Any:
    return gpu_check.Size(patch=16, steps=24, channels=(8, 16), volume=(40, 40, 24), classes=3, window=16, batch=2)


def test_without_cuda_it_ends_with_words(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 2
    assert "there is no CUDA device cuda:0" in capsys.readouterr().err


def test_a_training_on_the_same_device_is_the_same(gpu_check: Any, size: Any) -> None:
    step, dice = gpu_check.training(CPU, size)
    assert step.passed and "losses of 2 steps differ by 0;" in step.figures
    first, second = dice.figures.split()[0], dice.figures.split(", ")[1].split()[0]
    assert first == second and 0 < float(first) < 1


def test_another_training_is_told(gpu_check: Any, size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_check.train

    def spoilt(device: Any, size: Any, *rest: Any) -> Any:
        found = real(device, size, *rest)
        return (
            found if device is gpu_check.CPU else replace(found, losses=[loss * 1.1 for loss in found.losses], dice=[0])
        )

    monkeypatch.setattr(gpu_check, "train", spoilt)
    assert [found.passed for found in gpu_check.training(torch.device("cpu", 0), size)] == [False, False]


def test_mixed_precision_computes_in_bfloat16(gpu_check: Any, size: Any) -> None:
    (found,) = gpu_check.mixed_precision(CPU, size)
    assert found.passed and found.figures.startswith("convolutions give torch.bfloat16;")


def test_labels_are_those_of_stock_monai(gpu_check: Any, size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, seconds = gpu_check.inference(CPU, size)
    assert labels.passed and "0 of the voxels differ from the CPU's" in labels.figures
    assert seconds.name == "inference, time"

    def wrong(*given: Any) -> Any:
        return 1 - gpu_check._ours(*given)

    monkeypatch.setattr(gpu_check, "_stock", wrong)
    assert not gpu_check.inference(CPU, size)[0].passed


def test_windows_that_do_not_fit_are_computed_in_parts(
    gpu_check: Any, size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = gpu_check.out_of_memory(CPU, size)
    assert found.passed and "16 windows did not fit, 4 at once did" in found.figures
    monkeypatch.setattr(gpu_check, "in_parts", lambda run: lambda windows: torch.cat([run(windows[:4])] * 4))
    assert not gpu_check.out_of_memory(CPU, size)[0].passed
