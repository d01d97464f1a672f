"""How long a comparison says that it will last: runs at the same time, and runs after them."""

from __future__ import annotations

import heapq
from types import SimpleNamespace
from typing import Any

import pytest

from segpipe.common.console import as_clock
from segpipe.studies import comparison_run

STEP_S, EPOCHS, STEPS = 0.5, 10, 20  # of the dry run


class Bar:
    """A bar that remembers what was left."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def advance(self, *_: Any) -> None:
        pass

    def update(self, _: int, description: str) -> None:
        self.lines.append(description)


def told(
    monkeypatch: pytest.MonkeyPatch, epoch_s: dict[str, float], jobs: int, measuring_s: float = 20.0, done: int = 0
) -> list[tuple[float, float]]:
    """Return when each line came and the seconds left that it said, and the end of all in the last one."""
    now, bar, lines = [0.0], Bar(), []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = comparison_run.Progress(SimpleNamespace(note=bar.lines.append), bar)  # type: ignore[arg-type]
    cells = [SimpleNamespace(key=f"{name}/s0f0", variant=SimpleNamespace(name=name), fold=0) for name in epoch_s]
    facts = {"epochs": {"0": EPOCHS}, "steps_per_epoch": {"0": STEPS}, "first_step_seconds": STEP_S}
    progress.begin(cells, SimpleNamespace(variants=dict.fromkeys(epoch_s, facts)), jobs)  # type: ignore[arg-type]
    waiting, events = list(cells), list[tuple[float, str, int, Any]]()

    def start(first: int = 1) -> None:
        if waiting:
            cell = waiting.pop(0)
            progress.start(cell)
            heapq.heappush(events, (now[0] + epoch_s[cell.variant.name], cell.key, first, cell))

    for _ in range(jobs):
        start(1 + done)
    while events:
        now[0], _, epoch, cell = heapq.heappop(events)
        every = epoch_s[cell.variant.name]
        if epoch > EPOCHS:
            progress.end(cell, {"status": "finished", "seconds": 1.0})
            start()
        else:
            progress.hear(cell, f"epoch {epoch}/{EPOCHS}  loss 0.9  {as_clock((EPOCHS - epoch) * every)} left")
            after = every if epoch < EPOCHS else measuring_s
            heapq.heappush(events, (now[0] + after, cell.key, epoch + 1, cell))
        *_, hours, minutes, seconds = bar.lines[-1].partition(" left")[0].rpartition(" ")[2].split(":")
        lines.append((now[0], 3600.0 * int(hours) + 60 * int(minutes) + int(seconds)))
    return lines


@pytest.mark.parametrize("jobs", [1, 2, 3, 5])
def test_what_is_said_is_true_from_the_first_line_on(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    lines = told(monkeypatch, {name: 60.0 + 2 * number for number, name in enumerate("abcde")}, jobs)
    end = lines[-1][0]
    assert lines[-1][1] == 0
    for now, left in lines:
        assert left == pytest.approx(end - now, rel=0.2, abs=25)


def test_a_run_that_goes_on_is_not_taken_for_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, {"a": 60.0, "b": 60.0}, 1, measuring_s=0.0, done=8)
    assert lines[0] == (60.0, 660.0)  # an epoch of this one, ten of the next
