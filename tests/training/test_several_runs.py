"""Runs that differ by one id: how long all of them will last, and what it is that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segpipe.common.subprocesses import Ended
from segpipe.errors import BAD_DATA, USAGE, SegpipeError
from segpipe.training.several_runs import Series, TimeLeft, require_ended_well


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


def test_a_failure_has_the_words_and_the_code_that_it_had_there() -> None:
    require_ended_well("fold 0", Ended(0, {}))
    with pytest.raises(SegpipeError, match="fold 0: no label") as caught:
        require_ended_well("fold 0", Ended(3, {"error": {"message": "no label", "case_id": "a", "hint": "look"}}))
    assert (caught.value.exit_code, caught.value.case_id, caught.value.hint) == (BAD_DATA, "a", "look")
    with pytest.raises(SegpipeError, match="for want of memory") as caught:
        require_ended_well("fold 0", Ended(-9, {}))
    assert caught.value.exit_code == USAGE
