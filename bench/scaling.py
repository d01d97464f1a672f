"""What more processes give: cases and training steps a second with one and two, and what each way to share costs.

Generated scans, a small network, one thread a process, each way as whole commands. A few cases and many are predicted;
the line through both says what a case takes and what the start takes, and how much more than with `--workers` each
engine takes of both. Label maps have to be the same bytes. A training is measured by its own seconds of each epoch.

    python bench/scaling.py
    python bench/scaling.py --cases 40 --edge 160
    .venv-ray/bin/python bench/scaling.py         # with Ray, after `make test-ray`: a local one is started

Slurm is measured where `sbatch` finds one, so on a cluster run it from a folder that the nodes share.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from ensemble import write_bundle

from segpipe.data import Manifest, make_phantom, save_manifest

FEW = 4
WORKERS = 2
LABELS = ("background", "liver", "kidney", "lesion")
TASK = f"""
task_name: phantoms
channels: [MRI]
labels: [{", ".join(LABELS)}]
ignore_label: null
regions: {{}}
annotated_sets: []
in_channels: 1
out_channels: {len(LABELS)}
activation: softmax
patch_size: [48, 48, 48]
deterministic_transforms:
  - {{_target_: LoadImaged, keys: [image, label], reader: NibabelReader, image_only: true, allow_missing_keys: true}}
  - {{_target_: EnsureChannelFirstd, keys: [image, label], allow_missing_keys: true}}
  - {{_target_: NormalizeIntensityd, keys: [image], channel_wise: true, allow_missing_keys: true}}
  - {{_target_: EnsureTyped, keys: [image, label], allow_missing_keys: true}}
"""
HEAD = f"""
import sys, ray
ray.init(address="local", num_cpus={WORKERS}, include_dashboard=False, object_store_memory=100 * 2**20,
         log_to_driver=False, logging_level="ERROR")
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


