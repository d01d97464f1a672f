"""How far a comparison is, for who watches: a bar on a terminal, rare lines in a log."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from pipeline.compare.state import State
from pipeline.compare.variants import Cell
from pipeline.console import Console

EPOCH = re.compile(r"epoch (\d+)/(\d+)")


class Progress:
    """Tells what runs and how much time is left.

    The work of a cell is first guessed from the dry run's step; what the finished epochs took corrects the guess.

    Args:
        console: where lines go.
        bar: a rich progress bar, disabled where there is no terminal.
    """

    def __init__(self, console: Console, bar: Any) -> None:
        self.console = console
        self.bar = bar
        self._lock = threading.Lock()
        self._work: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._began = 0.0
        self._task: Any = None

    def say(self, text: str) -> None:
        """A line, unless the bar shows it."""
        if sys.stderr.isatty():
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            self.console.note(text)

    def begin(self, cells: Sequence[Cell], state: State) -> None:
        """What is to be run."""
        for cell in cells:
            facts = state.variants[cell.variant.name]
            steps = facts["epochs"][str(cell.fold)] * facts["steps_per_epoch"][str(cell.fold)]
            self._work[cell.key] = steps * max(facts["first_step_seconds"], 1e-3)
        self._began = time.monotonic()
        self._task = self.bar.add_task("comparing", total=max(1, len(cells)))

    def hear(self, cell: Cell, line: str) -> None:
        """A line of a cell's training."""
        found = EPOCH.match(line)
        if not found:
            return
        epoch, epochs = map(int, found.groups())
        with self._lock:
            self._share[cell.key] = epoch / epochs
        self.bar.update(self._task, description=f"{cell.key}, epoch {epoch}/{epochs}, {self.left()} left")

    def end(self, cell: Cell, facts: dict[str, Any]) -> None:
        """A cell came to its end."""
        with self._lock:
            self._share[cell.key] = 1.0
        done = sum(share == 1 for share in self._share.values())
        if facts["status"] == "failed":
            outcome = f"failed: {facts['reason']}"
        else:
            best = facts.get("best") or {}
            outcome = (
                f"validation Dice {best.get('val_mean_dice', 0):.4f}, {facts['seconds'] / 60:.1f} minutes"
            )
        self.bar.advance(self._task)
        self.say(f"{cell.key}: {outcome} ({done} of {len(self._work)} runs, {self.left()} left)")

    def left(self) -> str:
        """The time left, as minutes and seconds."""
        with self._lock:
            done = sum(self._work[key] * share for key, share in self._share.items())
            rest = sum(self._work.values()) - done
        if not done:
            return "unknown time"
        seconds = round((time.monotonic() - self._began) * rest / done)
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d}"
