"""Processes: how many are worth starting, the same work for many cases in several, and how one begins and ends.

Every process that the package starts ends with the one that started it, also when that is killed: programs are started
as `tied` gives their command, and `over_cases` ties its pool. This file is also what runs in front of such a program,
and imports nothing but the standard library.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
WATCH_S = 0.5
NO_PROGRAM = 127  # as shells have it
LOST = 137  # exit code of a process that was killed
MOST_WORKERS = 4  # each holds whole volumes, and the disk is one
BYTES_OF_WORKERS = 2_000_000_000  # that all of them may take, with their parent
WORKER_BYTES, COPIES = 110_000_000, 1.5  # what one takes by itself, and of the largest file
BYTES_WORTH_A_WORKER = 30_000_000  # of image files: below, starting a process takes longer than what it would share

Progress = Callable[[int, int], object]
"""Called with what is done and of how much."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that runs the very package that this one runs, wherever it lies.

    No module comes from the folder that we happen to be in.
    """
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **(more or {}), "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def place_among_processes() -> tuple[int, int]:
    """Return the number of this process and how many there are, of those that train together; 0 and 1 alone.

    As ``torchrun`` says it to those that it starts.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    number = os.environ.get("RANK", "0")
    if not (count.isdecimal() and number.isdecimal()) or int(count) < 2:
        return 0, 1
    return int(number), int(count)


def tied(command: Sequence[str]) -> list[str]:
    """Return a command that runs the same program and ends when this process does, however that ends.

    On Linux the kernel sees to it; elsewhere a program of ours calls `end_with_parent` itself. What counts there is the
    thread that starts it, which has to last as long.
    """
    if sys.platform != "linux":
        return [*command]
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def end_with_parent(parent: int | None = None) -> None:
    """End this process with the one that started it, however that ends.

    Args:
        parent: its process id where it is known; it may have ended before this was called.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    if parent is not None and os.getppid() != parent:
        os._exit(LOST)


def end_with(owner: int) -> None:
    """End this process, and what is tied to it, when one of this machine ends that did not start it.

    For what another library starts for us, on Linux; elsewhere such a process goes on.

    Args:
        owner: process id; where it has ended before, this process ends at once.
    """
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(owner)
        except ProcessLookupError:
            os._exit(LOST)
        threading.Thread(target=_await, args=(descriptor,), daemon=True).start()


def _await(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os._exit(LOST)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(LOST)


def raise_interrupt(number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM, and SIGHUP of a terminal that was closed, as Ctrl-C."""
    if number != signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)  # a closed terminal may say so again while what was begun is put in order
    raise KeyboardInterrupt


def heed_signals() -> dict[int, Any]:
    """Have the signals that ask a command to end interrupt it; return what they did before, by number.

    Left as they are: those that this process was started to ignore, as `nohup` does.
    """
    previous: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            with suppress(ValueError):  # not the main thread
                previous[number] = signal.signal(number, raise_interrupt)
    return previous


def leave(code: int) -> NoReturn:
    """End this process in order, though threads that read cases may still be in native code.

    The interpreter's own end would kill those threads by a signal, and the exit code would be lost.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores that this process may use, by its affinity and by the time that its control group gets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such group, or "max"
        time_us, period_us = (int(word) for word in quota.read_text().split())
        cores = min(cores, max(1, round(time_us / period_us)))
    return cores


def no_answer(seconds: float) -> str:
    """Say that a process gave no answer in its time, which says more of the machine the busier that is."""
    text = f"no answer in {seconds:g} s on a machine"
    with suppress(OSError, AttributeError):  # a system without a load
        return f"{text} with load {os.getloadavg()[0]:.1f} for {usable_cores()} cores"
    return text


def workers_to_read(files: Iterable[Path]) -> int:
    """Return as many processes as reading these files is worth: at most one a core, four, and what 2 GB hold."""
    there = [file for file in files if file.is_file()]
    size = sum(file.stat().st_size for file in there)
    most = max(1, min(MOST_WORKERS, usable_cores(), size // BYTES_WORTH_A_WORKER))
    if most == 1:
        return 1
    each = WORKER_BYTES + COPIES * max(_unpacked_bytes(file) for file in there)
    return max(1, min(most, int((BYTES_OF_WORKERS - WORKER_BYTES) / each)))


def _unpacked_bytes(file: Path) -> int:
    """Return the bytes of a file once it is unpacked: of gzip, as its last four bytes have it."""
    size = file.stat().st_size
    if file.suffix.lower() != ".gz" or size < 4:
        return size
    with file.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")


def over_cases(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    lost: Callable[[Job], Result],
    on_done: Callable[[Job], object] = lambda job: None,
    progress: Progress | None = None,
) -> list[Result]:
    """Do the work for every job.

    Args:
        work: of one job; with several workers both must be picklable. What it raises ends the batch.
        jobs: one a case.
        workers: processes; 1 works in this one.
        lost: the result of a job whose process died even when it had the machine for itself.
        on_done: called in this process with each job that is done.
        progress: called in this process with the number of jobs done and of all.

    Returns:
        The results in the order of the jobs.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    n_done = 0

    def tell(job: Job) -> None:
        nonlocal n_done
        n_done += 1
        on_done(job)
        if progress is not None:
            progress(n_done, len(jobs))

    if workers <= 1 or len(jobs) <= 1:
        results = []
        for job in jobs:
            results.append(work(job))
            tell(job)
        return results
    done: dict[int, Result] = {}

    def work_on(numbers: Sequence[int], workers: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # the progress bar's thread forbids to fork
        with ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(),)) as pool:
            try:
                with suppress(BrokenProcessPool):
                    futures = {pool.submit(work, jobs[number]): number for number in numbers}
                    for future in as_completed(futures):
                        done[futures[future]] = future.result()
                        tell(jobs[futures[future]])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    work_on(range(len(jobs)), min(workers, len(jobs)))
    for number, job in enumerate(jobs):
        if number not in done:  # a dying process takes the whole pool along: the rest each alone
            work_on([number], 1)
            if number not in done:
                done[number] = lost(job)
                tell(job)
    return [done[number] for number in range(len(jobs))]


def _begin(parent: int) -> None:
    """Leave signals of the terminal to the parent, and end with it."""
    end_with_parent(parent)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main() -> None:
    """Run the program of the command line in this process, tied to the parent that it names first."""
    end_with_parent(int(sys.argv[1]))
    with suppress(OSError):
        os.execvp(sys.argv[2], sys.argv[2:])
    sys.exit(NO_PROGRAM)


if __name__ == "__main__":
    main()
