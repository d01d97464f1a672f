"""Kill -9 of what a command runs, at random moments: what is finished stays as it is, and nothing of it outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

KILLS = int(os.environ.get("KILLS", "3"))  # bench/kills.py asks for more
Found = Callable[[psutil.Process], Sequence[int]]


def kill_at_random(
    command: list[str],
    out: Path,
    cases: int,
    kinds: Mapping[str, Found],
    after: Callable[[str], object] = lambda kind: None,
) -> Counter[str]:
    """Run a command, again where it has ended, and kill one of its processes `KILLS` times.

    Args:
        command: its words.
        out: the result folder that it fills.
        cases: about how many it fills it with; the moments lie before three quarters of them.
        kinds: by name, which processes may be killed, of the command's own.
        after: called with the kind after each.

    Returns:
        How many of each kind were killed.
    """
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")  # pytest shows it with a failure
    rng, killed = np.random.default_rng(seed), Counter[str]()
    process, before = _silent(command), finished(out)
    for threshold in sorted(rng.integers(0, cases * 3 // 4, KILLS)):
        while len(finished(out)) < threshold and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))  # also while the next ones start
        if process.poll() is not None:  # one of its processes was killed too often
            process = _silent(command)
        kind = _kill_one(process, kinds, rng)
        killed[kind] += 1
        after(kind)
        assert before.items() <= finished(out).items()  # what is finished is left as it is
        before = finished(out)
    print(f"killed {dict(killed)}")
    process.wait()
    assert before.items() <= finished(out).items()
    return killed


def run_until(code: int, command: list[str], tries: int = 6) -> subprocess.CompletedProcess[str]:
    """Give a command again until it ends with an exit code: what outlived a killed one holds its share for a moment."""
    for _ in range(tries):
        last = subprocess.run(command, capture_output=True, text=True, check=False)
        if last.returncode == code:
            return last
        time.sleep(1)
    raise AssertionError(last.stdout + last.stderr)


def finished(out: Path) -> dict[str, int]:
    """Return the result of each finished case, with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in out.glob("[!.]*/result.json")}


def _kill_one(process: subprocess.Popen[bytes], kinds: Mapping[str, Found], rng: np.random.Generator) -> str:
    while True:
        if process.poll() is not None:
            return "nothing: it had ended"
        own = psutil.Process(process.pid)
        below = own.children(recursive=True)
        found = {kind: pids for kind, of in kinds.items() if (pids := of(own))}
        kind = str(rng.choice(sorted(found)))
        try:
            os.kill(found[kind][int(rng.integers(len(found[kind])))], signal.SIGKILL)
        except ProcessLookupError:  # it has ended meanwhile
            continue
        if kind == "driver":
            process.wait()
            _, left = psutil.wait_procs(below, 30)
            assert not left  # what it has begun ends with it
        return kind


def _silent(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
