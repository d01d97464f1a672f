"""The parent's side of the worker process: start, ask, notice its death, start again."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from segpipe import errors
from segpipe.common.processes import child_environment
from segpipe.errors import SegpipeError
from segpipe.prediction.protocol import (
    CaseFiles,
    Failed,
    Load,
    Loaded,
    Prefetch,
    Segment,
    Segmented,
    from_json,
    read_line,
    to_json,
)

LAST_LINES = 8
START_ATTEMPTS = 2
MEMORY_POLL_S = 0.1
Answer = TypeVar("Answer", Loaded, Segmented)


class WorkerDiedError(Exception):
    """The worker ended without an answer; ``reason`` says how, ``last_words`` are its last lines."""

    def __init__(self, reason: str, last_words: list[str]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.last_words = last_words


class WorkerTimeoutError(Exception):
    """The worker gave no answer in time and was ended."""


class WorkerMemoryError(Exception):
    """The worker took more memory than it may and was ended."""


class CannotGoOnError(Exception):
    """What ends the batch, not only a case: a model that cannot be loaded, a full disk."""

    def __init__(self, cause: SegpipeError) -> None:
        super().__init__(cause.message)
        self.cause = cause


class Worker:
    """A worker process with a model in it, started when first needed and again after it died.

    Args:
        load: what the model is made from, and on which terms.
        max_bytes: of memory at which it is ended while it is at a case; None for no limit. An address space limit
            would not do, since torch reserves far more than it uses.

    Attributes:
        loaded: what the worker said of its model.
    """

    def __init__(self, load: Load, max_bytes: int | None = None) -> None:
        self.load = load
        self.max_bytes = max_bytes
        self.loaded: Loaded | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = bytearray()  # not taken yet
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        self._listener: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Loaded:
        """Start the process and load the model, unless both are there.

        Raises:
            CannotGoOnError: the bundle is refused, or its model cannot be loaded.
        """
        for attempt in range(START_ATTEMPTS):
            if self._process is not None and self.loaded is not None:
                break
            self._spawn()
            try:
                self.loaded = self._ask(self.load, Loaded)
            except WorkerDiedError as death:
                if attempt + 1 == START_ATTEMPTS:
                    raise CannotGoOnError(_cannot_start(death)) from death
            except SegpipeError as error:
                self.close()
                raise CannotGoOnError(error) from error
        if self.loaded is None:
            raise SegpipeError("the worker was not started")
        return self.loaded

    def segment(
        self, request: Segment, timeout_s: float | None = None, meanwhile: Callable[[], object] | None = None
    ) -> Segmented:
        """Have one case segmented.

        Args:
            request: the case, and what of it is written where.
            timeout_s: seconds that it may take.
            meanwhile: called once the worker was asked, before its answer is waited for.

        Raises:
            WorkerDiedError, WorkerTimeoutError, WorkerMemoryError: as they say.
            SegpipeError: why this case cannot be segmented.
            CannotGoOnError: why no further case can be.
        """
        self.start()
        return self._ask(request, Segmented, timeout_s, self.max_bytes, meanwhile)

    def prefetch(self, case: CaseFiles) -> None:
        """Have a case read while another is computed; it is to be segmented next.

        Nothing is answered, and a worker that has died meanwhile is passed over.
        """
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(to_json(Prefetch(case=case, max_bytes=self.max_bytes)).encode())
                process.stdin.flush()

    def close(self) -> None:
        """End the process; nothing that it was at is kept."""
        process, self._process, self.loaded = self._process, None, None
        if process is None:
            return
        process.kill()
        process.wait()
        if self._listener:
            self._listener.join(timeout=1)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _spawn(self) -> None:
        self._answers.clear()
        self._words.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "segpipe.prediction.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the worker
            env=child_environment(),
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stream: Any) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                self._words.append(line.decode(errors="replace").rstrip())

    def _ask(
        self,
        request: Load | Segment,
        answered_by: type[Answer],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise SegpipeError("the worker was not started")
        try:
            process.stdin.write(to_json(request).encode())
            process.stdin.flush()
            if meanwhile is not None:
                meanwhile()
            deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
            poll_s = math.inf if max_bytes is None else MEMORY_POLL_S
            check = partial(self._check_limits, deadline, max_bytes)
            line = read_line(process.stdout.fileno(), self._answers, deadline, poll_s, check)
        except OSError:
            line = b""
        except BaseException:  # too late, or interrupted: its answer must not be taken for the next one's
            self.close()
            raise
        if not line.endswith(b"\n"):
            raise self._death(process)
        answer = from_json(line)
        if isinstance(answer, Failed):
            raise CannotGoOnError(_as_error(answer)) if answer.stop else _as_error(answer)
        if not isinstance(answer, answered_by):
            raise SegpipeError("the worker gave another answer", found=type(answer).__name__)
        return answer

    def _check_limits(self, deadline: float, max_bytes: int | None) -> None:
        if time.monotonic() >= deadline:
            raise WorkerTimeoutError
        if max_bytes is not None and self._resident() > max_bytes:
            raise WorkerMemoryError

    def _resident(self) -> int:
        """Return the bytes of memory that the process has."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self.pid).memory_info().rss)
        return 0

    def _death(self, process: subprocess.Popen[bytes]) -> WorkerDiedError:
        try:
            code = process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code is None:
            reason = "closed its pipe"
        elif code == -signal.SIGKILL:
            reason = "was killed (often by the system, for want of memory)"
        elif code < 0:
            reason = f"crashed with {signal.Signals(-code).name}"
        else:
            reason = f"ended with code {code}"
        return WorkerDiedError(f"the worker {reason}", list(self._words))


def _as_error(failed: Failed) -> SegpipeError:
    parts = dict(failed.error)
    if failed.reason:
        return errors.DataError(parts.pop("message"), reason=failed.reason, **parts)
    kind = getattr(errors, failed.kind, SegpipeError)
    kind = kind if isinstance(kind, type) and issubclass(kind, SegpipeError) else SegpipeError
    error: SegpipeError = kind(parts.pop("message"), **parts)
    return error


def _cannot_start(death: WorkerDiedError) -> SegpipeError:
    return errors.UsageError(
        "the model's process ends while it starts",
        found=f"{death.reason}; {' | '.join(death.last_words[-2:])}",
        hint="free some memory, or try --device cpu or --runtime torch",
    )
