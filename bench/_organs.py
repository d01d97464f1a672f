"""CT-like scans of ellipsoid organs, and small networks that our own command trains on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from segpipe.data.manifest import Manifest, save_manifest

PERIOD_MM = 300.0  # the anatomy repeats along the body
TRUNK_MM = (170.0, 125.0)  # half widths
PIXDIM = (1.5, 1.5, 2.0)
CHANNELS = (8, 16, 32, 64)
SMALL_UNET = {
    "network_name": "small_unet",
    "patch_divisor": 8,
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "channels": list(CHANNELS),
        "strides": [2, 2, 2],
        "num_res_units": 0,
    },
}
STEPS = [
    {"_target_": "LoadImaged", "keys": ["image", "label"], "image_only": True, "allow_missing_keys": True},
    {"_target_": "EnsureChannelFirstd", "keys": ["image", "label"], "allow_missing_keys": True},
    {"_target_": "Orientationd", "keys": ["image", "label"], "axcodes": "RAS", "allow_missing_keys": True},
    {
        "_target_": "Spacingd",
        "keys": ["image", "label"],
        "pixdim": list(PIXDIM),
        "mode": ["bilinear", "nearest"],
        "allow_missing_keys": True,
    },
    {
        "_target_": "ScaleIntensityRanged",
        "keys": ["image"],
        "a_min": -200,
        "a_max": 500,
        "b_min": 0.0,
        "b_max": 1.0,
        "clip": True,
        "allow_missing_keys": True,
    },
    {"_target_": "EnsureTyped", "keys": ["image", "label"], "allow_missing_keys": True},
]


def scan(
    patient: int,
    classes: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    start_mm: tuple[float, float, float] | None = None,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image in HU and labels; by default the body lies in the middle.

    Args:
        patient: seed of the anatomy.
        classes: labels, background included.
        shape: voxels.
        spacing: mm.
        start_mm: where the first voxel lies, the body's axis at x = y = 0.
    """
    rng = np.random.default_rng(patient)
    start = start_mm or (-shape[0] * spacing[0] / 2, -shape[1] * spacing[1] / 2, 0.0)
    x, y, z = (
        (first + step * np.arange(size)).astype(np.float32)
        for first, step, size in zip(start, spacing, shape, strict=True)
    )
    across = (x[:, None] / TRUNK_MM[0]) ** 2 + (y[None] / TRUNK_MM[1]) ** 2
    label = np.zeros(shape, np.uint8)
    size_mm = 60 / classes ** (1 / 3)
    for value, (centre, radii) in enumerate(_organs(rng, classes - 1, size_mm), 1):
        for turn in range(int(z[0] // PERIOD_MM) - 1, int(z[-1] // PERIOD_MM) + 2):
            _add(label, (x, y, z), (*centre[:2], centre[2] + turn * PERIOD_MM), radii, value)
    step = min(30.0, 420 / classes)
    signal = np.array([0.0, *(40 + step * np.arange(classes - 1))], np.float32)
    image = signal[label]
    image[across > 1] = -1000
    label[across > 1] = 0
    noise = np.random.default_rng(patient + 1000)
    for plane in range(shape[2]):
        image[..., plane] += noise.normal(0, 0.4 * step, shape[:2])
    return np.round(image).astype(np.int16), label


def _organs(rng: np.random.Generator, count: int, size_mm: float) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Centres on a shuffled low-discrepancy sequence, and radii in mm."""
    spread = (np.arange(count)[:, None] * np.array([0.7549, 0.5698, 0.8191]) + 0.5) % 1
    organs = []
    for place in spread + rng.normal(0, 0.03, spread.shape):
        angle, radius = 2 * np.pi * place[0], 0.8 * np.sqrt(np.clip(place[1], 0, 1))
        centre = (TRUNK_MM[0] * radius * np.cos(angle), TRUNK_MM[1] * radius * np.sin(angle), PERIOD_MM * place[2])
        organs.append((centre, tuple(size_mm * rng.uniform(0.6, 1.5, 3))))
    return organs


def _add(
    label: NDArray[np.uint8],
    axes: tuple[NDArray[np.float32], ...],
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    value: int,
) -> None:
    box = tuple(
        slice(int(np.searchsorted(axis, middle - radius)), int(np.searchsorted(axis, middle + radius)))
        for axis, middle, radius in zip(axes, centre, radii, strict=True)
    )
    parts = [
        ((axis[part] - middle) / radius) ** 2
        for axis, part, middle, radius in zip(axes, box, centre, radii, strict=True)
    ]
    inside = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None] < 1
    label[box][inside] = value


def write(path: Path, voxels: NDArray[np.generic], spacing: tuple[float, float, float]) -> None:
    """An LPS volume, as CT scanners write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), path)


def crop(patient: int, classes: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and labels of a part of the body, 144 mm wide."""
    place = np.random.default_rng(patient).uniform([-150, -140, 0], [0, 0, PERIOD_MM])
    return scan(patient, classes, (96, 96, 72), PIXDIM, tuple(place))


def trained(folder: Path, classes: int, epochs: int, network: str = "small_unet") -> Path:
    """Weights of a U-Net; trained by `segpipe train` on generated crops where they are not there yet.

    Args:
        folder: where networks are kept.
        classes: labels, background included.
        epochs: of training.
        network: the small one, or a word of `segpipe train --network`.
    """
    is_small = network == SMALL_UNET["network_name"]
    run = folder / (f"organs{classes}" if is_small else f"organs{classes}_{network}") / "run"
    if (run / "best.pt").is_file():
        return run / "best.pt"
    data, names = run.parent / "data", [f"organ_{value}" for value in range(1, classes)]
    cases = []
    for number in range(8):
        image, label = crop(number, classes)
        case = {"id": f"case{number}", "image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"}
        write(data / case["image"], image, PIXDIM)
        write(data / case["label"], label, PIXDIM)
        cases.append({**case, "patient_id": f"P{number}", "fold": number // 6})
    manifest = {
        "name": "organs",
        "description": "generated ellipsoids",
        "source": "generated",
        "licence": "CC0-1.0",
        "modality": {"0": "CT"},
        "labels": {str(n): name for n, name in enumerate(["background", *names])},
        "training": cases,
        "test": [],
    }
    task = {
        "task_name": "organs",
        "channels": ["CT"],
        "labels": ["background", *names],
        "in_channels": 1,
        "out_channels": classes,
        "activation": "softmax",
        "patch_size": [48, 48, 48],
        "deterministic_transforms": STEPS,
    }
    save_manifest(Manifest.model_validate(manifest), data / "manifest.json")
    (data / "task.yaml").write_text(json.dumps(task))
    (data / "network.yaml").write_text(json.dumps(SMALL_UNET))
    command = [
        sys.executable,
        "-m",
        "segpipe",
        "train",
        str(data / "manifest.json"),
        "--task",
        str(data / "task.yaml"),
        "--network",
        str(data / "network.yaml") if is_small else network,
        "--augment",
        "none",
        "--fold",
        "1",
        "--epochs",
        str(epochs),
        "--threads",
        "2",
        "--set",
        "batch_size=2",
        "--set",
        f"val_interval={epochs}",
        "--set",
        "learning_rate=0.005",
        "--set",
        "overlap=0.25",
        "--out",
        str(run),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return run / "best.pt"
