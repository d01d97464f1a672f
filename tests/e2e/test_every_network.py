"""Every shipped network composes and takes a training step on generated scans, whatever patch was planned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.training.fragments import known_fragments
from tiny_data import train_arguments

FAST = ("segresnet", "dynunet_res")
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in known_fragments("network")]


@pytest.mark.parametrize("name", EACH)
def test_it_composes_and_takes_a_step(
    name: str, tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--network", name, "--set", "patch_size=[20,16,12]", "--set", "batch_size=2", "--json"]
    if name == "unetpp":
        settings[3] = "patch_size=[32,16,12]"
    task = str(tiny_manifest.parent / "task.yaml")
    assert run(["train", str(tiny_manifest), "--task", task, "--explain", *settings]) == 0
    printed = capsys.readouterr()
    config = json.loads(printed.out)["config"]
    assert f"padded to {config['patch_size']}" in printed.err
    divisors = np.broadcast_to(config["patch_divisor"], 3)
    assert all(size % divisor == 0 for size, divisor in zip(config["patch_size"], divisors, strict=True))
    assert (config["patch_size"][2] == 1) == name.endswith("_2d"), "12 voxels, or a slice"
    words = train_arguments(tiny_manifest, tmp_path / "run", "--dry-run", *settings, small=False)
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)["dry_run"]
    assert found["batch_shape"] == [2, 1, *config["patch_size"]]
    assert 0 < found["first_loss"] < 10
    assert found["validation_scores_shape"][1] == config["out_channels"]
