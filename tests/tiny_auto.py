"""A stand-in for the search and the export of `segpipe auto`, with the documents that they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segpipe.common.files import write_json
from segpipe.studies.candidates import Candidate
from segpipe.studies.search import Found, Question

NAME = "unet+light+dice_ce"
ESTIMATE = {"startup_s": 10.0, "loading_s": 10.0, "training_s": 60.0, "validation_s": 10.0, "prediction_s": 5.0}
SEARCH: dict[str, Any] = {
    "schema_version": 1,
    "plans": {
        NAME: {
            "rules": [
                {"name": "patch_size", "value": [16, 16, 16], "why": "the median image whole"},
                {
                    "name": "intensity",
                    "value": {"_target_": "NormalizeIntensityd", "keys": ["image"]},
                    "why": "no scale",
                },
            ],
            "estimate": ESTIMATE,
            "notes": ["the budget gives few steps"],
        }
    },
    "planning_seconds": 20.0,
    "given_up": "30 min for 3 trainings are too few to tell candidates apart",
    "rounds": [
        {
            "folds": [0, 1],
            "trained": [NAME],
            "out_of_fold_dice": {NAME: 0.81},
            "training_seconds": {NAME: 190.0},
            "failed": {},
            "kept": [NAME],
        }
    ],
    "chosen": NAME,
}
OUT_OF_FOLD: dict[str, Any] = {
    "of": "each case by the model of the fold that left it out",
    "patients": {"known": False, "rule": None, "note": "patients unknown: figures may be too good"},
    "figure": {
        "measure": "mean Dice",
        "raw": {"mean": 0.812, "low": 0.7, "high": 0.9, "median": 0.81, "n": 2},
        "corrected": {"mean": 0.799, "low": 0.68, "high": 0.89},
        "candidates": 1,
    },
    "folds": [{"fold": fold, "cases": 1, "epochs": 3, "mean_dice": {"mean": 0.8}} for fold in (0, 1)],
    "selected": [{"what": "post-processing of liver", "chosen": "none", "candidates": 9}],
    "cases": [
        {"id": "case_0", "fold": 0, "failure": None, "mean_dice": 0.8},
        {"id": "case_1", "fold": 1, "failure": "lost", "mean_dice": None},
    ],
}


class FakeSearch:
    """Finds at once what `OUT_OF_FOLD` says; ``stop`` makes it an interruption."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.exported = 0
        self.stop = False

    def search(self, question: Question, out: Path, progress: Any) -> Found:
        self.questions.append(question)
        progress("training")
        if self.stop:
            raise KeyboardInterrupt
        write_json(out / "search.json", SEARCH)
        return Found(out / "candidates" / NAME / "run", Candidate("unet"), SEARCH, OUT_OF_FOLD)

    def export(self, run: Path, out: Path, **more: Any) -> None:
        self.exported += 1
        out.mkdir(exist_ok=True)
