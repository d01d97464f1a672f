"""Parts of a tiny run: fragments, grids, volumes and a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.bundle import Bundle
from segpipe.common.files import sha256_of, write_json
from segpipe.common.result_folder import hashes_of
from segpipe.data.phantom import write_nifti
from segpipe.evaluation import seal

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


def with_test_cases(run: Path, number: int = 4) -> None:
    """Give a run's manifest test cases of patients of their own, and hashes of its training images."""
    document = json.loads((run / "manifest.json").read_text())
    for index, case in enumerate(document["training"]):
        case.update(patient_id=f"Jane Doe {index}", sha256={case["image"]: f"{index:064}"})
    document["test"] = [
        {"id": f"case_{i}", "image": f"images/case_{i}.nii.gz", "label": f"labels/case_{i}.nii.gz"}
        for i in range(number)
    ]
    write_json(run / "manifest.json", document)
    record = json.loads((run / "run.json").read_text())
    cases = {
        name: [case["id"] for case in document["training"] if (case["fold"] == 0) == (name == "validation")]
        for name in ("training", "validation")
    }
    write_json(run / "run.json", {**record, "cases": cases})
    record_as_trained(run)


def write_truth(run: Path, data: Path) -> None:
    """Write a label map for every case of the run's manifest, one block a label."""
    document = json.loads((run / "manifest.json").read_text())
    for index, case in enumerate([*document["training"], *document["test"]]):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[2:5, 2 : 6 + index % 3, 2:6], labels[7:10, 2:6, 2:6] = 1, 2
        (data / case["label"]).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(data / case["label"], labels, np.eye(4))


def write_predictions(folder: Path, bundle: Bundle, run: Path, data: Path, **changes: Any) -> Path:
    """Write what `segpipe predict` would leave for the test cases: the truth less a slice, and its result.json."""
    import nibabel as nib

    for case in json.loads((run / "manifest.json").read_text())["test"]:
        labels = np.asarray(nib.load(data / case["label"]).dataobj).copy()
        labels[:, :, 2] = 0
        (folder / case["id"]).mkdir(parents=True)
        write_nifti(folder / case["id"] / "segmentation.nii.gz", labels, np.eye(4))
        result = {
            "id": case["id"],
            "bundle": bundle.facts,
            "model": bundle.model,
            "ensemble": [],
            "mirror": [],
            "runtime": "torch",
            "engine": "streaming",
            "versions": {"segpipe": "1"},
            "source_sha256": [sha256_of(data / case["label"])],
            "sha256": hashes_of(folder / case["id"]),
        }
        write_json(folder / case["id"] / "result.json", {**result, **changes})
    return folder


def write_evaluation(folder: Path, evaluation: dict[str, Any], bundle: Bundle) -> None:
    """Write figures as `segpipe evaluate` would have measured them on what a bundle predicted."""
    facts = {name: bundle.facts[name] for name in ("name", "version", "sha256")}
    how = {"ensemble": [], "mirror": [], "runtime": ["torch"], "engine": ["streaming"], "segpipe": ["1"]}
    cases = [{"image_sha256": [], **case} for case in evaluation["cases"]]
    predictions = {"made_by": {"bundle": facts, **bundle.model, **how}, "untied": {}}
    document = {**evaluation, "cases": cases, "predictions": predictions}
    write_json(folder / "metrics.json", {**document, "content_sha256": seal(document)})


def manifest(channels: list[str], labels: list[str]) -> dict[str, Any]:
    cases = [
        {
            "id": name,
            "image": f"images/{name}.nii.gz",
            "label": f"labels/{name}.nii.gz",
            "patient_id": "Jane Doe",
            "covariates": {"age_years": 71, "maker": "ROENTGEN"},
        }
        for name in affines()
    ]
    return {
        "schema_version": 2,
        "name": "tiny",
        "description": "noise",
        "reference": "None (2026)",
        "source": "generated",
        "licence": "CC0-1.0",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(i): name for i, name in enumerate(labels)},
        "training": [{**case, "fold": index % 2} for index, case in enumerate(cases)],
    }
