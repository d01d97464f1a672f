"""`segpipe submit`, its jobs and their processes killed at random: the same command ends with what one leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from random_kills import KILLS, kill_at_random, run_until
from segpipe.cli.app import run
from tiny_batches import require_whole, write_mixed

GOOD = 60


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_of_this_machine_leave_what_one_process_leaves_whatever_is_killed(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    write_mixed(tmp_path / "in", GOOD)
    out, more = tmp_path / "two", ["--threads", "1", "--no-overlay"]
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "one"), *more]) == 4
    words = ["predict", str(tiny_bundle), str(tmp_path / "in"), str(out), *more]
    submit = ["submit", "--engine", "local", "--array", "2", "--jobs", str(tmp_path / "jobs"), "--", *words]
    command = [sys.executable, "-m", "segpipe", *submit]
    kinds = {"driver": lambda own: [own.pid], "share": lambda own: at_work(out)}
    assert kill_at_random(command, out, GOOD, kinds).total() == KILLS
    assert at_work(out) == []
    run_until(4, command)
    require_whole(out, tmp_path / "one", GOOD)


def at_work(out: Path) -> list[int]:
    """Return the processes that compute shares of this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "--shard" in words:
            found.append(process.pid)
    return found
