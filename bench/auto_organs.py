"""From a folder of CTs to a bundle within an hour: `segpipe auto` on generated organs, measured on cases it never saw.

    python bench/auto_organs.py [--budget 1h] [--shape 512 512 200] [--folder FOLDER]

Twelve scans with three labels are given to `segpipe auto`, six others are predicted by its bundle and evaluated. Prints
the time that each step foresaw and took, and the Dice of each label on the six. The machine has to be idle: the plan
measures a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _organs import scan, write

SPACING_MM = (0.8, 0.8, 2.0)
LABELS = 3
TRAINING, UNSEEN = range(12), range(100, 106)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="1h")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 200])
    parser.add_argument("--folder", type=Path, help="to keep what is made; none: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        for part, patients in (("training", TRAINING), ("unseen", UNSEEN)):
            _write_scans(folder / part, patients, tuple(options.shape))
        began = time.time()
        _segpipe("auto", folder / "training", "--budget", options.budget, "-o", folder / "auto")
        print(f"{len(TRAINING)} CTs of {' x '.join(map(str, options.shape))}, budget {options.budget}")
        print(f"auto took {(time.time() - began) / 60:.1f} min")
        unseen, metrics = folder / "unseen/manifest.json", folder / "metrics"
        _segpipe("predict", folder / "auto/bundle", unseen, folder / "results")
        _segpipe("evaluate", unseen, folder / "results", "--split", "training", "--out", metrics)
        for label, figures in json.loads((metrics / "metrics.json").read_text())["summary"]["labels"].items():
            print(label, {name: round(value, 4) for name, value in figures["metrics"]["dice"].items()})


def _write_scans(folder: Path, patients: range, shape: tuple[int, int, int]) -> None:
    if (folder / "manifest.json").exists():
        return

    def one(patient: int) -> None:
        image, label = scan(patient, LABELS + 1, shape, SPACING_MM)
        write(folder / "images" / f"ct{patient}.nii.gz", image, SPACING_MM)
        write(folder / "labels" / f"ct{patient}.nii.gz", label, SPACING_MM)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, patients))
    names = [word for label in range(1, LABELS + 1) for word in ("--label-name", f"organ_{label}")]
    folders = ["--images", folder / "images", "--labels", folder / "labels"]
    _segpipe("import", *folders, *names, "--modality", "CT", "-o", folder / "manifest.json")


def _segpipe(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "segpipe", *map(str, words)], stdout=sys.stderr, check=True)


if __name__ == "__main__":
    main()
