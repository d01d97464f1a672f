"""Calls of the API in processes of their own: a crash or an exhausted memory there costs one call, not this process.

The parent's `Subprocesses.call` starts ``python -m segpipe.common.subprocesses``, which reads one JSON document
``{"name", "arguments"}`` from its standard input, makes that call, and prints one JSON document: ``{"result"}`` or
``{"error"}``. It dies with its parent and ends with the exit code that the same failure has at the command line.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from segpipe.common.console import quiet_libraries
from segpipe.common.processes import child_environment, end_with_parent, heed_signals, leave, no_answer, tied
from segpipe.errors import INTERRUPTED, OK, USAGE, SegpipeError, as_segpipe_error

CHILD = "segpipe.common.subprocesses"  # this module, as a process runs it
CALLABLE = (
    "segpipe.train",
    "segpipe.export",
    "segpipe.predict",
    "segpipe.prediction.batch.predict_listed",
    "segpipe.evaluate",
    "segpipe.cli.doctor.probe",
)
PATH = re.compile(r"(?<![\w.])/(?:[^\s/:;,()'\"]+/)+([^\s/:;,()'\"]*)")  # the group is the file's name
Listener = Callable[[str], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        code: exit code; negative where a signal ended the process.
        document: ``{"result": {...}}`` or ``{"error": {...}}``; empty where the process died without a word.
        seconds: wall time.
        peak_memory_mb: largest resident memory of the process, in 10^6 bytes.
        expired: it was killed, since its time was over: nothing is known of it.
    """

    code: int
    document: dict[str, Any]
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    expired: bool = False

    @property
    def result(self) -> dict[str, Any]:
        """Return the answer of the call, by its ``document()``; nothing where its results lie on disk alone."""
        result: dict[str, Any] = self.document.get("result") or {}
        return result

    @property
    def error(self) -> dict[str, Any]:
        """Return the parts of the error that ended it, as of `SegpipeError.as_dict`; empty where there is none."""
        error: dict[str, Any] = self.document.get("error") or {}
        return error

    @property
    def reason(self) -> str:
        """Say why it failed, in one line and without a path."""
        if self.error:
            parts = [self.error.get("case_id"), self.error["message"], self.error.get("found")]
            text = ": ".join(str(part).replace("\n", " ") for part in parts if part)
            return PATH.sub(r"\1", text)
        if self.code == -signal.SIGKILL:
            return "the process was killed (often by the system, for want of memory)"
        if self.code < 0:
            return f"the process crashed with {signal.Signals(-self.code).name}"
        return f"the process ended with code {self.code}"


def require_ended_well(ended: Ended, name: str = "") -> None:
    """Raise what ended a call, in the words and with the exit code that it had there.

    Args:
        ended: how it ended.
        name: of what was done, said before its words.

    Raises:
        SegpipeError: naming what it was.
    """
    if ended.code == OK:
        return
    error = ended.error
    parts = {part: error.get(part) for part in ("path", "found", "expected", "hint", "case_id")}
    words = error.get("message", ended.reason)
    failure = SegpipeError(f"{name}: {words}" if name else words, **parts)
    failure.exit_code = ended.code if ended.code > 0 else error.get("exit_code", USAGE)
    raise failure


