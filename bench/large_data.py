"""A data set of CTs that memory does not hold, by the commands as they are typed: import, check, split, plan, train.

    python bench/large_data.py [--cases 40] [--shape 512 512 250] [--steps 200] [--memory 2G] [--folder FOLDER]

Prints of each command its seconds, the most memory that its processes had together (the sum of their proportional set
sizes, looked at ten times a second), and how many cases it prepared; then the disk that the store takes, against the
images as float32. Nothing is validated: at this size that takes longer than some steps. The scans are made: air without
noise, noise with a deviation of 20 HU in the body.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from segpipe.common.nifti import write_nifti
from segpipe.common.processes import child_environment
from segpipe.store import store_facts

SPACING_MM = (0.8, 0.8, 2.0)
NOISE_HU, AIR_HU = 20, -1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 250])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory", default="1G", help="of a training step")
    parser.add_argument("--folder", type=Path, help="to keep what is made; none: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        write_scans(folder, options.cases, tuple(options.shape))
        manifest, store = folder / "manifest.json", folder / "store"
        images = ["--images", folder / "scans", "--labels", folder / "masks", "--modality", "CT"]
        plan = ["plan", manifest, "--memory", options.memory, "-o", folder / "task.yaml", "--overwrite"]
        train = ["train", manifest, "--task", folder / "task.yaml", "--runtime", folder / "task.runtime.yaml"]
        train += ["--network", folder / "task.network.yaml", "--store", store, "--threads", 1, "--fold", "none"]
        train += ["--set", f"steps_per_epoch={options.steps}", "--epochs", 1]
        commands = {
            "import": ["import", *images, "--label-name", "organ", "-o", manifest, "--overwrite"],
            "check": ["check", manifest],
            "split": ["split", manifest, "--folds", 2],
            "plan": plan,
            "train": [*train, "--out", folder / "run_0"],
            "train with another seed": [*train, "--out", folder / "run_1", "--seed", 1],
        }
        shape = " x ".join(map(str, options.shape))
        print(f"{options.cases} CTs of {shape}, {options.steps} steps")
        for name, words in commands.items():
            before = {path: path.stat().st_mtime_ns for path in store.rglob("*.case")} if store.exists() else {}
            seconds, peak = run(words)
            made = sum(path.stat().st_mtime_ns != before.get(path) for path in store.rglob("*.case"))
            prepared = f", {made} cases prepared" if "train" in name else ""
            print(f"{name}: {seconds:.0f} s, {peak / 2**30:.2f} GiB at most{prepared}", flush=True)
        float32 = sum(float32_bytes(path) for path in (folder / "scans").iterdir())
        stored = store_facts(store).bytes
        print(f"store: {stored / 1e9:.2f} GB, {stored / float32:.3f} of the images as float32")


def write_scans(folder: Path, cases: int, shape: tuple[int, ...]) -> None:
    """Write CTs of 16 bits, an ellipse of water with an organ in it, unless they are there already."""
    for name in ("scans", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng, (wide, deep, long) = np.random.default_rng(0), shape
    x, y = np.meshgrid(np.linspace(-1, 1, wide), np.linspace(-1, 1, deep), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    for number in range(cases):
        image = np.full(shape, AIR_HU, np.int16, order="F")
        label = np.zeros(shape, np.uint8, order="F")
        middle = rng.uniform(0.35, 0.65) * long
        for index in range(long):
            reach = 1 - ((index - middle) / (0.2 * long)) ** 2
            organ = (x - 0.3) ** 2 + y**2 < 0.06 * reach
            noise = rng.standard_normal(body.sum(), np.float32) * NOISE_HU
            image[..., index][body] = (40 + 60 * organ[body] + noise).astype(np.int16)
            label[..., index] = organ
        for values, path in ((image, folder / "scans"), (label, folder / "masks")):
            file = path / f"ct_{number:02}.nii.gz"
            if not file.exists():
                write_nifti(nib.Nifti1Image(values, np.diag([*SPACING_MM, 1])), file)


def run(words: list[object]) -> tuple[float, int]:
    """Run a command; return its seconds, and the most bytes that its processes had at one time."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "segpipe", *map(str, words)]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate)
        peak = 0
        while process.poll() is None:
            peak = max(peak, together(process.pid))
            time.sleep(0.1)
        if process.returncode:
            sys.exit(said.result()[0].decode())
    return time.perf_counter() - began, peak


def together(pid: int) -> int:
    """Return the bytes that a process and all that it started have, what they share counted once."""
    total = 0
    try:
        for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # it ended just now
        return total
    return total


def float32_bytes(path: Path) -> int:
    return int(np.prod(nib.load(path).shape)) * 4


if __name__ == "__main__":
    main()
