"""Parts of a tiny run: fragments, grids, volumes and a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.common.files import sha256_of, write_json
from segpipe.data.phantom import write_nifti

LABELS = ["background", "left | part", "right part"]
KEYS = {"keys": ["image", "label"], "allow_missing_keys": True}
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
TASK = {
    "task_name": "tiny",
    "channels": ["MRI"],
    "labels": LABELS,
    "in_channels": 1,
    "out_channels": 3,
    "activation": "softmax",
    "patch_size": [16, 16, 16],
    "deterministic_transforms": [
        {"_target_": "LoadImaged", **KEYS, "reader": "NibabelReader", "image_only": True},
        {"_target_": "EnsureChannelFirstd", **KEYS},
        {"_target_": "Orientationd", **KEYS, "axcodes": "RAS", "labels": AXES},
        {"_target_": "Spacingd", **KEYS, "pixdim": [1.0, 1.0, 1.0], "mode": ["bilinear", "nearest"]},
        {"_target_": "CropForegroundd", **KEYS, "source_key": "image"},
        {"_target_": "SpatialPadd", **KEYS, "spatial_size": "@patch_size"},
        {"_target_": "NormalizeIntensityd", "keys": ["image"], "channel_wise": True, "allow_missing_keys": True},
        {"_target_": "EnsureTyped", **KEYS},
    ],
}
NETWORK = {
    "network_name": "tiny",
    "patch_divisor": 4,
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "channels": [4, 8, 16],
        "strides": [2, 2],
    },
}
MakeRun = Callable[..., Path]


def affines() -> dict[str, np.ndarray]:
    """Grids of every sort: as stored, flipped, permuted, tilted and anisotropic."""
    cos, sin = np.cos(0.3), np.sin(0.3)
    tilted = np.eye(4)
    tilted[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([0.9, 0.8, 2.5])
    tilted[:3, 3] = (5.25, -6.5, 7)
    return {
        "flipped": np.array([[-1, 0, 0, 30], [0, -1, 0, 20.5], [0, 0, 1, 3], [0, 0, 0, 1.0]]),
        "permuted": np.array([[0, 0, 2.0, -3], [-1.1, 0, 0, 5], [0, 1.3, 0, 9], [0, 0, 0, 1]]),
        "plain": np.eye(4),
        "tilted": tilted,
    }


def write_volumes(folder: Path, seed: int = 0) -> None:
    """One image of 16 voxels a side for each of `affines`, with content up to its borders."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, affine in affines().items():
        write_nifti(folder / f"{name}.nii.gz", rng.integers(1, 400, (16, 16, 16)).astype(np.int16), affine)


def record_as_trained(run: Path) -> None:
    """Make the run record name the config and the manifest as they are now."""
    record = json.loads((run / "run.json").read_text())
    hashes = {f"{name}_sha256": sha256_of(run / f"{name}.json") for name in ("config", "manifest")}
    write_json(run / "run.json", {**record, **hashes})


def manifest(channels: list[str], labels: list[str]) -> dict[str, Any]:
    cases = [
        {"id": name, "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "patient_id": "Jane Doe"}
        for name in affines()
    ]
    return {
        "schema_version": 1,
        "name": "tiny",
        "description": "noise",
        "reference": "None (2026)",
        "source": "generated",
        "licence": "CC0-1.0",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(i): name for i, name in enumerate(labels)},
        "training": [{**case, "fold": index % 2} for index, case in enumerate(cases)],
    }
