"""A stand-in for the processes of a cross-validation: trains here, and predicts the truth with a part of it moved."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.common.result_folder import RESULT, SEGMENTATION
from segpipe.common.subprocesses import Ended
from segpipe.data.manifest import load_manifest
from tiny_data import InThisProcess, train_arguments


class Folds(InThisProcess):
    """Stands for `segpipe.common.subprocesses.Subprocesses`; ``calls`` says what was asked for, of which fold.

    Args:
        shift: fold to the voxels by which its predictions are moved; None predicts nothing of it.
    """

    def __init__(self, shift: dict[int, int | None] | None = None) -> None:
        super().__init__()
        self.shift = shift or {}
        self.calls: list[tuple[str, str]] = []

    def call(self, name: str, arguments: dict[str, Any], on_line: Callable[[str], object] = len) -> Ended:
        place = Path(arguments["resume"] if name == "segpipe.train" else arguments["out"])
        fold = next(part for part in place.parts if part.startswith("fold_"))
        self.calls.append((name.removeprefix("segpipe."), fold))
        if name == "segpipe.train":
            return super().call(name, arguments, on_line)
        return {"segpipe.export": self._export, "segpipe.predict": self._predict}[name](**arguments)

    def _export(self, run: Path, out: Path, name: str) -> Ended:
        assert (run / "final.pt").is_file()
        out.mkdir()
        (out / "name").write_text(name)
        return Ended(0, {})

    def _predict(self, bundle: Path, inputs: Path, out: Path, split: str, fold: int, data: Path, **_: Any) -> Ended:
        assert (bundle / "name").read_text() == f"fold_{fold}"
        shift = self.shift.get(fold, 0)
        for case in load_manifest(inputs).select(split, fold) if shift is not None else ():
            (out / case.id).mkdir(parents=True, exist_ok=True)
            truth = nib.load(Path(data) / str(case.label))
            moved = np.roll(np.asarray(truth.dataobj).astype(np.uint8), shift, 0)
            nib.save(nib.Nifti1Image(moved, truth.affine), out / case.id / SEGMENTATION)
            (out / case.id / RESULT).write_text("{}")
        return Ended(0, {})


def stand_in(patch: pytest.MonkeyPatch, shift: dict[int, int | None] | None = None, *, figures: bool = False) -> Folds:
    """Let all processes of cross-validations be one of these; drawing takes longest, and is left out."""
    patch.setattr("segpipe.training.out_of_fold.evaluate", functools.partial(segpipe.evaluate, figures=figures))
    found = Folds(shift)
    patch.setattr("segpipe.training.several_runs.Subprocesses", lambda: found)
    patch.setattr("segpipe.training.out_of_fold.Subprocesses", lambda: found)
    return found


def fold_arguments(manifest: Path, out: Path, *more: str, folds: str = "all") -> list[str]:
    """The command line of a short cross-validation."""
    return train_arguments(manifest, out, "--epochs", "1", "--folds", folds, *more)


def read(path: Path) -> Any:
    return json.loads(path.read_text())
