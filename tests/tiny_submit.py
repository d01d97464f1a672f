"""A stand-in for a cluster: its jobs end as a test says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from segpipe.cluster.tasks import Task


class FakeEngine:
    """Runs nothing: each look ends the next job as `ends` says: a code, or None for one that dies."""

    def __init__(self, *ends: int | None) -> None:
        self.ends = list(ends)
        self.submitted: list[str] = []
        self.live: dict[str, Task] = {}
        self.cancelled: list[str] = []

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        ids = []
        for task in tasks:
            ids.append(str(len(self.submitted)))
            self.submitted.append(task.name)
            self.live[ids[-1]] = task
        return ids

    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        if self.live and self.ends:
            job, task = next(iter(self.live.items()))
            code = self.ends.pop(0)
            del self.live[job]
            if code is not None:
                Path(task.result).write_text(json.dumps({"code": code}))
                Path(task.folder, task.made).mkdir(parents=True, exist_ok=True)
        elif self.live:
            raise KeyboardInterrupt
        return {job: "running" for job in jobs if job in self.live}

    def cancel(self, jobs: Sequence[str]) -> None:
        self.cancelled += jobs
