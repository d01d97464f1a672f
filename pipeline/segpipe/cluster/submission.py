"""A command submitted as jobs, and followed to their end; the same command goes on with what is left.

JOBS/submission.json     which jobs there are, for whoever submitted them alone
JOBS/task_0.json, ...    how each ended
JOBS/12_0_0_log.err      what each wrote, of submitit
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.cluster.jobs import UNKNOWN, Engine, Resources, engine_of, last_words
from segpipe.cluster.tasks import Task
from segpipe.common.console import quoted
from segpipe.common.files import cannot_write, json_text, read_json, write_text
from segpipe.common.folder_lock import locked
from segpipe.errors import BUG, INTERRUPTED, OK, SOME_FAILED, SOME_HELD, DataError, UsageError

STATE = "submission.json"
SCHEMA_VERSION = 1
ENDED_WELL = (OK, SOME_FAILED, SOME_HELD)
POLL_S = 2.0
GRACE_S = 30.0  # for the result of a job to be seen on a shared file system, after the job has gone
Progress = Callable[[str], object]


def submit(
    tasks: Sequence[Task],
    jobs: Path,
    engine: str,
    resources: Resources,
    progress: Progress,
    wait: bool = True,
    poll_s: float = POLL_S,
    grace_s: float = GRACE_S,
) -> dict[str, Any]:
    """Submit what has not ended well and is not at work, and wait for all.

    Args:
        tasks: of `segpipe.cluster.planned`.
        jobs: folder of the jobs' files, on a file system that the nodes share.
        engine: ``slurm``, ``local`` or ``ray``.
        resources: of each job.
        progress: called with a line whenever a job changes.
        wait: follow them to their end; else return when they are submitted.
        poll_s: seconds between looks.
        grace_s: seconds after which a job without a result, that is gone, is dead.

    Returns:
        The content of ``submission.json``.

    Raises:
        UsageError: the folder is of another command or not its owner's alone, another process follows them, or they
            cannot be submitted.
        DataError: ``submission.json`` cannot be read.
        KeyboardInterrupt: jobs of Slurm go on, and the same command follows them.
    """
    _keep_private(jobs)
    with locked(jobs, UsageError("another process follows these jobs", path=jobs, hint="wait for it")):
        followed = _Followed(tasks, jobs, engine, engine_of(engine, jobs, resources), progress, grace_s)
        try:
            followed.submit()
            if wait:
                while followed.look():
                    time.sleep(poll_s)
                    followed.submit()
        except KeyboardInterrupt:
            followed.cancel()
            raise
        return followed.document


def exit_code(document: Mapping[str, Any]) -> int:
    """Return the exit code of all jobs together: of the first that failed, else 4 or 6 where one had it."""
    codes = [
        BUG if row["state"] == "died" else row["code"] for row in document["tasks"] if row["state"] in ("ended", "died")
    ]
    bad = [code for code in codes if code not in ENDED_WELL]
    return bad[0] if bad else next((code for code in (SOME_FAILED, SOME_HELD) if code in codes), OK)


class _Followed:
    """Jobs that are submitted and looked after."""

    def __init__(
        self, tasks: Sequence[Task], jobs: Path, name: str, engine: Engine, progress: Progress, grace_s: float
    ) -> None:
        self._tasks, self._folder, self._engine, self._say, self._grace_s = tasks, jobs, engine, progress, grace_s
        self.document = _open(tasks, jobs, name)
        self._gone: dict[int, float] = {}
        self._said_unknown = False
        states = engine.states([row["job"] for row in self._rows if row["job"]])
        for position, row in enumerate(self._rows):
            if row["state"] == "submitted" and self._code(position) is None and row["job"] not in states:
                row["state"] = "waiting"  # it died while nobody looked
            elif row["state"] in ("ended", "died") and row["code"] not in ENDED_WELL:
                row.update(state="waiting", code=None)  # it is tried again
            elif row["state"] == "ended":
                self._take_what_ended(position)

    @property
    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.document["tasks"]
        return rows

    def _take_what_ended(self, position: int) -> None:
        """Leave what ended well, unless what it made is gone, or that of those that it is after."""
        row, task = self._rows[position], self._tasks[position]
        others = any(each["state"] == "waiting" for each in self._rows)
        if task.is_there() and not (task.after and others):
            self._say(f"{row['name']}: ended before, exit code {row['code']}; with another --jobs it runs again")
            return
        row.update(state="waiting", code=None)
        why = f"{task.made} is not there" if not task.is_there() else "others run again"
        self._say(f"{row['name']}: ended before, but {why}: it runs again")

    def submit(self) -> None:
        """Submit what waits; what is after others, only when these have ended well."""
        waiting = [position for position, row in enumerate(self._rows) if row["state"] == "waiting"]
        first = [position for position in waiting if not self._tasks[position].after]
        others = all(
            row["code"] in ENDED_WELL for row, task in zip(self._rows, self._tasks, strict=True) if not task.after
        )
        chosen = first or (waiting if others else [])
        if not chosen:
            return
        for position in chosen:
            Path(self._tasks[position].result).unlink(missing_ok=True)
        ids = self._engine.submit([self._tasks[position] for position in chosen])
        for position, job in zip(chosen, ids, strict=True):
            self._rows[position].update(state="submitted", job=job, code=None)
        self._write()  # first: whoever reads that they are submitted may end this
        for position, job in zip(chosen, ids, strict=True):
            self._say(f"{self._rows[position]['name']}: submitted as job {job}")

    def look(self) -> bool:
        """Take what has changed; return whether there is more to wait for."""
        submitted = [position for position, row in enumerate(self._rows) if row["state"] == "submitted"]
        states = self._engine.states([self._rows[position]["job"] for position in submitted])
        if UNKNOWN in states.values() and not self._said_unknown:
            self._say("squeue does not answer: nothing is known of the jobs until it does")
        self._said_unknown = UNKNOWN in states.values()
        for position in submitted:
            row, code = self._rows[position], self._code(position)
            if code is not None:
                row.update(state="ended", code=code)
                self._say(f"{row['name']}: {'finished' if code in ENDED_WELL else f'failed, exit code {code}'}")
                self._show(row, code not in ENDED_WELL)
            elif row["job"] not in states:
                since = self._gone.setdefault(position, time.monotonic())
                if time.monotonic() - since >= self._grace_s:
                    del self._gone[position]
                    row.update(state="died")
                    self._say(
                        f"{row['name']}: job {row['job']} is gone without a result; the same command tries it again"
                    )
                    self._show(row, True)
            else:
                self._gone.pop(position, None)
        self._write()
        return any(row["state"] == "submitted" for row in self._rows) or self._has_next()

    def cancel(self) -> None:
        """End what would otherwise outlive its engine."""
        self._engine.cancel([row["job"] for row in self._rows if row["job"] and row["state"] == "submitted"])

    def _has_next(self) -> bool:
        waiting = any(row["state"] == "waiting" for row in self._rows)
        failed = any(row["state"] == "died" or row["code"] not in (*ENDED_WELL, None) for row in self._rows)
        return waiting and not failed

    def _show(self, row: Mapping[str, Any], failed: bool) -> None:
        for line in last_words(self._folder, row["job"]) if failed else ():
            self._say(f"  | {line}")

    def _code(self, position: int) -> int | None:
        path = Path(self._tasks[position].result)
        if not path.is_file():
            return None
        code = read_json(path, "result of a job")["code"]
        return INTERRUPTED if code < 0 else int(code)

    def _write(self) -> None:
        write_text(self._folder / STATE, json_text(self.document), mode=0o600)


def _keep_private(jobs: Path) -> None:
    """Make the folder its owner's alone: nodes run what lies there, and its files have the words of the command."""
    try:
        jobs.parent.mkdir(parents=True, exist_ok=True)
        jobs.mkdir(mode=0o700, exist_ok=True)
        found, mode = jobs.stat(), stat.S_IMODE(jobs.stat().st_mode)
        known = (jobs / STATE).is_file() or not any(jobs.iterdir())
    except OSError as error:
        raise cannot_write(jobs, error) from error
    if found.st_uid != os.geteuid():
        raise UsageError("the folder of the jobs belongs to another user", path=jobs, hint="name another --jobs")
    if mode & 0o077 and (mode & 0o022 or not known):
        raise UsageError(
            "others may write to the folder of the jobs, and nodes run what lies there"
            if mode & 0o022
            else "the folder of the jobs has other files, and would be closed to others",
            path=jobs,
            found=f"mode {mode:04o}",
            expected="0700",
            hint=f"name a folder that is not there yet, or: chmod 700 {quoted(jobs)}",
        )
    jobs.chmod(0o700)


def _open(tasks: Sequence[Task], jobs: Path, engine: str) -> dict[str, Any]:
    path = jobs / STATE
    rows = [
        {"name": task.name, "words": list(task.words), "state": "waiting", "job": None, "code": None} for task in tasks
    ]
    new = {"schema_version": SCHEMA_VERSION, "command": "submit", "engine": engine, "tasks": rows}
    if not path.is_file():
        return new
    document = read_json(path, "submission")
    try:
        known = [row["words"] for row in document["tasks"]]
        whole = all(row["state"] in ("waiting", "submitted", "ended", "died") for row in document["tasks"])
        whole = whole and all({"name", "job", "code"} <= set(row) for row in document["tasks"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError("this is not what `segpipe submit` writes", path=path, hint="name another --jobs")
    if known != [row["words"] for row in rows] or document["engine"] != engine:
        raise UsageError(
            "the folder has the jobs of another command",
            path=jobs,
            found=f"{document['engine']}: {' '.join(known[0]) if known else 'none'}",
            hint="name another --jobs",
        )
    return dict(document)
