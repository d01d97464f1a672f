"""What each part of the hippocampus recipe gives at equal CPU seconds: Dice of a fold that none of the models saw.

    python bench/ablation.py [--seconds 240] [--seeds 3] [--members 5] [--jobs 2] [--folder FOLDER]

On fold 0 of the hippocampus data (SEGPIPE_DATA), of the cases that are not test cases, each variant with each seed, by
`segpipe train`. A few steps of each variant are timed first, and all get as many steps as so many CPU seconds hold.
Weights that are not averaged, windows that are mirrored and ensembles come from the runs of the recipe itself. Prints
the mean over seeds with its standard deviation, and the difference to the recipe, paired by seed. The same command
again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from segpipe.common.provenance import cpu_kind
from segpipe.data import load_manifest, save_manifest

MANIFEST = Path(__file__).parents[1] / "data_manifests" / "msd_task04_hippocampus.json"
MIRRORED = ["--augment", "nnunet_mirror", "--set", "batch_transforms#8#axes=[0]"]
RECIPE = ["--task", "hippocampus", "--network", "dynunet", "--loss", "dice_ce", "--threads", "1"]
SETTINGS = ("averaging=0.995", "warmup_epochs=1", "keep_weights=last")
FEW, MORE = 10, 30  # steps that are timed


@dataclass
class Variant:
    """Words of `segpipe train`, and folds of the training cases that are left out."""

    words: list[str]
    without: tuple[int, ...] = ()


VARIANTS = {
    "recipe": Variant(MIRRORED),
    "float32": Variant([*MIRRORED, "--set", "precision=float32"]),
    "light augmentation": Variant(["--augment", "light"]),
    "not mirrored": Variant(["--augment", "nnunet"]),
    "unet_fine for dynunet": Variant([*MIRRORED, "--network", "unet_fine"]),
    "93 cases for 124": Variant(MIRRORED, (1,)),
    "62 cases for 124": Variant(MIRRORED, (1, 2)),
}


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="of CPU, of a training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=5, help="runs of the recipe, for ensembles")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, of a thread each")
    parser.add_argument("--folder", type=Path, help="to keep what is made; none: a temporary one")
    options = parser.parse_args()
    data = Path(os.environ.get("SEGPIPE_DATA", "")) / "Task04_Hippocampus"
    if not data.is_dir():
        print("set SEGPIPE_DATA to a folder with Task04_Hippocampus")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        steps = {variant: steps_within(folder, variant, options.seconds, data) for variant in VARIANTS}
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [(variant, seed) for seed in range(options.seeds) for variant in VARIANTS]
            jobs += [("recipe", seed) for seed in range(options.seeds, options.members)]
            list(pool.map(lambda job: trained(folder, *job, steps[job[0]], data), jobs))
        print(f"{options.seconds:.0f} CPU seconds a training, {options.seeds} seeds, {cpu_kind()}")
        recipe = scores(folder, "recipe", options.seeds)
        for variant in VARIANTS:
            show(f"{variant}, {steps[variant]} steps", scores(folder, variant, options.seeds), recipe)
        show("weights not averaged", scores(folder, "recipe", options.seeds, averaged=False), recipe)
        show("windows mirrored at x", scores(folder, "recipe", options.seeds, mirrored=True), recipe)
        runs = [folder / f"recipe_{seed}" for seed in range(options.members)]
        alone = [dice([run]) for run in runs]
        print(f"{f'the recipe, {len(runs)} seeds':32} {statistics.mean(alone):.4f} (SD {statistics.stdev(alone):.4f})")
        for members in range(3, options.members + 1, 2):
            of_members = [dice(list(some)) for some in combinations(runs, members)]
            print(f"{f'ensemble of {members} seeds':32} {statistics.mean(of_members):.4f}", flush=True)


def steps_within(folder: Path, variant: str, seconds: float, data: Path) -> int:
    """Return how many steps of a variant so many CPU seconds hold, by two short trainings of it."""
    kept = folder / f"{variant}.json"
    if not kept.is_file():
        used = []
        for number in (FEW, MORE):
            out = folder / f"timed_{number}_{variant}".replace(" ", "_")
            used.append(cpu_seconds(train(folder, variant, out, number, data, seed=0)))
        short, long = used
        kept.write_text(json.dumps((long - short) / (MORE - FEW)))
    return max(10, int(seconds / json.loads(kept.read_text())) // 10 * 10)


def train(folder: Path, variant: str, out: Path, steps: int, data: Path, seed: int) -> list[str]:
    """Return the command: ten epochs, validated after the last."""
    chosen = VARIANTS[variant]
    manifest = folder / f"without_{chosen.without}.json"
    whole = load_manifest(MANIFEST)
    cases = [case for case in whole.training if case.fold not in chosen.without]
    save_manifest(whole.model_copy(update={"training": cases}), manifest)
    words = ["train", str(manifest), "--data", str(data), *RECIPE, *chosen.words, "--fold", "0", "--seed", str(seed)]
    for setting in (*SETTINGS, f"steps_per_epoch={steps // 10}", "val_interval=10"):
        words += ["--set", setting]
    return [sys.executable, "-m", "segpipe", *words, "--epochs", "10", "--out", str(out)]


def trained(folder: Path, variant: str, seed: int, steps: int, data: Path) -> None:
    """Train a variant with a seed, or go on with it."""
    out = folder / f"{variant}_{seed}".replace(" ", "_")
    if (out / "final.pt").is_file():
        return
    resumed = [sys.executable, "-m", "segpipe", "train", "--resume", str(out)]
    used = cpu_seconds(resumed if out.is_dir() else train(folder, variant, out, steps, data, seed))
    print(f"{variant}, seed {seed}: {steps} steps, {used:.0f} CPU s with loading and validation", flush=True)


def cpu_seconds(command: list[str]) -> float:
    """Run a command; return the CPU seconds of it and of what it started."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{said[-4000:]}")
    return used.ru_utime + used.ru_stime


