"""A data set of CTs that memory does not hold, by the commands as they are typed: import, check, split, plan, train.

    python bench/large_data.py [--cases 40] [--shape 512 512 200-300] [--steps 200] [--limit 6] [--folder FOLDER]

Prints of each command its seconds (and those of CPU), the most memory that its processes had together (the sum of their
proportional set sizes, looked at ten times a second), and how many cases it prepared.
Ends with exit code 1 where one of these fails:

- no command's processes have more than the limit (GiB) together, a training of so many steps included; none of them
  may have more data than that by RLIMIT_DATA;
- the store takes at most a third of the images as float32;
- a training that is killed (SIGKILL, all its processes) while it prepares leaves whole cases, and goes on from them;
- another fold prepares nothing again;
- a scan that was changed is refused until the manifest is made anew; then it is prepared again, and no other.

Each training ends with a validation of its fold, which is one case. The scans are made: air without noise, noise with
a deviation of 20 HU in the body.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from segpipe.common.nifti import write_nifti
from segpipe.common.processes import child_environment
from segpipe.store import CaseFile, store_facts

SPACING_MM = (0.8, 0.8, 2.0)
NOISE_HU, AIR_HU = 20, -1000
KILLED_AT = 2  # cases that are prepared when the training is killed
KILLED = -int(signal.SIGKILL)
OTHER_BYTES = 3  # exit code where files are not those of the manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--shape", nargs=3, default=["512", "512", "200-300"], help="voxels; the last one or a range")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory", default="1G", help="of a training step")
    parser.add_argument("--limit", type=float, default=6.0, help="GiB of all processes of a command")
    parser.add_argument("--folder", type=Path, help="to keep what is made; none: a temporary one")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        failed = Bench(options.folder or Path(name), options).run()
    print(f"all of it: {(time.perf_counter() - began) / 60:.1f} min")
    sys.exit(f"{failed} of what this bench asks for failed" if failed else 0)


class Bench:
    """The commands, one after another, in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.manifest, self.store = folder / "manifest.json", folder / "store"
        # one case is validated, which takes as long as many steps
        self.split = ["split", self.manifest, "--test", 0, "--folds", options.cases, "--redraw"]
        self.failed = 0

    def run(self) -> int:
        """Return how much of what is asked for failed."""
        folder, options = self.folder, self.options
        began = time.perf_counter()
        write_scans(folder, options.cases, options.shape)
        float32 = sum(float32_bytes(path) for path in (folder / "scans").iterdir())
        shape = " x ".join(options.shape)
        print(f"{options.cases} CTs of {shape}, {float32 / 1e9:.1f} GB as float32, {options.steps} steps", flush=True)
        print(f"scans written: {time.perf_counter() - began:.0f} s", flush=True)
        images = ["--images", folder / "scans", "--labels", folder / "masks", "--modality", "CT"]
        self.command("import", ["import", *images, "--label-name", "organ", "-o", self.manifest, "--overwrite"])
        self.command("check", ["check", self.manifest])
        self.command("split", self.split)
        plan = ["plan", self.manifest, "--memory", options.memory, "-o", folder / "task.yaml", "--overwrite"]
        self.command("plan", plan)

        killed = min(KILLED_AT, options.cases - 1)
        self.command(
            f"train, killed when {killed} cases are prepared",
            self.train("run_0", 0, options.steps),
            ends=KILLED,
            kill_when=lambda: len(self.prepared()) >= killed,
        )
        left = self.prepared()
        for path in left:
            CaseFile(path)
        whole = 0 < len(left) < options.cases
        self.require(whole, f"{len(left)} of {options.cases} cases were prepared when it was killed, and are whole")
        made = self.command("the same, resumed", ["train", "--resume", folder / "run_0"])
        kept = all(self.prepared().get(path) == written for path, written in left.items())
        self.require(kept and made == options.cases - len(left), f"it prepared the other {made}, and those alone")
        stored = store_facts(self.store).bytes
        share = stored / float32
        self.require(share <= 1 / 3, f"the store takes {stored / 1e9:.2f} GB, {share:.3f} of the images as float32")

        made = self.command("train another fold, one step", self.train("run_1", 1, 1))
        self.require(made == 0, f"another fold prepares {made} cases")
        self.change_a_scan(images)
        return self.failed

    def change_a_scan(self, images: list[object]) -> None:
        """Change a scan, and do what the refusal of the training says."""
        write_scan(self.folder, 0, self.options.shape, seed=1)
        self.command("train when a scan was changed, refused", self.train("run_2", 1, 1), ends=OTHER_BYTES)
        self.command("import again", ["import", *images, "--label-name", "organ", "-o", self.manifest, "--overwrite"])
        self.command("split again", self.split)
        made = self.command("train another fold, one step", self.train("run_2", 1, 1))
        self.require(made == 1, f"one scan was changed, and {made} prepared again")

    def train(self, name: str, fold: int, steps: int) -> list[object]:
        """Return the words of a training, validated once, after its last step."""
        task = self.folder / "task.yaml"
        words = ["train", self.manifest, "--task", task, "--runtime", task.with_suffix(".runtime.yaml")]
        network = task.with_suffix(".network.yaml")
        words += ["--network", network] if network.is_file() else []
        words += ["--store", self.store, "--threads", 1, "--fold", fold, "--epochs", 1, "--out", self.folder / name]
        settings = (f"steps_per_epoch={steps}", "val_interval=2", "keep_weights=last")
        return [*words, *(word for setting in settings for word in ("--set", setting))]

    def command(
        self, name: str, words: list[object], ends: int = 0, kill_when: Callable[[], bool] = lambda: False
    ) -> int:
        """Run a command, print what it took, and require that it stays within the limit; return the cases it made."""
        before, cpu = self.prepared(), cpu_seconds()
        seconds, peak = run(words, ends, kill_when, int(self.options.limit * 2**30))
        made = sum(written != before.get(path) for path, written in self.prepared().items())
        prepared = f", {made} cases prepared" if words[0] == "train" else ""
        cpu = cpu_seconds() - cpu
        print(f"{name}: {seconds:.0f} s ({cpu:.0f} of CPU), {peak / 2**30:.2f} GiB at most{prepared}", flush=True)
        if peak > self.options.limit * 2**30:
            self.require(False, f"within {self.options.limit} GiB")
        return made

    def prepared(self) -> dict[Path, int]:
        """Return the prepared cases, and when each was written."""
        return {path: path.stat().st_mtime_ns for path in self.store.glob("cases/*.case")}

    def require(self, held: bool, words: str) -> None:
        print(f"  {'ok' if held else 'FAILED'}: {words}", flush=True)
        self.failed += not held