class Subprocesses:
    """Makes calls in processes, from any thread, and can stop them all."""

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        on_line: Listener = lambda line: None,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Make a call in a process of its own and wait for its end.

        Args:
            name: of `CALLABLE`.
            arguments: keywords of the call, plain values and paths.
            on_line: called with every line on its standard error, from a thread; what it raises interrupts the process,
                as Ctrl-C would, and is raised here when that has ended.
            timeout_s: seconds after which it is killed.
            environment: variables beside those of this process.

        Raises:
            KeyboardInterrupt: it was interrupted, or `stop` was called.
        """
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = _start(environment)
            self._live.add(process.pid)
        raised: list[BaseException] = []
        listener = threading.Thread(target=_listen, args=(process, on_line, raised), daemon=True)
        listener.start()
        expired = threading.Event()
        timer = threading.Timer(timeout_s or 0, _kill, (process.pid, expired))
        if timeout_s is not None:
            timer.start()
        output = _exchange(process, {"name": name, "arguments": dict(arguments)})
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        with self._lock:
            self._live.discard(process.pid)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        listener.join()
        if process.stderr:
            process.stderr.close()
        if raised:
            raise raised[0]
        if code == INTERRUPTED or (self._stopped and code != OK):
            self.stop()
            raise KeyboardInterrupt
        late = expired.is_set() and not output
        document = {"error": {"message": no_answer(timeout_s or 0)}} if late else output
        return Ended(code, document, time.monotonic() - began, usage.ru_maxrss * 1024 / 1e6, late)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Interrupt what runs, as Ctrl-C would, or by another signal, and start nothing more."""
        with self._lock:
            self._stopped = True
            for pid in self._live:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def last_end(busy: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """Return the seconds until the last ends of those that `in_threads` works on.

    Args:
        busy: seconds that each of those that are worked on has left.
        waiting: seconds that each of those after them will last, in their order; whoever is free takes the next.
        jobs: how many at the same time.

    >>> from segpipe.common.subprocesses import last_end
    >>> last_end([10.0, 30.0], [15.0], jobs=2)
    30.0
    """
    ends = [*busy, *[0.0] * (max(1, jobs) - len(busy))]
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def in_threads(work: Callable[[T], object], values: Iterable[T], jobs: int, children: Subprocesses) -> None:
    """Work on each value, several at the same time; nothing is begun after one that failed.

    Args:
        work: what makes its calls in ``children``, which are stopped when it fails or is interrupted.
        values: in their order.
        jobs: how many at the same time.
        children: the processes.

    Raises:
        BaseException: of the first that failed, when all have ended.
    """
    ended = threading.Event()

    def run(value: T) -> None:
        if ended.is_set():
            return
        try:
            work(value)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        pending = {pool.submit(run, value) for value in values}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            ended.set()
            children.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        tied([sys.executable, "-m", CHILD]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent, which stops its children
        env=child_environment(environment),
    )


def _exchange(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
    """Send the request and return the answer; empty where there is none."""
    if not (process.stdin and process.stdout):  # as `_start` opens them
        return {}
    with suppress(BrokenPipeError), process.stdin as stream:
        stream.write(json.dumps(request, default=os.fspath).encode())
    with process.stdout as stream:
        output = stream.read()
    try:
        document = json.loads(output)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _listen(process: subprocess.Popen[bytes], on_line: Listener, raised: list[BaseException]) -> None:
    for line in process.stderr or ():
        if raised:  # it is read to its end, or the process could not end
            continue
        try:
            on_line(line.decode(errors="replace").rstrip())
        except BaseException as error:  # noqa: BLE001 - raised again by the call
            raised.append(error)
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)


def _kill(pid: int, expired: threading.Event) -> None:
    expired.set()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Make the call that standard input asks for, as the child, and leave with its exit code."""
    end_with_parent()
    heed_signals()
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no part of the answer
    quiet_libraries()
    try:
        code, document = OK, {"result": _called(json.load(sys.stdin))}
        text = json.dumps(document)
    except KeyboardInterrupt:
        code, text = INTERRUPTED, "{}"
    except Exception as failure:  # noqa: BLE001 - the parent words it for the user
        error = as_segpipe_error(failure)
        code = error.exit_code
        text = json.dumps({"error": {**error.as_dict(with_path=True), "exit_code": code}})
    with suppress(BrokenPipeError), os.fdopen(answer, "w") as stream:
        stream.write(text)
    leave(code)


def _called(request: dict[str, Any]) -> dict[str, Any] | None:
    if request["name"] not in CALLABLE:
        raise ValueError(f"{request['name']} is not among the functions that a process may be asked for")
    module, _, name = request["name"].rpartition(".")
    result = getattr(import_module(module), name)(**request["arguments"])
    document = getattr(result, "document", None)  # of the results of segpipe's own calls
    return result if isinstance(result, dict) else document() if document else None


if __name__ == "__main__":
    main()
