"""What the parent of a batch does for the next case while the worker computes one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from pipeline.predict.client import Worker
from pipeline.predict.outcome import Options
from pipeline.predict.resume import describe_source
from pipeline.predict.worklist import WorkItem


class ReadAhead:
    """Describes the next case's files, then has the worker read them, one case ahead.

    Only the streaming engine reads ahead. With a limit of time nothing is read ahead, so that all of it is the case's.

    Args:
        items: the cases that will be computed, in order.
        worker: that computes them.
        options: of the batch.
    """

    def __init__(self, items: Sequence[WorkItem], worker: Worker, options: Options) -> None:
        self._next = {item.id: following for item, following in itertools.pairwise(items)}
        self._worker, self._options = worker, options
        self._aside = ThreadPoolExecutor(1)
        self._described: dict[str, Future[dict[str, Any]]] = {}

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.shutdown(cancel_futures=True)

    def behind(self, item: WorkItem) -> Callable[[], None] | None:
        """What begins to read the case behind this one, to be called when this one is under way; None for nothing."""
        following = self._next.get(item.id)
        streams = self._worker.about.get("engine") == "streaming"
        if following is None or not streams or self._options.timeout_s is not None:
            return None

        def begin() -> None:
            self._described[following.id] = self._aside.submit(self._tell, following)

        return begin

    def description(self, item: WorkItem) -> dict[str, Any]:
        """What tells the case's files again, as they were before they were read."""
        described = self._described.pop(item.id, None)
        return describe_source(item) if described is None else described.result()

    def settle(self) -> None:
        """Wait until nothing more is said to a worker that has died."""
        for described in self._described.values():
            described.exception()

    def _tell(self, item: WorkItem) -> dict[str, Any]:
        description = describe_source(item)
        self._worker.read_ahead(item.id, [str(path) for path in item.paths], _series_of(item))
        return description


def _series_of(item: WorkItem) -> dict[str, Any] | None:
    if item.series is None:
        return None
    from pipeline.dicom.plain import as_plain

    return as_plain(item.series)
