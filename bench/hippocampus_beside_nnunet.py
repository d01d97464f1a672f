"""The shipped hippocampus bundles beside nnU-Net, case by case, paired by patient.

    python bench/hippocampus_beside_nnunet.py
    python bench/hippocampus_beside_nnunet.py --cases docs/results/hippocampus_out_of_fold.csv
    python bench/hippocampus_beside_nnunet.py --add metrics/metrics.csv --reference nnunet.json

Without options it reads docs/results/hippocampus_cases.csv, the Dice of both on each test case; the other table has all
200 cases, of both by the model of a cross-validation that left the case out. With --add it writes the table from what
`segpipe evaluate`, or a cross-validation (`RUN/evaluation/metrics.csv`), measured; the reference is a JSON file with
`cases`, by id, of the Dice that nnU-Net's default configuration has on each (`default`: `anterior`, `posterior`).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from segpipe.data import load_manifest
from segpipe.evaluation import bootstrap_mean

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "docs/results/hippocampus_cases.csv"
MANIFEST = ROOT / "data_manifests/msd_task04_hippocampus.json"
LABELS = ("Anterior", "Posterior")
COLUMNS = ("case", "patient", *(f"{who}_{label.lower()}" for who in ("ours", "nnunet") for label in LABELS))
AS_GOOD = -0.005  # to which the interval of the difference may reach down


def add(metrics: Path, reference: Path, cases: Path) -> None:
    """Write the Dice of both on the cases that were measured."""
    patients = {case.id: case.group for case in load_manifest(MANIFEST).cases()}
    theirs = json.loads(reference.read_text())["cases"]
    ours: dict[str, dict[str, float]] = {}
    with metrics.open() as stream:
        for row in csv.DictReader(stream):
            if row["name"] in LABELS:
                ours.setdefault(row["case"], {})[row["name"]] = float(row["dice"] or 0)
    with cases.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for case, dice in sorted(ours.items()):
            other = theirs[case]["default"]
            values = [dice[label] for label in LABELS] + [other[label.lower()] for label in LABELS]
            table.writerow([case, patients[case], *(f"{value:.4f}" for value in values)])


def report(cases: Path) -> None:
    """Print means of both, and the difference paired by patient."""
    with cases.open() as stream:
        rows = list(csv.DictReader(stream))
    patients = [row["patient"] for row in rows]
    print(f"{len(rows)} cases of {len(set(patients))} patients; in brackets 95 %, bootstrap by patient")
    print(f"{'':>12} {'ours':>24} {'nnU-Net':>24} {'ours - nnU-Net, paired':>26}")
    for name in (*LABELS, "mean"):
        labels = LABELS if name == "mean" else (name,)
        values = [
            [sum(float(row[f"{who}_{label.lower()}"]) for label in labels) / len(labels) for row in rows]
            for who in ("ours", "nnunet")
        ]
        differences = [ours - theirs for ours, theirs in zip(*values, strict=True)]
        each = [bootstrap_mean(numbers, patients) for numbers in (*values, differences)]
        texts = [f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" for e in each]
        print(f"{name:>12} {texts[0].replace('+', ''):>24} {texts[1].replace('+', ''):>24} {texts[2]:>26}")
    paired = each[-1]
    better = sum(difference > 0 for difference in differences)
    print(f"ours is better on {better} of {len(rows)} cases")
    verdict = "as good as nnU-Net" if paired.low is not None and paired.low > AS_GOOD else "not shown to be as good"
    print(f"{verdict}: the interval's lower end is {paired.low:+.4f}, the limit {AS_GOOD:+.3f}")


def main() -> None:
    """Add what was measured, if asked for, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--add", type=Path, help="metrics.csv of segpipe evaluate")
    parser.add_argument("--reference", type=Path, help="nnU-Net's Dice by case, JSON")
    options = parser.parse_args()
    if (options.add is None) != (options.reference is None):
        parser.error("--add and --reference go together")
    if options.add is not None:
        add(options.add, options.reference, options.cases)
    report(options.cases)


if __name__ == "__main__":
    main()
