"""One real worker for all tests of the command, in-process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from segpipe.prediction import batch
from segpipe.prediction.client import Worker


class LentWorker(Worker):
    def close(self) -> None:
        if self.about.get("returned"):
            super().close()


@pytest.fixture(scope="session")
def lent() -> Iterator[dict[str, LentWorker]]:
    workers: dict[str, LentWorker] = {}
    yield workers
    for worker in workers.values():
        worker.about = {"returned": True}
        worker.close()


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch, lent: dict[str, LentWorker]) -> None:
    original = batch.worker_for

    def worker_for(*arguments: Any) -> LentWorker:
        made = original(*arguments)
        key = json.dumps([made.recipe, made.terms], sort_keys=True)
        return lent.setdefault(key, LentWorker(made.recipe, made.terms))

    monkeypatch.setattr(batch, "worker_for", worker_for)
