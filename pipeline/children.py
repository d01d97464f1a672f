"""The ordinary commands as processes of their own: how they end, what they print, how much memory they take."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.errors import INTERRUPTED

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


class Children:
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
    package = Path(__file__).resolve().parents[1]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
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
