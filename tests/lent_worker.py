"""One real worker for all tests that segment with the same bundle: a process of its own takes seconds to start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segpipe.prediction import batch
from segpipe.prediction.client import Worker
from segpipe.prediction.protocol import to_json


class LentWorker(Worker):
    returned = False

    def close(self) -> None:
        if self.returned:
            super().close()


def lend(monkeypatch: pytest.MonkeyPatch, lent: dict[str, LentWorker], work: Path) -> None:
    """Let batches take their workers from ``lent``, by what they load; ``work`` holds all that they write."""
    original = batch.make_worker

    def make_worker(*arguments: Any) -> LentWorker:
        made = original(*arguments)
        places = replace(made.places, work=work, readable=("/",))  # of all batches that it is lent to
        return lent.setdefault(to_json(made.load), LentWorker(made.load, places))

    monkeypatch.setattr(batch, "make_worker", make_worker)


def give_back(lent: dict[str, LentWorker]) -> None:
    """End all of them."""
    for worker in lent.values():
        worker.returned = True
        worker.close()
