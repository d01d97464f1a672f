"""What more workers give, and what each way to share a batch costs: seconds a case, and seconds before the first.

Generated scans, a small network, one thread a worker, each way as whole commands. A few cases and many are
predicted; the line through both says what a case takes and what the start takes. Label maps have to be the same bytes.

    python bench/scaling.py
    python bench/scaling.py --cases 40 --edge 160

Slurm is measured where `sbatch` is found, so on a cluster run it from a folder that the nodes share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from ensemble import write_bundle

FEW = 4
WORKERS = 2


def main() -> None:
    """Measure each way, and print a line of figures for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--edge", type=int, default=96, help="voxels of a scan along each axis")
    options = parser.parse_args()
    if options.cases <= FEW:
        parser.error(f"--cases has to be above {FEW}")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        write_bundle(folder / "bundle", 1, 3)
        write_scans(folder / "few", FEW, options.edge)
        write_scans(folder / "many", options.cases, options.edge)
        run(ways(folder / "few", folder / "warm", folder)["one process"])  # converts the network, once
        expected: dict[str, bytes] = {}
        rates: dict[str, float] = {}
        for way in ways(folder, folder, folder):
            seconds = {}
            for scans in ("few", "many"):
                out = folder / f"{way} {scans}".replace(" ", "_")
                seconds[scans] = run(ways(folder / scans, out, folder)[way])
                found = labels(out)
                if scans == "many":
                    assert len(found) == options.cases
                    assert found == (expected := expected or found), f"{way}: other label maps"
            a_case = (seconds["many"] - seconds["few"]) / (options.cases - FEW)
            rates[way] = 1 / a_case
            figures = {"way": way, "s_a_case": round(a_case, 3), "start_s": round(seconds["few"] - FEW * a_case, 1)}
            figures |= {"cases_a_minute": round(60 / a_case, 1), "wall_s": round(seconds["many"], 1)}
            print(json.dumps(figures), flush=True)
        print(f"{WORKERS} workers: {rates[f'--workers {WORKERS}'] / rates['one process']:.2f} times the cases of one")
        print(f"load of the machine at the end {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def write_scans(folder: Path, number: int, edge: int) -> None:
    """Write scans of noise, each another."""
    folder.mkdir()
    for index in range(number):
        voxels = np.random.default_rng(index).normal(100, 30, (edge, edge, edge)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"scan_{index:03d}.nii.gz")


def ways(scans: Path, out: Path, folder: Path) -> dict[str, list[list[str]]]:
    """Return each way's commands, which run at the same time."""
    predict = ["predict", str(folder / "bundle"), str(scans), str(out), "--threads", "1"]
    jobs = ["--array", str(WORKERS), "--jobs", str(folder / f"jobs_{out.name}"), "--"]
    found = {
        "one process": [predict],
        f"--workers {WORKERS}": [[*predict, "--workers", str(WORKERS)]],
        f"--shard of {WORKERS}": [[*predict, "--shard", f"{index}/{WORKERS}"] for index in range(WORKERS)],
        "submit --engine local": [["submit", "--engine", "local", *jobs, *predict]],
    }
    if shutil.which("sbatch"):
        found["submit (Slurm)"] = [["submit", *jobs, *predict]]
    return found


def run(commands: list[list[str]]) -> float:
    """Run commands at the same time; return the seconds until the last has ended."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-m", "segpipe", *words], stdout=subprocess.DEVNULL, env=environment)
        for words in commands
    ]
    codes = [process.wait() for process in started]
    assert set(codes) <= {0, 6}, codes  # noise may be held
    return time.perf_counter() - began


def labels(out: Path) -> dict[str, bytes]:
    """Return case id to the file of its label map."""
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/segmentation.nii.gz"))}


if __name__ == "__main__":
    main()
