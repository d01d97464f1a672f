"""Work on what is finished while the next is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def work_aside(items: Iterable[Item], work: Callable[[Item], object]) -> tuple[float, float]:
    """Work on each item, in order, in a second thread while the next item is made in this one.

    One item is being worked on and none waits, so that memory stays bounded: making the next but one waits for it.
    What the work raises is raised here.

    Args:
        items: made one after the other.
        work: on one of them.

    Returns:
        Seconds for which this thread was waiting, and seconds of work.
    """
    waited = worked = 0.0

    def one(item: Item) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():  # holds for a thread
            work(item)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(1) as pool:
        busy: Future[float] | None = None
        for item in items:
            begun = time.perf_counter()
            worked += busy.result() if busy else 0.0
            waited += time.perf_counter() - begun
            busy = pool.submit(one, item)
            del item
        begun = time.perf_counter()
        worked += busy.result() if busy else 0.0
        waited += time.perf_counter() - begun
    return waited, worked
