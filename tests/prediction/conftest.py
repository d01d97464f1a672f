"""One real worker for all tests of the command, in-process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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


@pytest.fixture(scope="session")
def lent() -> Iterator[dict[str, LentWorker]]:
    workers: dict[str, LentWorker] = {}
    yield workers
    for worker in workers.values():
        worker.returned = True
        worker.close()


@pytest.fixture
def one_worker(
    monkeypatch: pytest.MonkeyPatch, lent: dict[str, LentWorker], tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = batch.make_worker

    def make_worker(*arguments: Any) -> LentWorker:
        made = original(*arguments)
        # of all batches that it is lent to
        places = replace(made.places, work=tmp_path_factory.getbasetemp(), readable=("/",))
        return lent.setdefault(to_json(made.load), LentWorker(made.load, places))

    monkeypatch.setattr(batch, "make_worker", make_worker)