def main() -> None:
    """Measure each way, and print a line of figures for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--edge", type=int, default=96, help="voxels of a scan along each axis")
    parser.add_argument("--steps", type=int, default=8, help="of each of four epochs, of a training")
    options = parser.parse_args()
    if options.cases <= FEW:
        parser.error(f"--cases has to be above {FEW}")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, local_ray() as ray:
        folder = Path(name)
        write_bundle(folder / "bundle", 1, 3)
        write_scans(folder / "few", FEW, options.edge)
        write_scans(folder / "many", options.cases, options.edge)
        run(ways(folder / "few", folder / "warm", folder, ray)["one process"])  # converts the network, once
        expected: dict[str, bytes] = {}
        each: dict[str, float] = {}
        starts: dict[str, float] = {}
        for way in ways(folder, folder, folder, ray):
            seconds = {}
            for scans in ("few", "many"):
                out = folder / f"{way} {scans}".replace(" ", "_")
                seconds[scans] = run(ways(folder / scans, out, folder, ray)[way])
                found = labels(out)
                if scans == "many":
                    assert len(found) == options.cases
                    assert found == (expected := expected or found), f"{way}: other label maps"
            a_case = (seconds["many"] - seconds["few"]) / (options.cases - FEW)
            each[way], starts[way] = a_case, seconds["few"] - FEW * a_case
            figures: dict[str, object] = {"way": way, "s_a_case": round(a_case, 3), "start_s": round(starts[way], 1)}
            rate = round(1 / a_case, 3) if a_case > 0 else None  # too few cases for what else the machine does
            figures |= {"cases_a_second": rate, "wall_s": round(seconds["many"], 1)}
            print(json.dumps(figures), flush=True)
        plain = f"--workers {WORKERS}"
        for way in [way for way in each if way not in ("one process", plain)]:
            more = each[way] - each[plain]
            print(f"{way}: {more:+.3f} s a case and {starts[way] - starts[plain]:+.1f} s a start beside {plain}")
        if min(each[plain], each["one process"]) > 0:
            print(f"{WORKERS} workers: {each['one process'] / each[plain]:.2f} times the cases of one")
        else:
            print(f"{WORKERS} workers: no figure, more cases are needed (--cases)")
        steps = {number: steps_a_second(folder, number, options.steps) for number in (1, WORKERS)}
        for number, rate in steps.items():
            print(json.dumps({"way": f"train --processes {number}", "steps_a_second": round(rate, 3)}), flush=True)
        print(f"{WORKERS} processes: {steps[WORKERS] / steps[1]:.2f} times the steps of one, of the same batch")
        print(f"load of the machine at the end {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def write_scans(folder: Path, number: int, edge: int) -> None:
    """Write scans of noise, each another."""
    folder.mkdir()
    for index in range(number):
        voxels = np.random.default_rng(index).normal(100, 30, (edge, edge, edge)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"scan_{index:03d}.nii.gz")


def ways(scans: Path, out: Path, folder: Path, ray: str | None) -> dict[str, list[list[str]]]:
    """Return each way's commands, which run at the same time; Ray's where its cluster has an address."""
    predict = ["predict", str(folder / "bundle"), str(scans), str(out), "--threads", "1"]
    jobs = ["--array", str(WORKERS), "--jobs", str(folder / f"jobs_{out.name}"), "--"]
    found = {
        "one process": [predict],
        f"--workers {WORKERS}": [[*predict, "--workers", str(WORKERS)]],
        f"--shard of {WORKERS}": [[*predict, "--shard", f"{index}/{WORKERS}"] for index in range(WORKERS)],
        "submit --engine local": [["submit", "--engine", "local", *jobs, *predict]],
    }
    if ray is not None:
        found["submit --engine ray"] = [["submit", "--engine", "ray", "--address", ray, *jobs, *predict]]
    if shutil.which("sinfo") and not subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        found["submit (Slurm)"] = [["submit", *jobs, *predict]]
    return found


@contextmanager
def local_ray() -> Iterator[str | None]:
    """Start a Ray of this machine for the time of the block; None where Ray is not installed."""
    if find_spec("ray") is None:
        yield None
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    os.environ.update({"RAY_worker_niceness": "0"})  # as the other ways have it; its own is 15
    head = subprocess.Popen([sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield next(line.split()[1] for line in head.stdout or () if line.startswith("address"))
    finally:
        head.communicate()


def steps_a_second(folder: Path, processes: int, steps: int) -> float:
    """Train four epochs with so many processes, that share the same batch; return the median of all but the first."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    settings = {"patch_size": "[48,48,48]", "batch_size": 4, "steps_per_epoch": steps, "val_interval": 4}
    settings |= {"network_def#channels": "[8,16,32]", "network_def#strides": "[2,2]", "patch_divisor": 4}
    out = folder / f"train_{processes}"
    words = ["train", str(folder / "data/manifest.json"), "--task", str(folder / "data/task.yaml"), "--out", str(out)]
    words += ["--epochs", "4", "--threads", "1", "--workers", "0", "--processes", str(processes)]
    run([[*words, *(word for name, value in settings.items() for word in ("--set", f"{name}={value}"))]])
    with (out / "history.csv").open() as stream:
        seconds = [float(row["train_seconds"]) for row in csv.DictReader(stream)]
    return steps / statistics.median(seconds[1:])


def write_data(folder: Path) -> None:
    """Write eight generated cases in two folds, and their task."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    cases = []
    for number in range(8):
        files = {kind: f"{kind}s/case_{number}.nii.gz" for kind in ("image", "label")}
        phantom = make_phantom(number, shape=(64, 64, 64), spacing_mm=(1.5, 1.5, 1.5))
        phantom.write(folder / files["image"], folder / files["label"])
        cases.append({"id": f"case_{number}", **files, "fold": number // 7})
    labels = {str(value): name for value, name in enumerate(LABELS)}
    document = {"name": "phantoms", "modality": {"0": "MRI"}, "labels": labels, "training": cases}
    save_manifest(Manifest.model_validate(document), folder / "manifest.json")
    (folder / "task.yaml").write_text(TASK)


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
