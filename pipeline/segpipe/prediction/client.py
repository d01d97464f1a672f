"""The parent's side of the worker process: start, ask, notice its death, start again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from segpipe import errors
from segpipe.errors import SegpipeError

LAST_LINES = 8
START_ATTEMPTS = 2
MEMORY_POLL_S = 0.1


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
        recipe: the plain values of `segpipe.inference.segmenter.Recipe`.
        terms: on which the bundle may run, as `segpipe.bundle.vet.gate.vet_recipe` takes them.
        most_bytes: of memory at which it is ended while it is at a case; None for no limit. An address space limit
            would not do, since torch reserves far more than it uses.
    """

    def __init__(self, recipe: dict[str, Any], terms: dict[str, Any], most_bytes: int | None = None) -> None:
        self.recipe = recipe
        self.terms = terms
        self.most_bytes = most_bytes
        self.about: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = b""
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        self._listener: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and load the model, unless both are there.

        Raises:
            CannotGoOnError: the bundle is refused, or its model cannot be loaded.
        """
        for attempt in range(START_ATTEMPTS):
            if self._process is not None:
                return
            self._spawn()
            try:
                self.about = self._ask({"op": "load", "recipe": self.recipe, "terms": self.terms}, None)
            except WorkerDiedError as death:
                if attempt + 1 == START_ATTEMPTS:
                    raise CannotGoOnError(_cannot_start(death)) from death
            except SegpipeError as error:
                self.close()
                raise CannotGoOnError(error) from error

    def segment(
        self,
        paths: list[str],
        out: str,
        timeout_s: float | None = None,
        meanwhile: Callable[[], object] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Have one case segmented into the file ``out``.

        Args:
            paths: of its files.
            out: the NIfTI label map.
            timeout_s: seconds that it may take.
            meanwhile: called once the worker was asked, before its answer is waited for.
            more: what else the request of `segpipe.prediction.worker` may have.

        Raises:
            WorkerDiedError, WorkerTimeoutError, WorkerMemoryError: as they say.
            SegpipeError: why this case cannot be segmented.
            CannotGoOnError: why no further case can be.
        """
        self.start()
        request = {"op": "segment", "paths": paths, "out": out, **more}
        return self._ask(request, timeout_s, self.most_bytes, meanwhile)

    def prefetch(self, key: str, paths: list[str], series: dict[str, Any] | None) -> None:
        """Have a case read while another is computed, to be segmented under the same ``key`` next.

        Nothing is answered, and a worker that has died meanwhile is passed over.
        """
        process = self._process
        request = {"op": "ahead", "key": key, "paths": paths, "series": series, "most_bytes": self.most_bytes}
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write((json.dumps(request) + "\n").encode())
                process.stdin.flush()

    def close(self) -> None:
        """End the process; nothing that it was at is kept."""
        process, self._process = self._process, None
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
        self._answers = b""
        self._words.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "segpipe.prediction.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the worker
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no modules from the folder that we happen to be in
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stream: Any) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                self._words.append(line.decode(errors="replace").rstrip())

    def _ask(
        self,
        request: dict[str, Any],
        timeout_s: float | None,
        most_bytes: int | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise SegpipeError("the worker was not started")
        try:
            process.stdin.write((json.dumps(request) + "\n").encode())
            process.stdin.flush()
            if meanwhile is not None:
                meanwhile()
            line = self._read_line(process.stdout.fileno(), timeout_s, most_bytes)
        except OSError:
            line = b""
        except BaseException:  # too late, or interrupted: its answer must not be taken for the next one's
            self.close()
            raise
        if not line.endswith(b"\n"):
            raise self._death(process)
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise CannotGoOnError(_as_error(answer)) if answer["stop"] else _as_error(answer)
        return answer

    def _read_line(self, handle: int, timeout_s: float | None, most_bytes: int | None) -> bytes:
        """A line, or what there was of it at the end of the pipe."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        poll_s = math.inf if most_bytes is None else MEMORY_POLL_S
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while b"\n" not in self._answers:
                wait = min(poll_s, max(0.0, deadline - time.monotonic()))
                if not selector.select(None if wait == math.inf else wait):
                    if time.monotonic() >= deadline:
                        raise WorkerTimeoutError
                    if most_bytes is not None and self._resident() > most_bytes:
                        raise WorkerMemoryError
                    continue
                block = os.read(handle, 1 << 16)
                if not block:
                    break
                self._answers += block
        line, newline, self._answers = self._answers.partition(b"\n")
        return line + newline

    def _resident(self) -> int:
        """Bytes of memory that the process has."""
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


def _as_error(answer: dict[str, Any]) -> SegpipeError:
    kind = getattr(errors, answer["kind"], SegpipeError)
    kind = kind if isinstance(kind, type) and issubclass(kind, SegpipeError) else SegpipeError
    parts = dict(answer["error"])
    if answer.get("reason"):
        return errors.DataError(parts.pop("message"), reason=answer["reason"], **parts)
    error: SegpipeError = kind(parts.pop("message"), **parts)
    return error


def _cannot_start(death: WorkerDiedError) -> SegpipeError:
    return errors.UsageError(
        "the model's process ends while it starts",
        found=f"{death.reason}; {' | '.join(death.last_words[-2:])}",
        hint="free some memory, or try --device cpu or --runtime torch",
    )
