"""A batch on several processes of this machine: each computes a share of the cases, with its part of cores and memory.

The result folder is the only thing that they share. This process follows ``predictions.jsonl`` there, so it shows what
is finished, and reads at the end how each case ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json
from segpipe.common.memory import memory_here
from segpipe.common.processes import usable_cores
from segpipe.common.result_folder import RESULT, STATE, read_lines
from segpipe.common.shards import Shard
from segpipe.common.subprocesses import Subprocesses, in_threads, require_ended_well
from segpipe.errors import OK
from segpipe.prediction.batch_summary import ENDS, BatchProgress, Outcome
from segpipe.prediction.client import WorkerDiedError
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.options import Options

LISTED = "segpipe.prediction.batch.predict_listed"
TRIES = 3  # of a process that dies without a word; what it had finished is kept
POLL_S = 0.2
NOT_HEARD = "(not heard from another process; without --workers they are shown)"
GPUS = Path("/proc/driver/nvidia/gpus")


def predict_in_processes(
    arguments: Mapping[str, Any], out: Path, cases: Sequence[InputCase], options: Options, progress: BatchProgress
) -> list[Outcome]:
    """Segment cases in several processes.

    Args:
        arguments: of `segpipe.predict` without ``progress`` and ``workers``, bundles by their paths.
        out: the result folder.
        cases: of the batch.
        options: as they were judged.
        progress: is told how it goes.

    Returns:
        How each case ended, in the order of the cases.

    Raises:
        SegpipeError: what ended one of them, with its exit code; the others are stopped, and what is finished is kept.
    """
    children, number = Subprocesses(), min(options.workers, max(1, len(cases)))
    before = len(list(read_lines(out / STATE)))
    own = _own_parts(options, number)

    def compute(index: int) -> None:
        shard = Shard(index, number)
        # not listed anew by the process: others may have arrived, and shares would meet
        listed = [case.id for case in shard.of(cases)]
        asked = {**arguments, **own[index], "shard": str(shard), "cases": listed}
        for attempt in range(TRIES):
            ended = children.call(LISTED, asked)
            if ended.code == OK:
                return
            if ended.error or attempt + 1 == TRIES:
                require_ended_well(ended, "" if ended.error else f"process {index + 1} of {number}")

    with _Followed(out, before, progress) as followed:
        in_threads(compute, range(number), number, children)
    return [followed.outcome(case) for case in cases]


def _own_parts(options: Options, number: int) -> list[dict[str, Any]]:
    """Return the threads, memory and device of each process, where the user named none."""
    model = options.model
    threads = model.threads or max(1, usable_cores() // number)
    memory = model.max_memory or memory_here().free
    gpus = visible_gpus() if model.device == "auto" else 0
    parts: dict[str, Any] = {"threads": threads, "max_memory": memory // number}
    return [{**parts, **({"device": f"cuda:{index % gpus}"} if gpus else {})} for index in range(number)]


def visible_gpus() -> int:
    """Return how many NVIDIA GPUs a process may use, without asking their driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(GPUS.glob("*")))
    return there if visible is None else min(there, len([name for name in visible.split(",") if name.strip()]))


class _Followed:
    """The events of a result folder from a line on, told to who shows them."""

    def __init__(self, out: Path, before: int, progress: BatchProgress) -> None:
        self._out, self._before, self._progress = out, before, progress
        self._last: dict[str, dict[str, Any]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Followed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._read()

    def outcome(self, case: InputCase) -> Outcome:
        """Return how a case ended."""
        event = self._last[case.id]
        result = {}
        if event["event"] in ("done", "skipped"):
            result = read_json(self._out / case.id / RESULT, "result")
        return Outcome(case.id, event["event"], event.get("seconds"), event.get("reason"), event.get("detail"), result)

    def _follow(self) -> None:
        while not self._over.wait(POLL_S):
            self._read()

    def _read(self) -> None:
        """Take note of the lines that are whole; of one that is being written the rest comes with the next look."""
        events = list(read_lines(self._out / STATE))
        for event in events[self._before :]:
            if event.get("event") in (*ENDS, "skipped"):
                again = event["id"] in self._last  # by a process that was started again
                if not (again and event["event"] == "skipped"):
                    self._last[event["id"]] = event
                if not again:
                    self._progress.finished(Outcome(event["id"], event["event"], event.get("seconds")))
            elif event.get("event") == "crashed":
                self._progress.crashed(event["id"], WorkerDiedError(event["reason"], [NOT_HEARD]))
        self._before = max(self._before, len(events))
