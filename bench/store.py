"""Prepared cases in a store against memory, on generated CT: disk, seconds of CPU a step, and memory, each as a ratio.

    python bench/store.py [--cases 3] [--shape 128 128 64] [--patch 64] [--steps 10] [--large]

``--large`` takes 8 cases of 512 x 512 x 250 voxels, which about 12 GB of memory hold; `bench/large_data.py` takes more
than memory holds, from the store alone. Both ways train the same small network with the crops of `light`,
each in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segpipe.common.processes import child_environment
from segpipe.data import make_phantom

LARGE = {"cases": 8, "shape": [512, 512, 250], "patch": 96}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 64])
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--way", choices=["memory", "store"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        vars(options).update(LARGE)
    if options.way is not None:
        print(json.dumps(train(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_scans(Path(name), options.cases, tuple(options.shape))
        found = {}
        for way in ("memory", "store"):
            words = [*sys.argv[1:], "--way", way, "--folder", name]
            done = subprocess.run(
                [sys.executable, __file__, *words], env=child_environment(), check=True, capture_output=True, text=True
            )
            found[way] = json.loads(done.stdout.splitlines()[-1])
    memory, store = found["memory"], found["store"]
    shape = " x ".join(map(str, options.shape))
    print(f"{options.cases} cases of {shape}, patches of {options.patch}^3, {options.steps} steps of 2")
    print(f"disk: {store['bytes'] / 1e6:.1f} MB, {store['bytes'] / store['float32_bytes']:.3f} of float32 in memory")
    print(f"preparing a case: {memory['prepare_s']:.2f} s of CPU for memory, {store['prepare_s']:.2f} s for the store")
    for what in ("load_s", "step_s"):
        ratio = store[what] / memory[what]
        noun = "loading a batch" if what == "load_s" else "a step with loading"
        print(f"{noun}: {memory[what]:.3f} s of CPU from memory, {store[what]:.3f} s from the store: {ratio:.2f}")
    peaks = (memory["peak"] - memory["base"], store["peak"] - store["base"])
    print(f"memory above that of the libraries: {peaks[0] / 1e9:.2f} GB and {peaks[1] / 1e9:.2f} GB")


def write_scans(folder: Path, cases: int, shape: tuple[int, ...]) -> None:
    """Write CT of 16 bits with the noise of a scan, and labels."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        made = make_phantom(number, shape=(64, 64, 32), spacing_mm=(5.0, 5.0, 6.0))
        zoom = [np.arange(size) * given // size for size, given in zip(shape, made.image.shape, strict=True)]
        image = made.image[np.ix_(*zoom)]
        image = (image - image.min()) / np.ptp(image) * 1200 - 1000
        image += rng.normal(0, 12, shape).astype(np.float32)
        affine = np.diag([0.8, 0.8, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / f"{number}.nii.gz")
        nib.save(nib.Nifti1Image(made.label[np.ix_(*zoom)].astype(np.uint8), affine), folder / f"{number}_l.nii.gz")


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps one way; return what it took."""
    import torch
    from monai.data import DataLoader
    from monai.networks.nets import UNet
    from monai.transforms import (
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        Orientationd,
        RandCropByPosNegLabeld,
        ScaleIntensityRanged,
        Spacingd,
        SpatialPadd,
    )

    from segpipe.common.console import quiet_libraries
    from segpipe.components import CaseTransforms, ValidateCased, prepared_cases
    from segpipe.store import store_facts

    quiet_libraries()
    torch.set_num_threads(1)
    keys, patch = ["image", "label"], [options.patch] * 3
    transform = CaseTransforms(
        [
            LoadImaged(keys, reader="NibabelReader", image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys, pixdim=[0.8, 0.8, 2.0], mode=["bilinear", "nearest"]),
            ScaleIntensityRanged("image", a_min=-900, a_max=250, b_min=-3.0, b_max=2.5, clip=True),
            EnsureTyped(keys),
            ValidateCased(1, 4),
            SpatialPadd(keys, spatial_size=patch),
            RandCropByPosNegLabeld(keys, label_key="label", spatial_size=patch, pos=2, neg=1),
        ]
    ).set_random_state(seed=0)
    names = [str(options.folder / str(number)) for number in range(options.cases)]
    cases = [
        {"case_id": str(number), "image": f"{name}.nii.gz", "label": f"{name}_l.nii.gz"}
        for number, name in enumerate(names)
    ]
    store = None if options.way == "memory" else str(options.folder / "store")
    base, began = _resident(), time.process_time()
    dataset = prepared_cases(cases, transform, store=store)
    prepared = time.process_time()
    network = UNet(3, 1, 4, channels=(8, 16, 32), strides=(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    sampler = torch.utils.data.RandomSampler(
        dataset, num_samples=2 * options.steps, generator=torch.Generator().manual_seed(0)
    )
    loading = 0.0
    batches = iter(DataLoader(dataset, batch_size=2, sampler=sampler))
    started = time.process_time()
    for _ in range(options.steps):
        asked = time.process_time()
        batch = next(batches)
        loading += time.process_time() - asked
        optimizer.zero_grad()
        scores = network(batch["image"].as_tensor())
        torch.nn.functional.cross_entropy(scores, batch["label"].as_tensor()[:, 0].long()).backward()
        optimizer.step()
    step_s = (time.process_time() - started) / options.steps
    return {
        "prepare_s": (prepared - began) / options.cases,
        "load_s": loading / options.steps,
        "step_s": step_s,
        "base": base,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes": None if store is None else store_facts(store).bytes,
        "float32_bytes": options.cases * int(np.prod(options.shape)) * 8,
    }


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
