"""`segpipe plan --budget`: what it foresees and what the run then takes, side by side, on generated CT organs.

    python bench/plan_estimate.py [--budget 2m] [--cases 8] [--shape 160 160 80] [--network unet]

Each part of a run that the plan names stands beside the part that happened: training and validation by the run's own
history, starting and loading by what is left of the wall time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import segpipe
from segpipe.common.processes import child_environment
from segpipe.data import Case, Manifest, make_phantom, save_manifest
from segpipe.reporting import read_history
from segpipe.training import duration, runtime_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 160, 80])
    parser.add_argument("--network", default="unet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_data(folder, options.cases, tuple(options.shape))
        began = time.monotonic()
        plan = segpipe.plan(manifest, network=options.network, budget=options.budget, out=folder / "task.yaml")
        planning = time.monotonic() - began
        words = ["train", str(manifest), "--task", str(folder / "task.yaml"), "--network", options.network]
        words += ["--runtime", str(runtime_path(folder / "task.yaml")), "--out", str(folder / "run")]
        began = time.monotonic()
        command = [sys.executable, "-m", "segpipe", *words, "--json"]
        subprocess.run(command, env=child_environment(), check=True, capture_output=True)
        wall = time.monotonic() - began
        again = segpipe.plan(manifest, network=options.network, budget=options.budget)
        report(plan, planning, wall, folder / "run")
        say_noise(plan, again)


def write_data(folder: Path, cases: int, shape: tuple[int, int, int]) -> Path:
    training = []
    for number in range(cases):
        image, label = f"image_{number}.nii.gz", f"label_{number}.nii.gz"
        spacing = (360 / shape[0], 360 / shape[1], 300 / shape[2])
        make_phantom(number, shape=shape, spacing_mm=spacing).write(folder / image, folder / label)
        training.append(Case(id=f"case_{number}", image=image, label=label, fold=number % 4))
    labels = {"0": "background", "1": "liver", "2": "kidney", "3": "lesion"}
    save_manifest(
        Manifest(name="generated", modality={"0": "CT"}, labels=labels, training=training), folder / "manifest.json"
    )
    return folder / "manifest.json"


def report(plan: segpipe.training.Plan, planning: float, wall: float, run: Path) -> None:
    spent = plan.estimate
    if spent is None:
        raise SystemExit("no estimate")
    history = read_history(run)
    training = sum(float(row["train_seconds"]) for row in history)
    validation = sum(float(row["seconds"]) for row in history) - training
    rows = {
        "starting and loading": (spent.startup_s + spent.loading_s, wall - training - validation),
        "training": (spent.training_s, training),
        "validation": (spent.validation_s, validation),
        "in all": (spent.total_s, wall),
    }
    print(f"planned in {duration(planning)}: spacing {plan.rules['spacing_mm'].value}, patch {plan.task['patch_size']}")
    print(f"{spent.steps} steps of {plan.settings['batch_size']} patches, {json.dumps(dict(plan.settings))}")
    for name, (foreseen, real) in rows.items():
        print(f"{name:22} foreseen {foreseen:8.1f} s   real {real:8.1f} s   real/foreseen {real / foreseen:.2f}")


def say_noise(before: segpipe.training.Plan, after: segpipe.training.Plan) -> None:
    """Print how long a step takes after the run, beside before it: what else the machine does shows here."""
    if before.estimate and after.estimate and before.task == after.task:
        print(f"a step: {before.estimate.step_s:.3g} s before the run, {after.estimate.step_s:.3g} s after it")
    elif after.estimate:
        print(f"after the run the same budget gives another plan: patch {after.task['patch_size']}")


if __name__ == "__main__":
    main()
