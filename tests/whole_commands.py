"""Commands as a user starts them: a process each, listened to until it says something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Start ``segpipe`` in a session of its own; all that it says comes from its standard output."""
    return subprocess.Popen(
        [sys.executable, "-m", "segpipe", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read until a line begins with the words.

    Raises:
        AssertionError: it ended before.
    """
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if line.startswith(words):
            return
    raise AssertionError(f"ended without {words!r}: {lines}")
