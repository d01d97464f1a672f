"""Runs that differ by one id: how long all of them will last."""

from __future__ import annotations

import heapq

import pytest

from segpipe.common.console import as_clock
from segpipe.training.time_left import TimeLeft


class Simulated:
    """Runs on a clock of their own: each starts up, then has epochs of so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trained: dict[int, tuple[str, int]], jobs: int) -> None:
        self.now, self.trained, self.jobs = 0.0, trained, jobs
        monkeypatch.setattr("segpipe.training.time_left.time.monotonic", lambda: self.now)

    def told(self, epochs: int, startup_s: float, epoch_s: dict[int, float]) -> list[tuple[float, float]]:
        """Return when each line came, and how long it said that all runs would last; the end is that of the last."""
        left = TimeLeft(self.trained, epochs, self.jobs)
        queue = [value for value, (status, _) in self.trained.items() if status != "finished"]
        lines, events = [], []

        def begin() -> None:
            if queue:
                value = queue.pop(0)
                left.begin(value)
                first = self.trained[value][1] + 1
                heapq.heappush(events, (self.now + startup_s + epoch_s[value], value, first))

        for _ in range(self.jobs):
            begin()
        while events:
            self.now, value, epoch = heapq.heappop(events)
            own = as_clock((epochs - epoch) * epoch_s[value])
            lines.append((self.now, left.after(value, epoch, f"epoch {epoch}/{epochs}  loss 0.9  {own} left")))
            if epoch < epochs:
                heapq.heappush(events, (self.now + epoch_s[value], value, epoch + 1))
            else:
                begin()
        return lines


@pytest.mark.parametrize("jobs", [1, 2, 3, 5])
def test_what_is_said_is_true_from_the_first_line_on(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    runs = Simulated(monkeypatch, dict.fromkeys(range(5), ("waiting", 0)), jobs)
    lines = runs.told(40, 60.0, {fold: 128.0 + fold for fold in range(5)})
    end = lines[-1][0]
    assert lines[-1][1] == 0
    for now, left in lines:
        assert left == pytest.approx(end - now, rel=0.06, abs=20)


def test_what_was_trained_before_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Simulated(monkeypatch, {0: ("finished", 10), 1: ("interrupted", 4), 2: ("waiting", 0)}, 1)
    lines = runs.told(10, 0.0, {1: 30.0, 2: 30.0})
    assert lines[0] == (30.0, 450.0)  # 15 epochs of 30 s
    assert [left for _, left in lines] == [450.0 - 30 * line for line in range(16)]


def test_a_line_without_a_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 12.0])
    monkeypatch.setattr("segpipe.training.time_left.time.monotonic", lambda: next(now))
    left = TimeLeft({0: ("waiting", 0), 1: ("waiting", 0)}, 3, jobs=2)
    left.begin(0), left.begin(1)
    assert left.after(0, 1, "epoch 1/3  loss 0.9") == 24.0  # the other is as far