def write_scans(folder: Path, cases: int, shape: list[str]) -> None:
    """Write CTs of 16 bits, an ellipse of water with an organ in it, unless they are there already."""
    for name in ("scans", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(cases) if not (folder / "masks" / f"ct_{number:02}.nii.gz").is_file()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write_scan, *zip(*((folder, number, shape) for number in missing), strict=True)))


def write_scan(folder: Path, number: int, shape: list[str], seed: int = 0) -> None:
    rng = np.random.default_rng([seed, number])
    wide, deep = int(shape[0]), int(shape[1])
    low, _, high = shape[2].partition("-")
    long = int(np.random.default_rng(number).integers(int(low), int(high or low) + 1))
    x, y = np.meshgrid(np.linspace(-1, 1, wide), np.linspace(-1, 1, deep), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    image = np.full((wide, deep, long), AIR_HU, np.int16, order="F")
    label = np.zeros((wide, deep, long), np.uint8, order="F")
    middle = rng.uniform(0.35, 0.65) * long
    for index in range(long):
        reach = 1 - ((index - middle) / (0.2 * long)) ** 2
        organ = (x - 0.3) ** 2 + y**2 < 0.06 * reach
        noise = rng.standard_normal(body.sum(), np.float32) * NOISE_HU
        image[..., index][body] = (40 + 60 * organ[body] + noise).astype(np.int16)
        label[..., index] = organ
    for values, path in ((image, folder / "scans"), (label, folder / "masks")):  # masks last: they say it is done
        write_nifti(nib.Nifti1Image(values, np.diag([*SPACING_MM, 1])), path / f"ct_{number:02}.nii.gz")


def run(words: list[object], ends: int, kill_when: Callable[[], bool], limit: int) -> tuple[float, int]:
    """Run a command; return its seconds, and the most bytes that its processes had at one time."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "segpipe", *map(str, words)]
    process = subprocess.Popen(
        command,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate)
        peak = 0
        while process.poll() is None:
            peak = max(peak, together(process.pid))
            if kill_when():
                kill_all(process.pid)
            time.sleep(0.1)
        if process.returncode != ends:
            sys.exit(f"exit code {process.returncode}: {' '.join(command[2:])}\n{said.result()[0].decode()}")
    return time.perf_counter() - began, peak


def cpu_seconds() -> float:
    """Return the seconds of CPU of all commands that ended so far, and what they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kill_all(pid: int) -> None:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            process.kill()


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
