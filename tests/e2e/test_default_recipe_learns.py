"""The default network, loss and augmentation learn in a minute what the demo shows: a change for the worse is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

import segpipe
from segpipe.cli.demo.demo_data import demo_manifest, write_data
from segpipe.data import save_manifest


@pytest.mark.slow
@pytest.mark.parametrize("network", ["unet", "unet_fine"])
def test_a_short_training_on_the_demo_s_data(network: str, tmp_path: Path) -> None:
    manifest = demo_manifest()
    write_data(tmp_path / "data", manifest, 0, 1.4)
    save_manifest(manifest, tmp_path / "data/manifest.json")
    segpipe.plan(tmp_path / "data/manifest.json", network=network, out=tmp_path / "task.yaml")
    run = segpipe.train(
        tmp_path / "data/manifest.json",
        task=tmp_path / "task.yaml",
        out=tmp_path / "run",
        network=network,
        epochs=20,
        threads=1,
        overrides=["batch_size=2", "val_interval=20"],
        progress=lambda line: None,
    )
    # four trainings of unet_fine gave 0.52 to 0.66; with a slope of 0.01, as it once was, 0.26
    assert run.val_mean_dice is not None and run.val_mean_dice > 0.45
