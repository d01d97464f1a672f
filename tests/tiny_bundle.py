"""Small bundles in MONAI's format, written by hand, for the tests of prediction."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

THRESHOLD = 100.0
TILTED = np.array([[1.9, 0.2, 0, -20], [-0.2, 1.9, 0, 30], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])

DETERMINISTIC = [
    {"_target_": "LoadImaged", "keys": "image", "image_only": True},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "EnsureTyped", "keys": "image", "dtype": "float32"},
]
# bright voxels are label 1: logits (threshold - x, x - threshold)
BRIGHT = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


def write_bundle(
    root: Path,
    *,
    network: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    deterministic: list[dict[str, Any]] | None = None,
    labels: tuple[str, ...] = ("background", "bright"),
    channels: tuple[str, ...] = ("MRI",),
    version: str = "0.1.0",
    activation: str = "softmax",
) -> Path:
    """A bundle whose default network marks what is brighter than `THRESHOLD`."""
    import torch

    if state is None:
        weight = torch.zeros(2, len(channels), 1, 1, 1)
        weight[0], weight[1] = -1.0, 1.0
        state = {"weight": weight, "bias": torch.tensor([THRESHOLD, -THRESHOLD])}
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    torch.save(state, root / "models" / "model.pt")
    metadata = {
        "name": "tiny",
        "version": version,
        "monai_version": installed("monai"),
        "pytorch_version": installed("torch").partition("+")[0],
        "numpy_version": installed("numpy"),
        "network_data_format": {
            "inputs": {"image": {"channel_def": {str(i): name for i, name in enumerate(channels)}}},
            "outputs": {"pred": {"channel_def": {str(i): name for i, name in enumerate(labels)}}},
        },
    }
    inference = {
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "data",
        "device": "cpu",
        "network_def": network or {**BRIGHT, "in_channels": len(channels)},
        "network": {"_target_": "torch.nn.Module.to", "self": "@network_def", "device": "@device"},
        "deterministic_transforms": deterministic or DETERMINISTIC,
        "files": {
            "_target_": "torch.utils.data.datapipes.iter.FileLister",
            "root": "@dataset_dir",
            "masks": ["*.nii.gz", "*.nii"],
        },
        "datalist": "$[{'image': p} for p in sorted(@files)]",
        "preprocessing": {"_target_": "Compose", "transforms": "@deterministic_transforms"},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 16, 16],
            "sw_batch_size": 2,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "checkpoint": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", activation: True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {
                    "_target_": "AsDiscreted",
                    "keys": "pred",
                    **({"argmax": True} if activation == "softmax" else {"threshold": 0.5}),
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_ext": ".nii.gz",
                    "output_dtype": "uint8",
                    "resample": False,
                    "separate_folder": False,
                    "print_log": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": ["@checkpoint"],
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (root / "configs" / "inference.json").write_text(json.dumps(inference))
    return root


def write_scan(path: Path, seed: int = 0, shape: tuple[int, ...] = (12, 10, 9), dtype: Any = np.int16) -> Path:
    """A random scan with values 0 to 199 on a tilted grid."""
    voxels = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, TILTED), path)
    return path
