"""What 16 patients can give: CT and PET of soft-tissue sarcoma, every patient measured by a model that left it out.

    python bench/pet_ct_folds.py [--data $SEGPIPE_DATA/ibsi_sts] [--budget 15m] [--folder FOLDER]

Runs the commands of docs/howto/pet_ct.md from the DICOM tree on, with all patients in folds and none in a test set, and
prints of each command its seconds; then Dice of each patient, and the mean with its 95 % interval over patients. The
network is the one that a plan makes for 1 GB a step; the budget is of training, validation and the prediction of all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from segpipe.common.processes import child_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEGPIPE_DATA", "shared/data")) / "ibsi_sts")
    parser.add_argument("--budget", default="15m")
    parser.add_argument("--memory", default="1G", help="of a training step")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="folds at the same time, of a thread each")
    parser.add_argument("--folder", type=Path, help="to keep what is made; none: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sarcoma").symlink_to(options.data.resolve(strict=True))
        began = time.perf_counter()
        run(
            folder,
            "import sarcoma --channel CT --channel PET --pet-unit SUVbw --label GTV*=1:tumour -o {}/manifest.json",
        )
        run(folder, "check {}/manifest.json")
        run(folder, f"split {{}}/manifest.json --test 0 --folds {options.folds}")
        run(folder, f"plan {{}}/manifest.json --memory {options.memory} -o {{}}/task.yaml")
        run(
            folder,
            "train {}/manifest.json --task {}/task.yaml --network {}/task.network.yaml --augment in_plane "
            f"--folds all --jobs {options.jobs} --threads 1 --budget {options.budget} --out {{}}/folds",
        )
        show(folder / "pet_ct")
        print(f"all of it: {(time.perf_counter() - began) / 60:.1f} min")


def run(folder: Path, text: str) -> None:
    """Run a command in the folder; ``{}`` is where the page keeps the data set."""
    words = text.replace("{}", "pet_ct").split()
    began = time.perf_counter()
    environment = {**child_environment(), "XDG_CONFIG_HOME": str(folder / "config")}  # the key of the case ids
    done = subprocess.run(
        [sys.executable, "-m", "segpipe", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: segpipe {' '.join(words)}\n{done.stderr[-4000:]}")
    told = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if "budget" in line or "steps" in line]
    print(f"{words[0]}: {time.perf_counter() - began:.0f} s", *told[:4], sep="\n  ", flush=True)


def show(folder: Path) -> None:
    """Print what came of it."""
    run_record = json.loads((folder / "folds/fold_0/run.json").read_text())
    metrics = json.loads((folder / "folds/evaluation/metrics.json").read_text())
    dice = {case["id"]: case["mean_dice"] for case in metrics["cases"]}
    for case, value in sorted(dice.items(), key=lambda pair: pair[1]):
        print(f"  {case}: {value:.3f}")
    overall = metrics["summary"]["overall"]["metrics"]["dice"]
    print(
        f"out-of-fold Dice of {len(dice)} patients: {overall['mean']:.3f} "
        f"[{overall['low']:.3f}, {overall['high']:.3f}], median {overall['median']:.3f}, "
        f"{run_record['epochs']} epochs a fold"
    )


if __name__ == "__main__":
    main()
