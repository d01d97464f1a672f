"""A run with every part of the step, killed and gone on with: the same bits, also from the bundle that it becomes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from segpipe.cli.app import run
from tiny_data import train_arguments
from whole_commands import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEP = {
    "precision": "bfloat16",
    "channels_last": "true",
    "averaging": "0.9",
    "warmup_epochs": "2",
    "steps_per_epoch": "4",
    "keep_weights": "last",
}


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(path, weights_only=True)
    return loaded.get("averaged", loaded)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_it_goes_on_bit_for_bit_and_its_bundle_is_reproduced(tiny_manifest, tmp_path, workers: str) -> None:
    whole, out, bundle = tmp_path / "whole", tmp_path / "killed", tmp_path / "bundle"
    more = [word for name, value in STEP.items() for word in ("--set", f"{name}={value}")]
    more += ["--augment", "nnunet_mirror", "--epochs", "4", "--workers", workers]
    assert run(train_arguments(tiny_manifest, whole, *more)) == 0
    process = start(*train_arguments(tiny_manifest, out, *more))
    wait_for(process, "epoch 2/4")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((out / "run.json").read_text())["status"] == "running" and not (out / "final.pt").exists()
    assert run(["train", "--resume", str(out)]) == 0
    assert same(weights(whole / "final.pt"), weights(out / "final.pt"))
    assert same(weights(whole / "last.pt"), weights(out / "final.pt"))
    if workers == "2":
        return
    assert run(["export", str(out), str(bundle)]) == 0
    assert same(weights(bundle / "models" / "model.pt"), weights(out / "final.pt"))
    again = ["reproduce", str(bundle), "--data", str(tiny_manifest.parent), "--out", str(tmp_path / "again"), "--json"]
    assert run(again) == 0
    report = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert report["verdict"] == "bit-identical" and report["weights"]["identical"]
