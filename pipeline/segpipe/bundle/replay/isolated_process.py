"""The parent's side of the isolated process: what it is given, how long it may take, and what it hands back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.golden import DOCUMENT, LABELS, SCORES
from segpipe.bundle.replay import isolation
from segpipe.bundle.replay.child import ANSWER

LEAST_MEMORY = 4 * 2**30
MOST_SAID = 2**20  # bytes of its answer
LAST_WORDS = 300  # characters
LOG = "log"


@dataclass(frozen=True)
class Limits:
    """What the process may take."""

    seconds: int = 900
    memory_bytes: int = LEAST_MEMORY

    @staticmethod
    def of_this_machine() -> Limits:
        """15 minutes, and the memory that is free."""
        import psutil

        return Limits(memory_bytes=max(LEAST_MEMORY, int(psutil.virtual_memory().available)))


@dataclass
class Ran:
    """What is known of the process when it has ended.

    Attributes:
        began: what it said before anything of the bundle was loaded; empty where it did not come that far.
        answer: what it wrote afterwards, which nobody vouches for.
        ended: why there is no answer; None where there is one.
    """

    began: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None

    @property
    def isolation(self) -> tuple[str | None, str | None]:
        """How far it was isolated, and why no further."""
        if not self.began:
            return None, None
        network, files = self.began["network"], self.began["files"]
        if network is not None:
            return "none", network
        return ("no network", files) if files else ("no network, no other files, no programs", None)


def run_isolated(root: Path, work: Path, request: dict[str, Any], limits: Limits) -> Ran:
    """Run `segpipe.bundle.replay.isolation` on a copy of a bundle that lacks what the golden case is expected to give.

    Args:
        root: the bundle.
        work: folder of which only this process knows.
        request: ``input`` and ``golden``, as `segpipe.bundle.replay.child.replay` takes them.
        limits: of the process.
    """
    bundle, out = work / "bundle", work / "out"
    expected = {root / name for name in (DOCUMENT, LABELS, SCORES)}
    shutil.copytree(root, bundle, ignore=lambda folder, names: {n for n in names if Path(folder, n) in expected})
    out.mkdir()
    request = {
        **request,
        "bundle": str(bundle),
        "work": str(out),
        "memory_bytes": limits.memory_bytes,
        "seconds": limits.seconds,
        "sys_path": _import_path(),
    }
    with (out / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", isolation.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=out,
            env=_environment(out),
            start_new_session=True,
        )
    late = False
    try:
        said, _ = process.communicate(json.dumps(request).encode(), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
        if late or process.returncode is None:
            said, _ = process.communicate()
    ended = f"no end within {limits.seconds} s" if late else _how_it_ended(process.returncode, out)
    return _outcome(said, ended, out)


def read_array(out: Path, name: str, most_bytes: int) -> NDArray[Any]:
    """An array that the process wrote.

    Raises:
        ValueError: it is no plain file of numbers, or larger than it may be.
    """
    try:
        _require_plain(out / name, most_bytes)
        return np.asarray(np.load(out / name, allow_pickle=False))
    except Exception as error:  # bytes that nobody vouches for may break numpy anyhow
        raise ValueError(f"{name} cannot be read: {error}") from error


def _require_plain(path: Path, most_bytes: int) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
        raise ValueError(f"{path.name} is no plain file of at most {most_bytes} bytes")


def _import_path() -> list[str]:
    """Where this process finds packages, this one first, but for folders in which the user works or lives."""
    here = Path(isolation.__file__).parents[3]
    private = (Path.cwd(), Path.home())
    found = dict.fromkeys(Path(entry).resolve() for entry in sys.path if entry)
    others = [path for path in found if not any(folder.is_relative_to(path) for folder in private)]
    return [str(path) for path in dict.fromkeys((here, *others))]


def _environment(out: Path) -> dict[str, str]:
    """Nothing of the user's but where libraries lie; numbers are computed in one way."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    home = {name: str(out) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    nobody = {"USER": "nobody", "LOGNAME": "nobody", "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **threads, **home, **nobody}


def _how_it_ended(code: int, out: Path) -> str | None:
    if code == 0:
        return None
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        why = ", as the system ends what takes too much memory" if -code == signal.SIGKILL else ""
        return f"the process was ended by {names.get(-code, -code)}{why}"
    with suppress(OSError, ValueError):
        _require_plain(out / LOG, MOST_SAID)
        if lines := (out / LOG).read_text(errors="replace").split("\n"):
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f"the process ended with code {code}: {last}"[:LAST_WORDS]
    return f"the process ended with code {code}"


def _outcome(said: bytes, ended: str | None, out: Path) -> Ran:
    ran = Ran(ended=ended)
    try:
        ran.began = json.loads(said)
    except ValueError:
        return Ran(ended=ended or "the process said nothing")
    if ended is None:
        try:
            _require_plain(out / ANSWER, MOST_SAID)
            answer = json.loads((out / ANSWER).read_text())
            ran.answer = {name: part for name, part in answer.items() if isinstance(part, dict)}
        except (OSError, ValueError, AttributeError):
            ran.ended = "the process left no answer that can be read"
    return ran
