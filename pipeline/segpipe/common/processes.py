"""The same work for many cases, in this process or in several; a process that dies costs one case, not the batch.

The ordinary commands as processes of their own: how they end, what they print, how much memory they take.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from segpipe.errors import INTERRUPTED

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
MOST_WORKERS = 4  # each holds whole volumes, and the disk is one
BYTES_WORTH_A_WORKER = 30_000_000  # of image files: below, starting a process takes longer than what it would share

Job = TypeVar("Job")
Result = TypeVar("Result")


def die_with_parent() -> None:
    """Ask Linux to end this process with the one that started it; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use: by its affinity, and by the time that its control group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such group, or "max"
        time_us, period_us = (int(word) for word in quota.read_text().split())
        cores = min(cores, max(1, round(time_us / period_us)))
    return cores


def workers_to_read(files: Iterable[Path]) -> int:
    """As many processes as reading these files is worth, at most one a core and four."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    return max(1, min(MOST_WORKERS, usable_cores(), size // BYTES_WORTH_A_WORKER))


def over_cases(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    lost: Callable[[Job], Result],
    on_done: Callable[[Job], object] = lambda job: None,
) -> list[Result]:
    """Do the work for every job.

    Args:
        work: of one job; with several workers both must be picklable. What it raises ends the batch.
        jobs: one a case.
        workers: processes; 1 works in this one.
        lost: the result of a job whose process died even when it had the machine for itself.
        on_done: called in this process with each job that is done.

    Returns:
        The results in the order of the jobs.
    """
    if workers <= 1 or len(jobs) <= 1:
        results = []
        for job in jobs:
            results.append(work(job))
            on_done(job)
        return results
    done: dict[int, Result] = {}

    def work_on(numbers: Sequence[int], workers: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # the progress bar's thread forbids to fork
        with ProcessPoolExecutor(workers, spawn, _leave_signals_to_the_parent) as pool:
            try:
                with suppress(BrokenProcessPool):
                    futures = {pool.submit(work, jobs[number]): number for number in numbers}
                    for future in as_completed(futures):
                        done[futures[future]] = future.result()
                        on_done(jobs[futures[future]])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    work_on(range(len(jobs)), min(workers, len(jobs)))
    for number, job in enumerate(jobs):
        if number not in done:  # a dying process takes the whole pool along: the rest each alone
            work_on([number], 1)
            if number not in done:
                done[number] = lost(job)
                on_done(job)
    return [done[number] for number in range(len(jobs))]


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


PATH = re.compile(r"(?<![\w.])/(?:[^\s/:;,()'\"]+/)+([^\s/:;,()'\"]*)")  # the group is the file's name
Listener = Callable[[str], object]
Run = Callable[[Sequence[str], Listener], "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative where a signal ended it.
        document: what it printed under ``--json``; empty where it printed none.
        seconds: wall time.
        peak_memory_mb: largest resident memory of the process, in 10^6 bytes.
    """

    code: int
    document: dict[str, Any]
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    @property
    def reason(self) -> str:
        """Why it failed, in one line and without a path."""
        error = self.document.get("error")
        if error:
            parts = [error.get("case_id"), error["message"], error.get("found")]
            text = ": ".join(str(part).replace("\n", " ") for part in parts if part)
            return PATH.sub(r"\1", text)
        if self.code == -signal.SIGKILL:
            return "the process was killed (often by the system, for want of memory)"
        if self.code < 0:
            return f"the process crashed with {signal.Signals(-self.code).name}"
        return f"the process ended with code {self.code}"


class Subprocesses:
    """Runs ``segpipe`` commands as processes, from any thread, and can stop them all."""

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, words: Sequence[str], on_line: Listener = lambda line: None) -> Ended:
        """Run a command to its end.

        Args:
            words: the command's words after ``segpipe``; ``--json`` is among them.
            on_line: called with every line on its standard error, from a thread.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = _start(words)
            self._live.add(process.pid)
        listener = threading.Thread(target=_listen, args=(process.stderr, on_line), daemon=True)
        listener.start()
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            self._live.discard(process.pid)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        listener.join()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        if code == INTERRUPTED:
            self.stop()
            raise KeyboardInterrupt
        return Ended(code, _document(output), time.monotonic() - began, usage.ru_maxrss * 1024 / 1e6)

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C would, and start nothing more."""
        with self._lock:
            self._stopped = True
            for pid in self._live:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "segpipe", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent, which stops its children
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",  # no modules from the folder that we happen to be in
            "PYTHONPATH": os.pathsep.join(paths),  # the children run the very package that this process runs
            "SEGPIPE_CHILD": "1",
        },
    )


def _listen(stream: IO[bytes], on_line: Listener) -> None:
    for line in stream:
        on_line(line.decode(errors="replace").rstrip())


def _document(output: bytes) -> dict[str, Any]:
    try:
        document = json.loads(output)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
