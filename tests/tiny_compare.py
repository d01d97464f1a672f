"""A stand-in for the processes of a comparison: leaves the files that the real commands leave, quickly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

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


def option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1]


class FakeSubprocesses:
    """Stands for `segpipe.common.subprocesses.Subprocesses`.

    Args:
        fails: ``(verb, part of a word)`` to how the command ends.
        shift: voxels by which the predictions of a variant, known by a part of its folder, are moved.
    """

    def __init__(self, fails: dict[tuple[str, str], Ended] | None = None, shift: dict[str, int] | None = None) -> None:
        self.fails, self.shift = fails or {}, shift or {}
        self.ran: list[list[str]] = []
        self.stopped = False

    def verbs(self) -> list[str]:
        return [f"{words[0]} --dry-run" if "--dry-run" in words else words[0] for words in self.ran]

    def stop(self) -> None:
        self.stopped = True

    def run(self, words: Sequence[str], on_line: Listener = print) -> Ended:
        if self.stopped:
            raise KeyboardInterrupt
        self.ran.append(list(words))
        for (verb, part), ended in self.fails.items():
            if words[0] == verb and any(part in word for word in words):
                if ended.code == 130:
                    self.stop()
                    raise KeyboardInterrupt
                return ended
        return getattr(self, f"_{words[0]}")(list(words), on_line)

    def _train(self, words: list[str], on_line: Listener) -> Ended:
        if "--dry-run" in words:
            facts = {"parameters": 7, "seconds_per_step": 0.1, "seconds_per_validation_case": 0.01}
            return Ended(0, {"dry_run": facts})
        folder = Path(option(words, "--out" if "--out" in words else "--resume"))
        folder.mkdir(parents=True, exist_ok=True)
        epochs = int(option(words, "--epochs")) if "--epochs" in words else 2
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

    def _export(self, words: list[str], on_line: Listener) -> Ended:
        Path(words[2]).mkdir()
        return Ended(0, {})

    def _predict(self, words: list[str], on_line: Listener) -> Ended:
        out, data = Path(words[3]), Path(option(words, "--data"))
        fold = int(option(words, "--fold")) if "--fold" in words else None
        shift = next((voxels for part, voxels in self.shift.items() if part in words[1]), 0)
        for number, case in enumerate(load_manifest(words[2]).select(option(words, "--split"), fold)):
            folder = out / case.id
            folder.mkdir(parents=True)
            truth = nib.load(data / str(case.label))
            moved = np.roll(np.asarray(truth.dataobj), shift + (shift and number % 2), 0)
            nib.save(nib.Nifti1Image(moved.astype(np.uint8), truth.affine), folder / SEGMENTATION)
        return Ended(0, {})

    def _evaluate(self, words: list[str], on_line: Listener) -> Ended:
        data, manifest = Path(option(words, "--data")), load_manifest(words[1])
        fold = int(option(words, "--fold")) if "--fold" in words else None
        cases = [
            measured(case.id, data / str(case.label), Path(words[2]) / case.id / SEGMENTATION, manifest)
            for case in manifest.select(option(words, "--split"), fold)
        ]
        out = Path(option(words, "--out"))
        out.mkdir()
        (out / "metrics.json").write_text(json.dumps({"cases": cases}))
        return Ended(4 if any(case["failure"] for case in cases) else 0, {})


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
