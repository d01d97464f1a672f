"""A stand-in for the trainings of `segpipe tune`: a candidate is as good as its settings say, at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segpipe.data.manifest import load_manifest
from segpipe.training.training_run import TrainingRun

SPACE = """
loss:
  dice_ce: {"loss#alpha": {low: 0.1, high: 0.9}}
  tversky: {}
learning_rate: {low: 0.0001, high: 0.01, log: true}
width: [0.5, 1.0]
augmentation: {low: 0.0, high: 2.0}
"""


def setting(overrides: list[str], name: str, default: float) -> float:
    return next((float(each.partition("=")[2]) for each in overrides if each.startswith(f"{name}=")), default)


class FakeTraining:
    """Stands for `segpipe.train` in a search, and what reads its figures."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, tuple[int, ...], int]] = []
        self.overrides: dict[str, list[str]] = {}
        self.shared: dict[str, Any] = {}
        self.stop_at: str | None = None
        self.fails: dict[str, Exception] = {}
        self.recorded: list[tuple[list[str], str]] = []
        self.epochs = 6
        self.noise: Callable[[str, int], float] = lambda case, seed: 0.0  # of the best over the default

    def quality(self, loss: str, overrides: list[str]) -> float:
        rate = setting(overrides, "learning_rate", 0.002)
        return 0.5 + (0.1 if loss == "tversky" else 0.0) + min(0.1, 20 * rate)

    def train(self, manifest: Path, *, loss: str, folds: list[int], out: Path, progress: Any, **more: Any) -> Any:
        name, overrides = out.parent.name, list(more["overrides"])
        self.overrides[name], self.shared = overrides, more
        if name in self.fails:
            raise self.fails[name]
        self.trained.append((name, tuple(folds), more["seed"]))
        value = self.quality(loss, overrides)
        for fold in folds:
            place = out / f"fold_{fold}"
            place.mkdir(parents=True, exist_ok=True)
            rows = []
            for epoch in range(1, self.epochs + 1):
                dice = value * epoch / self.epochs
                rows.append(f"{epoch},{dice}\n")
                (place / "history.csv").write_text("epoch,val_mean_dice\n" + "".join(rows))
                if self.stop_at == name and epoch == 3:
                    raise KeyboardInterrupt
                words = f"fold_{fold} epoch {epoch}/{self.epochs}  loss 0.1"
                progress(f"{words}  validation Dice {dice:.4f}  0:00:01 left")
        cases = [
            {
                "id": case.id,
                "fold": case.fold,
                "failure": None,
                "mean_dice": value + (self.noise(case.id, more["seed"]) if name != "default" else 0.0),
            }
            for case in load_manifest(manifest).training
            if case.fold in folds
        ]
        document = {"cases": cases}
        (out / "out_of_fold.json").write_text(json.dumps(document))
        return TrainingRun(out, "finished", out_of_fold=document)

    def record_candidates(self, run: Path, candidates: dict[str, Path], chosen: str) -> dict[str, Any]:
        assert candidates[chosen] == run
        self.recorded.append((list(candidates), chosen))
        return {}

    def put(self, patch: Any) -> FakeTraining:
        """Take the place of the real ones."""
        patch.setattr("segpipe.studies.candidates.train", self.train)
        patch.setattr("segpipe.studies.tuning.record_candidates", self.record_candidates)
        read = lambda folder: json.loads((folder / "out_of_fold.json").read_text())  # noqa: E731
        patch.setattr("segpipe.studies.tuning.read_out_of_fold", read)
        return self
