"""Runs that differ by one id: how long all of them will last, and what it is that failed."""

from __future__ import annotations

import json
from pathlib import Path

from segpipe.training.several_runs import Series, TimeLeft


def test_the_time_left_is_that_of_all_epochs_by_those_of_this_start(tmp_path: Path, monkeypatch) -> None:
    for fold, record in enumerate(({"status": "finished", "epochs": 10}, {"status": "interrupted", "epochs": 4})):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "run.json").write_text(json.dumps(record))
    now = iter([100.0, 130.0, 190.0])
    monkeypatch.setattr("segpipe.training.several_runs.time.monotonic", lambda: next(now))
    left = TimeLeft(Series("fold", (0, 1, 2), tmp_path, "fold_{}"), {"max_epochs": 10})
    assert left.after(1, 5) == ", 0:07:30 of all 3 folds"  # 15 epochs of 30 s
    assert left.after(2, 1) == ", 0:10:30 of all 3 folds"  # 14 of 45 s
    monkeypatch.undo()
    unknown = TimeLeft(Series("seed", (0,), tmp_path, "seed{}"), {"max_epochs": "@epochs"})
    assert unknown.after(0, 1) == ""