def scores(folder: Path, variant: str, seeds: int, **how: bool) -> list[float]:
    """Return Dice of the fold, of each seed."""
    return [dice([folder / f"{variant}_{seed}".replace(" ", "_")], **how) for seed in range(seeds)]


def dice(runs: list[Path], averaged: bool = True, mirrored: bool = False) -> float:
    """Return the mean Dice of the runs' validation cases by the mean of their probabilities."""
    parser = ConfigParser()
    parser.read_config(str(runs[0] / "config.json"))
    parser["threads"] = os.cpu_count()
    evaluator = parser.get_parsed_content("validate#evaluator")
    network, members = evaluator.network, []
    for run in runs:
        state = torch.load(run / ("final.pt" if averaged else "last.pt"), weights_only=True)
        members.append(state if averaged else state["network"])
    evaluator.network = Together(network, members, mirrored)
    evaluator.run()
    return float(evaluator.state.metrics["val_mean_dice"])


class Together(torch.nn.Module):
    """A network with each of the weights in turn: the mean of their probabilities, as logarithms."""

    def __init__(self, network: torch.nn.Module, members: list[dict[str, Any]], mirrored: bool) -> None:
        super().__init__()
        self.network, self.members, self.mirrored = network, members, mirrored

    def forward(self, windows: Tensor) -> Tensor:
        """Return scores (N, C, X, Y, Z) of windows (N, 1, X, Y, Z)."""
        total: Tensor | float = 0.0
        for member in self.members:
            self.network.load_state_dict(member)
            total = total + self.network(windows).float().softmax(1)
            if self.mirrored:
                total = total + self.network(windows.flip(2)).float().softmax(1).flip(2)
        assert isinstance(total, Tensor)
        return total.log()


def show(name: str, found: list[float], recipe: list[float]) -> None:
    """Print a row."""
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    row = f"{name:32} {statistics.mean(found):.4f} (SD {spread:.4f})"
    if found != recipe:
        differences = [one - other for one, other in zip(found, recipe, strict=True)]
        apart = statistics.stdev(differences) if len(differences) > 1 else 0.0
        row += f"  {statistics.mean(differences):+.4f} (SD {apart:.4f})"
    print(row, flush=True)


if __name__ == "__main__":
    main()
