"""Streams that are closed, full or read by nobody: the work goes on, and the exit code says what has to be said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.common import streams
from segpipe.common.processes import child_environment
from segpipe.common.streams import GuardedStream, failure
from tiny_data import write_data

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def to(path: str) -> GuardedStream:
    return GuardedStream(io.BufferedWriter(io.FileIO(path, "w")), encoding="utf-8", errors="backslashreplace")


@full
def test_a_full_stream_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = to("/dev/full")
    monkeypatch.setattr(sys, "stdout", stream)
    assert failure() is None
    stream.write("x" * 100_000)
    stream.flush()
    stream.write("more")
    stream.close()  # which flushes
    error = failure()
    assert error is not None and error.exit_code == 2
    assert (error.found, error.message) == ("No space left on device", "standard output could not be written")


def test_a_reader_that_has_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = GuardedStream(io.BufferedWriter(io.FileIO(write, "w")), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    for _ in range(3):
        stream.write("x" * 100_000)
        stream.flush()
    assert failure() is None and stream.failed is None


def test_what_can_be_written_is_written(tmp_path: Path) -> None:
    stream = to(str(tmp_path / "f"))
    stream.write("ä\n")
    stream.flush()
    assert (tmp_path / "f").read_text() == "ä\n" and stream.failed is None


def test_where_streams_are_not_guarded_there_is_nothing_to_say() -> None:
    assert streams.failure() is None


SAYS = "standard output could not be written"


@full
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "redirected", "code", "err"),
    [
        ("--help", ">&-", 0, ""),
        ("--help", "> /dev/full", 2, SAYS),
        ("--version", ">&- 2>&- <&-", 0, ""),
        ("split m.json --redraw --folds 2 --json", "> /dev/full", 2, SAYS),
        ("split m.json --redraw --folds 2 --json", ">&-", 0, ""),
        ("split m.json --redraw --folds 2", "> /dev/full", 2, SAYS),
        ("split nothing.json", "> /dev/full", 2, "no such manifest"),
        ("split nothing.json --json", ">&-", 2, ""),
        ("split nothing.json", "2> /dev/full", 2, ""),
        ("split nothing.json", "2>&-", 2, ""),
        ("split m.json --redraw --folds 2", ">&- 2>&-", 0, ""),
        ("split m.json --redraw --folds 2", "> /dev/full 2> /dev/full", 2, ""),
        ("no-such-verb", "2>&-", 2, ""),
        ("check m.json", "| head -1", 0, ""),
    ],
)
def test_commands_with_odd_streams(words: str, redirected: str, code: int, err: str, tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    line = f"set -o pipefail; {sys.executable} -m segpipe {words.replace('m.json', 'data/manifest.json')} {redirected}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert err in done.stderr and (err or not done.stderr)
    if words.startswith("split m.json --redraw --folds 2"):  # the work is done all the same
        assert json.loads((tmp_path / "data/manifest.json").read_text())["training"][0]["fold"] is not None
