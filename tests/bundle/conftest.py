"""A tiny run folder as `train` leaves it, with seeded random weights, and the bundle exported from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import NETWORK, TASK, MakeRun, manifest, record_as_trained, write_volumes

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.common.files import write_json


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Make a run folder; ``task`` and ``network`` change ids of the fragments."""

    def make(task: dict[str, Any] | None = None, network: dict[str, Any] | None = None) -> Path:
        import torch
        from monai.bundle import ConfigParser

        from segpipe.bundle.supported_subset import resolve
        from segpipe.training.fragments import compose_config

        folder = tmp_path_factory.mktemp("run")
        parts = {"task": {**TASK, **(task or {})}, "network": {**NETWORK, **(network or {})}}
        fragments = {"loss": "dice_ce", "augment": "none", "runtime": "cpu"}
        for kind, part in parts.items():
            fragments[kind] = str(folder / f"{kind}.yaml")
            Path(fragments[kind]).write_text(yaml.safe_dump(part))
        values = {"bundle_root": str(folder), "dataset_dir": "/data/of/mine", "fold": 0, "sw_batch_size": 1}
        config = compose_config(fragments, [], {name: (value, "test") for name, value in values.items()}).config
        write_json(folder / "config.json", config)
        write_json(folder / "manifest.json", manifest(config["channels"], config["labels"]))
        record = {
            "status": "finished",
            "seed": 0,
            "fold": 0,
            "epochs": 3,
            "best": {"epoch": 2, "val_mean_dice": 0.5},
            "cases": {"training": ["a", "b"], "validation": ["c"]},
        }
        write_json(folder / "run.json", record)
        record_as_trained(folder)
        torch.manual_seed(0)
        definition = resolve(config["network_def"], config)
        network_def = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
        torch.save(network_def.state_dict(), folder / "best.pt")
        return folder

    return make


@pytest.fixture(scope="session")
def run_folder(make_run: MakeRun) -> Path:
    return make_run()


@pytest.fixture(scope="session")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(run_folder, tmp_path_factory.mktemp("bundles") / "tiny_mri")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    write_volumes(folder)
    return folder
