"""A manifest, label maps and predictions small enough to be evaluated at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run

LABELS = {"0": "background", "1": "head", "2": "tail"}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def cube(value: int = 1, at: int = 2, size: int = 4) -> np.ndarray:
    array = np.zeros((10, 10, 8), np.uint8)
    array[at : at + size, 2:6, 2:6] = value
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


class Study:
    """A manifest, its label maps and predictions in one folder; ``draws`` asks for figures, which take longest."""

    def __init__(self, root: Path, draws: bool = False) -> None:
        self.root, self.predictions, self.out = root, root / "predictions", root / "out"
        self.cases: list[dict[str, Any]] = []
        self.draws = draws
        self.predictions.mkdir()

    def add(self, id: str, truth: np.ndarray, prediction: np.ndarray | None, section: str = "test", **more: Any):
        save(self.root / f"labels/{id}.nii.gz", truth)
        if prediction is not None:
            save(self.predictions / f"{id}.nii.gz", prediction, more.pop("affine", AFFINE))
        case = {"id": id, "image": f"images/{id}.nii.gz", "label": f"labels/{id}.nii.gz", **more}
        self.cases.append({"section": section, **case})

    def run(self, *options: str) -> int:
        sections = {
            name: [{k: v for k, v in case.items() if k != "section"} for case in self.cases if case["section"] == name]
            for name in ("training", "test")
        }
        manifest = {"schema_version": 1, "name": "tiny", "modality": {"0": "MRI"}, "labels": LABELS, **sections}
        (self.root / "manifest.json").write_text(json.dumps(manifest))
        words = [str(self.root / "manifest.json"), str(self.predictions), "--out", str(self.out)]
        words += [] if self.draws else ["--no-figures"]
        return run(["evaluate", *words, *options])

    def report(self) -> dict[str, Any]:
        return json.loads((self.out / "metrics.json").read_text(), parse_constant=pytest.fail)

    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        with (self.out / "metrics.csv").open() as stream:
            return {(row["case"], row["label"]): row for row in csv.DictReader(stream)}
