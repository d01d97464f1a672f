"""The parent's side of the worker process: start, ask, notice its death, start again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from segpipe import errors
from segpipe.common.files import cannot_write
from segpipe.common.isolation import in_words, is_isolated
from segpipe.common.processes import tied
from segpipe.errors import RefusedError, SegpipeError
from segpipe.prediction.places import Places
from segpipe.prediction.protocol import (
    CaseFiles,
    Failed,
    Isolated,
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
Answer = TypeVar("Answer", Isolated, Loaded, Segmented)


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
        places: what it may read and write; it is isolated from all else as far as the kernel lets it.
        max_bytes: of memory at which it is ended while it is at a case; None for no limit. An address space limit
            would not do, since torch reserves far more than it uses.

    Attributes:
        loaded: what the worker said of its model.
    """

    def __init__(self, load: Load, places: Places, max_bytes: int | None = None) -> None:
        self.load = load
        self.places = places
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
            CannotGoOnError: the bundle is refused, its model cannot be loaded, or it would have to be isolated and
                cannot be.
        """
        for attempt in range(START_ATTEMPTS):
            if self._process is not None and self.loaded is not None:
                break
            try:
                self._spawn()
                isolated = vars(self._ask(json.dumps(self.places.request) + "\n", Isolated))
                if self.places.is_required and not is_isolated(isolated):
                    raise _not_isolated(isolated)
                isolation, reason = in_words(isolated)
                loaded = self._ask(to_json(self.load), Loaded)
                self.loaded = replace(loaded, isolation=isolation, isolation_reason=reason)
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
        return self._ask(to_json(request), Segmented, timeout_s, self.max_bytes, meanwhile)

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
        with contextlib.suppress(OSError):  # what it may have started where nothing forbids that
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._listener:
            self._listener.join(timeout=1)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        shutil.rmtree(self.places.private, ignore_errors=True)

    def _spawn(self) -> None:
        self._answers.clear()
        self._words.clear()
        try:
            self.places.make()
        except OSError as error:
            raise cannot_write(self.places.work, error) from error
        self._process = subprocess.Popen(
            tied(self.places.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the worker
            env=self.places.environment,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stream: Any) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                self._words.append(line.decode(errors="replace").rstrip())

    def _ask(
        self,
        line: str,
        answered_by: type[Answer],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise SegpipeError("the worker was not started")
        try:
            process.stdin.write(line.encode())
            process.stdin.flush()
            if meanwhile is not None:
                meanwhile()
            deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
            poll_s = math.inf if max_bytes is None else MEMORY_POLL_S
            check = partial(self._check_limits, deadline, max_bytes)
            answered = read_line(process.stdout.fileno(), self._answers, deadline, poll_s, check)
        except OSError:
            answered = b""
        except BaseException:  # too late, or interrupted: its answer must not be taken for the next one's
            self.close()
            raise
        if not answered.endswith(b"\n"):
            raise self._death(process)
        answer = from_json(answered)
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


def _not_isolated(isolated: dict[str, str | None]) -> SegpipeError:
    return RefusedError(
        "the bundle brings code of its own or was let through, and nothing here can isolate it",
        found=in_words(isolated)[1],
        expected="seccomp or Landlock, which Linux has",
        hint="run it on such a machine; --allow-unisolated lets it do on this one whatever you may do",
    )


def _cannot_start(death: WorkerDiedError) -> SegpipeError:
    return errors.UsageError(
        "the model's process ends while it starts",
        found=f"{death.reason}; {' | '.join(death.last_words[-2:])}",
        hint="free some memory, or try --device cpu or --runtime torch",
    )
