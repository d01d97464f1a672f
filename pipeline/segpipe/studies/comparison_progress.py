"""What `segpipe compare` shows while it runs: how far each run is, and how much time is left."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from segpipe.common.console import Console, as_clock
from segpipe.common.subprocesses import last_end
from segpipe.studies.comparison_state import State
from segpipe.studies.variants import Cell

SAID = re.compile(r"epoch (\d+)/(\d+)(?:.*?(\d+):(\d\d):(\d\d) left)?")  # by a training, of its own epochs


class TimeLeft:
    """How long all cells will last, some at the same time and others after them.

    The work of a cell is a guess; how many seconds a unit of it takes is learnt from the cells that are trained.

    Args:
        work: of each cell, in the order in which they are begun.
        jobs: cells at the same time.

    >>> left = TimeLeft({"a": 100.0, "b": 50.0}, jobs=1)
    >>> left.start("a")
    >>> left.hear("a", 0.25, 150.0)  # so that a unit takes 2 seconds
    >>> round(left.seconds())
    250
    """

    def __init__(self, work: dict[str, float], jobs: int = 1) -> None:
        self._work, self._jobs = work, jobs
        self._began: dict[str, float] = {}
        self._unit_s: dict[str, float] = {}
        self._ends: dict[str, float] = {}  # when training ends, of cells that are trained now
        self._ended = set[str]()
        self._before_s: dict[str, float] = {}  # from the beginning to the first step
        self._after_s: dict[str, float] = {}  # from the last step to the end: export, prediction, evaluation

    def start(self, key: str) -> None:
        """Take the beginning of a cell."""
        self._began[key] = time.monotonic()

    def hear(self, key: str, share: float, left_s: float | None) -> None:
        """Take how much of a cell is trained, and the seconds that its training says are left."""
        now = time.monotonic()
        work = self._work[key]
        if left_s is not None and share < 1:
            self._unit_s[key] = left_s / (work * (1 - share))
            taken = now - self._began[key] - self._unit_s[key] * work * share
            self._before_s.setdefault(key, max(0.0, taken))  # of one that goes on: nothing
        self._unit_s.setdefault(key, (now - self._began[key]) / (work * share))
        self._ends[key] = now + work * (1 - share) * self._unit_s[key]

    def end(self, key: str, is_whole: bool) -> None:
        """Take the end of a cell; one that failed tells nothing of how long measuring takes."""
        self._ended.add(key)
        if is_whole and key in self._ends:
            self._after_s[key] = max(0.0, time.monotonic() - self._ends[key])

    def seconds(self) -> float | None:
        """Return the seconds that are left; None before a cell has said anything."""
        if not self._unit_s:
            return None
        now, unit_s = time.monotonic(), fmean(self._unit_s.values())
        before_s, after_s = (fmean(each.values()) if each else 0.0 for each in (self._before_s, self._after_s))
        busy, waiting = [], []
        for key, work in self._work.items():
            whole_s = before_s + work * unit_s + after_s
            if key in self._ended:
                continue
            if key in self._ends:
                busy.append(max(0.0, self._ends[key] + after_s - now))
            elif key in self._began:
                busy.append(max(0.0, self._began[key] + whole_s - now))
            else:
                waiting.append(whole_s)
        return last_end(busy, waiting, self._jobs)


class Progress:
    """Shows what runs and how much time is left: a bar on a terminal, rare lines in a log.

    Args:
        console: where lines go.
        bar: a rich progress bar, disabled where there is no terminal.
    """

    def __init__(self, console: Console, bar: Any) -> None:
        self.console = console
        self.bar = bar
        self._lock = threading.Lock()
        self._time = TimeLeft({})
        self._ended = self._cells = 0
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if sys.stderr.isatty():
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            self.console.note(text)

    def begin(self, cells: Sequence[Cell], state: State, jobs: int) -> None:
        """Take the cells that are to be run, so many at the same time; the dry run's step says how long each takes."""
        work = {}
        for cell in cells:
            facts, fold = state.variants[cell.variant.name], str(cell.fold)
            steps = facts["epochs"][fold] * facts["steps_per_epoch"][fold]
            work[cell.key] = steps * max(facts["first_step_seconds"], 1e-3)
        self._time, self._cells = TimeLeft(work, jobs), len(cells)
        self._task = self.bar.add_task("comparing", total=max(1, len(cells)))

    def start(self, cell: Cell) -> None:
        """Take the beginning of a cell."""
        with self._lock:
            self._time.start(cell.key)

    def hear(self, cell: Cell, line: str) -> None:
        """Take a line of a cell's training."""
        match = SAID.match(line)
        if not match:
            return
        epoch, epochs = int(match[1]), int(match[2])
        told = None if match[3] is None else 3600.0 * int(match[3]) + 60 * int(match[4]) + int(match[5])
        with self._lock:
            self._time.hear(cell.key, epoch / epochs, told)
        self.bar.update(self._task, description=f"{cell.key}, epoch {epoch}/{epochs}, {self._left()} left")

    def end(self, cell: Cell, facts: dict[str, Any]) -> None:
        """Take the end of a cell."""
        failed = facts["status"] == "failed"
        with self._lock:
            self._time.end(cell.key, not failed)
            self._ended += 1
            done = self._ended
        if failed:
            outcome = f"failed: {facts['reason']}"
        else:
            best = facts.get("best") or {}
            outcome = f"validation Dice {best.get('val_mean_dice', 0):.4f}, {facts['seconds'] / 60:.1f} minutes"
        self.bar.advance(self._task)
        self.say(f"{cell.key}: {outcome} ({done} of {self._cells} runs, {self._left()} left)")

    def _left(self) -> str:
        """Return the time left as hours, minutes and seconds."""
        with self._lock:
            seconds = self._time.seconds()
        return "unknown time" if seconds is None else as_clock(seconds)
