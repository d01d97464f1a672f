"""How long several runs will last, some at the same time and others after them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from statistics import fmean

from segpipe.common.subprocesses import last_end

LEFT = re.compile(r"(\d+):(\d\d):(\d\d) left")  # what a training says of its own epochs


class TimeLeft:
    """How long all runs will last, by what those say that are trained now.

    A run that has said nothing yet is taken for one like the others, and is as far as its time; those that wait are
    given to whoever is free, and begin as slowly as the others did.

    Args:
        trained: status and epochs of each run, in the order in which they are trained.
        planned: epochs of each.
        jobs: runs at the same time.

    >>> left = TimeLeft({0: ("waiting", 0), 1: ("waiting", 0)}, 10, jobs=2)
    >>> left.begin(0), left.begin(1)
    (None, None)
    >>> round(left.after(0, 1, "epoch 1/10  loss 0.9  0:01:30 left"))  # the other: 10 epochs of 10 s
    100
    """

    def __init__(self, trained: Mapping[int, tuple[str, int]], planned: int, jobs: int = 1) -> None:
        self._planned, self._jobs = planned, max(1, jobs)
        self._epochs = {
            value: planned if status == "finished" else epochs for value, (status, epochs) in trained.items()
        }
        self._since: dict[int, float] = {}  # when a run that is trained now began, or ended its last epoch
        self._epoch_s: dict[int, float] = {}
        self._startup_s: dict[int, float] = {}

    def begin(self, value: int) -> None:
        """Take the beginning of a run."""
        self._since[value] = time.monotonic()

    def after(self, value: int, epoch: int, line: str) -> float:
        """Take the end of an epoch, and what the run said; return the seconds that all runs will last."""
        now = time.monotonic()
        took = (now - self._since[value]) / max(1, epoch - self._epochs[value])
        told, left = LEFT.search(line), self._planned - epoch
        if told and left > 0:
            hours, minutes, seconds = map(int, told.groups())
            self._epoch_s[value] = (3600 * hours + 60 * minutes + seconds) / left
        self._epoch_s.setdefault(value, took)
        self._startup_s.setdefault(value, max(0.0, took - self._epoch_s[value]))
        self._epochs[value], self._since[value] = epoch, now
        return self._left(now)

    def _left(self, now: float) -> float:
        usual_s, startup_s = fmean(self._epoch_s.values()), fmean(self._startup_s.values())
        busy, waiting = [], []
        for value, epochs in self._epochs.items():
            epoch_s = self._epoch_s.get(value, usual_s)
            if epochs < self._planned and value in self._since:
                own_s = epoch_s if value in self._epoch_s else epoch_s + startup_s
                busy.append((self._planned - epochs) * epoch_s + own_s - epoch_s - min(own_s, now - self._since[value]))
            elif epochs < self._planned:
                waiting.append(startup_s + (self._planned - epochs) * usual_s)
        return last_end(busy, waiting, self._jobs)
