"""An ensemble in one bundle: stock MONAI's `EnsembleEvaluator` against `segpipe predict`, as whole commands.

Random weights, so that every cell is a boundary: the worst case of our engine. CPU seconds and peak memory of both,
with one network and with all members, and labels that differ.

    python bench/ensemble.py
    python bench/ensemble.py --shape 224 224 160 --members 5 --classes 14
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet

from segpipe.bundle.exporting.bundle_configs import inference_config
from segpipe.bundle.tensors import weights_files
from segpipe.common.files import write_json

CHANNELS, STRIDES = (8, 16, 32), (2, 2)
ROI = (64, 64, 64)
SPACING = (1.2, 1.2, 1.6)  # is resampled to 1.5 mm


def main() -> None:
    """Measure both sides, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 80))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--classes", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scan(folder / "images" / "scan.nii.gz", options.shape)
        peaks: dict[tuple[str, int], float] = {}
        for members in (1, options.members):
            bundle = write_bundle(folder / f"bundle{members}", members, options.classes)
            found = {
                "stock": measured(stock(bundle, folder / "images", folder / f"stock{members}")),
                "ours": measured(ours(bundle, folder / "images", folder / f"ours{members}")),
            }
            labels = [
                np.asarray(nib.load(path).dataobj)
                for path in (
                    folder / f"stock{members}" / "scan_seg.nii.gz",
                    folder / f"ours{members}" / "scan" / "segmentation.nii.gz",
                )
            ]
            differ = int((labels[0] != labels[1]).sum())
            for side, (cpu, gib) in found.items():
                peaks[side, members] = gib
                print(json.dumps({"side": side, "members": members, "cpu_s": round(cpu, 1), "peak_gib": round(gib, 2)}))
            ratio = found["stock"][0] / found["ours"][0]
            print(
                f"{members} members: {differ} of {labels[0].size} voxels differ, CPU seconds {ratio:.2f} to 1",
                flush=True,
            )
        theirs, own = (peaks[side, options.members] - peaks[side, 1] for side in ("stock", "ours"))
        print(f"{options.members - 1} more members take {theirs:.2f} GiB more in stock MONAI, {own:.2f} GiB in ours")


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Write noise on a grid that is resampled."""
    path.parent.mkdir()
    voxels = np.random.default_rng(0).normal(100, 30, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING, 1.0])), path)


def write_bundle(root: Path, members: int, classes: int) -> Path:
    """Write a bundle of networks with random weights."""
    config = {
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": classes,
            "channels": list(CHANNELS),
            "strides": list(STRIDES),
        },
        "deterministic_transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        "patch_size": list(ROI),
        "out_channels": classes,
        "activation": "softmax",
        "overlap": 0.25,
    }
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    write_json(root / "configs" / "inference.json", inference_config(config, {}, 1, members))
    named = {str(value): f"label {value}" for value in range(classes)}
    formats = {"inputs": {"image": {"channel_def": {"0": "MRI"}}}, "outputs": {"pred": {"channel_def": named}}}
    versions = {
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
    }
    document = {"name": root.name, "version": "0.1.0", **versions, "network_data_format": formats}
    write_json(root / "configs" / "metadata.json", document)
    for seed, file in enumerate(weights_files(members)):
        torch.manual_seed(seed)
        torch.save(UNet(3, 1, classes, CHANNELS, STRIDES).state_dict(), root / file)
    return root


def stock(bundle: Path, images: Path, out: Path) -> list[str]:
    """Return the command of MONAI."""
    options = {
        "--config_file": bundle / "configs" / "inference.json",
        "--bundle_root": bundle,
        "--dataset_dir": images,
        "--output_dir": out,
    }
    return ["-m", "monai.bundle", "run", *(str(word) for pair in options.items() for word in pair)]


def ours(bundle: Path, images: Path, out: Path) -> list[str]:
    """Return the command of this package."""
    options = ["--device", "cpu", "--runtime", "torch", "--no-overlay"]
    return ["-m", "segpipe", "predict", str(bundle), str(images), str(out), *options]


def measured(arguments: list[str]) -> tuple[float, float]:
    """Run a command; return its CPU seconds and the most memory of one of its processes in GiB."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(errors.decode()[-2000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
