"""compare.json: what was asked for, what is done, and what came of it; never half of it.

OUT/compare.json                     settings, variants, cells, results
OUT/runs/<variant>/<cell>/run        what `segpipe train` left
                         /bundle, /predictions, /metrics   what export, predict and evaluate left
OUT/tensorboard/<variant>/<cell>     the run's, for `tensorboard --logdir OUT/tensorboard`

How far a comparison is, for who watches: a bar on a terminal, rare lines in a log.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segpipe.common.console import SCHEMA_VERSION, Console
from segpipe.common.files import read_json, write_json
from segpipe.errors import DataError, UsageError
from segpipe.studies.compare.variants import Cell

STATE = "compare.json"


class State:
    """The document, written anew whenever something is done.

    Args:
        out: folder of the comparison.
        document: as it was read, or as a new one begins.
    """

    def __init__(self, out: Path, document: dict[str, Any]) -> None:
        self.out = out
        self.document = document
        self._lock = threading.Lock()

    @property
    def variants(self) -> dict[str, Any]:
        """Facts of each variant by name: epochs by fold, parameters, first timings."""
        variants: dict[str, Any] = self.document["variants"]
        return variants

    @property
    def cells(self) -> dict[str, Any]:
        """How each cell ended, by key; what was never finished is not there."""
        cells: dict[str, Any] = self.document["cells"]
        return cells

    def finished(self, key: str) -> bool:
        """Whether a cell has nothing left to do."""
        return bool(self.cells.get(key, {}).get("status") == "finished")

    def end(self, key: str, facts: dict[str, Any]) -> None:
        """Record how a cell ended."""
        with self._lock:
            self.cells[key] = facts
            self.write()

    def write(self) -> None:
        """Bring the document to disk."""
        write_json(self.out / STATE, self.document)


def open_state(out: Path, settings: dict[str, Any]) -> State:
    """The state of a folder, or a new one that is not written yet.

    Args:
        out: folder of the comparison.
        settings: plain values that two starts must share.

    Raises:
        UsageError: the folder was begun with other settings, which are named, or holds something else.
        DataError: the state cannot be read.
    """
    path = out / STATE
    if not path.exists():
        if out.is_dir() and any(not each.name.startswith(".") for each in out.iterdir()):
            raise UsageError(
                "the folder holds something that is not of a comparison", path=out, hint="name an empty one"
            )
        head = {"schema_version": SCHEMA_VERSION, "command": "compare"}
        begun = {**head, "settings": settings, "variants": {}, "cells": {}, "results": None}
        return State(out, begun)
    document = read_json(path, "comparison")
    if not isinstance(document, dict) or not {"settings", "variants", "cells"} <= set(document):
        raise DataError("this is not the state of a comparison", path=path, hint="name another --out")
    differing = [name for name in settings if document["settings"].get(name) != settings[name]]
    if differing:
        raise UsageError(
            "the folder was begun with other settings",
            path=out,
            found="; ".join(f"{name}: {_short(settings[name])}" for name in differing),
            expected="; ".join(f"{name}: {_short(document['settings'].get(name))}" for name in differing),
            hint="give the same settings to go on, or another --out",
        )
    return State(out, document)


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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
            outcome = f"validation Dice {best.get('val_mean_dice', 0):.4f}, {facts['seconds'] / 60:.1f} minutes"
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
