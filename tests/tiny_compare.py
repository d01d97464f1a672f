"""A stand-in for the processes of a comparison: leaves the files that the real calls leave, quickly."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import segpipe
from segpipe.common.result_folder import SEGMENTATION
from segpipe.common.subprocesses import Ended, Listener
from segpipe.data.manifest import Manifest, load_manifest
from segpipe.evaluation.measure.overlap import dice

EPOCH = "{epoch},0.9,0.8,0.5,0.001,{seconds},0.5\n"
HEAD = "epoch,train_loss,val_loss,val_mean_dice,learning_rate,train_seconds,seconds\n"
ENVIRONMENT = {
    "versions": {"python": "3"},
    "git_revision": None,
    "hardware": {"processor": "one", "cores": 1, "memory_gib": 1.0, "gpus": []},
}


class FakeSubprocesses:
    """Stands for `segpipe.common.subprocesses.Subprocesses`.

    Args:
        fails: ``(function, part of an argument)`` to how the call ends.
        shift: voxels by which the predictions of a variant, known by a part of its folder, are moved.
    """

    def __init__(self, fails: dict[tuple[str, str], Ended] | None = None, shift: dict[str, int] | None = None) -> None:
        self.fails, self.shift = fails or {}, shift or {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.stopped = False

    def verbs(self) -> list[str]:
        return [f"{name} --dry-run" if arguments.get("dry_run") else name for name, arguments in self.calls]

    def stop(self) -> None:
        self.stopped = True

    def call(self, name: str, arguments: Mapping[str, Any], on_line: Listener = len) -> Ended:
        if self.stopped:
            raise KeyboardInterrupt
        name = name.removeprefix("segpipe.")
        arguments = json.loads(json.dumps(arguments, default=str))  # as they reach the other process
        inspect.signature(getattr(segpipe, name)).bind(**arguments)
        self.calls.append((name, arguments))
        for (failing, part), ended in self.fails.items():
            if name == failing and any(part in str(value) for value in arguments.values()):
                if ended.code == 130:
                    self.stop()
                    raise KeyboardInterrupt
                return ended
        return getattr(self, f"_{name}")(on_line, **arguments)

    def _train(self, on_line: Listener, **arguments: Any) -> Ended:
        if arguments.get("dry_run"):
            facts = {"parameters": 7, "seconds_per_step": 0.1, "seconds_per_validation_case": 0.01}
            return Ended(0, {"result": {"dry_run": facts}})
        folder = Path(arguments.get("out") or arguments["resume"])
        folder.mkdir(parents=True, exist_ok=True)
        epochs = arguments.get("epochs", 2)
        on_line("what a library says")
        on_line(f"epoch 1/{epochs}  loss 0.9  0:00:01 left")
        rows = [EPOCH.format(epoch=epoch, seconds=0.3) for epoch in range(1, epochs + 1)]
        (folder / "history.csv").write_text(HEAD + "".join(rows))
        record = {
            "status": "finished",
            "epochs": epochs,
            "best": {"epoch": 1, "val_mean_dice": 0.5},
            "sessions": [{"seconds": 2.0}],
            "environment": ENVIRONMENT,
        }
        (folder / "run.json").write_text(json.dumps(record))
        return Ended(0, {}, 1.0, 100.0)

    def _export(self, on_line: Listener, run: str, out: str) -> Ended:
        Path(out).mkdir()
        return Ended(0, {})

    def _predict(
        self, on_line: Listener, bundle: str, inputs: str, out: str, data: str, split: str, fold: int | None, **_: Any
    ) -> Ended:
        shift = next((voxels for part, voxels in self.shift.items() if part in bundle), 0)
        for number, case in enumerate(load_manifest(inputs).select(split, fold)):
            folder = Path(out) / case.id
            folder.mkdir(parents=True)
            truth = nib.load(Path(data) / str(case.label))
            moved = np.roll(np.asarray(truth.dataobj), shift + (shift and number % 2), 0)
            nib.save(nib.Nifti1Image(moved.astype(np.uint8), truth.affine), folder / SEGMENTATION)
        return Ended(0, {})

    def _evaluate(
        self,
        on_line: Listener,
        manifest: str,
        predictions: str,
        out: str,
        data: str,
        split: str,
        fold: int | None,
        reason: str,
    ) -> Ended:
        assert reason == "segpipe compare"
        dataset = load_manifest(manifest)
        cases = [
            measured(case.id, Path(data) / str(case.label), Path(predictions) / case.id / SEGMENTATION, dataset)
            for case in dataset.select(split, fold)
        ]
        Path(out).mkdir()
        (Path(out) / "metrics.json").write_text(json.dumps({"cases": cases}))
        return Ended(0, {})


def measured(case_id: str, truth: Path, prediction: Path, manifest: Manifest) -> dict[str, Any]:
    """A case as metrics.json has it."""
    there = prediction.is_file()
    one, other = (np.asarray(nib.load(path).dataobj) for path in (truth, prediction if there else truth))
    scores = {name: dice(one == value, other == value) if there else 0.0 for value, name in manifest.foreground.items()}
    known = [score for score in scores.values() if score is not None]
    return {
        "id": case_id,
        "failure": None if there else "no prediction",
        "mean_dice": sum(known) / len(known),
        "labels": [{"name": name, "dice": score} for name, score in scores.items()],
    }
