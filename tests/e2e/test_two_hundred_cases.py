"""200 cases, 10 of them bad: shares and processes leave what one process leaves, whatever is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from random_kills import KILLS, finished, kill_at_random
from segpipe.cli.app import run
from tiny_batches import BAD, require_whole, write_mixed
from whole_commands import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES = 200
GOOD = CASES - len(BAD)


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``in``, and ``whole``: what one process makes of it."""
    folder = tmp_path_factory.mktemp("two_hundred")
    write_mixed(folder / "in", GOOD)
    assert run(words(tiny_bundle, folder, "whole")) == 4
    return folder


def words(bundle: Path, folder: Path, out: str, *more: str) -> list[str]:
    paths = [str(bundle), str(folder / "in"), str(folder / out)]
    return ["predict", *paths, "--threads", "1", "--no-overlay", *more]


def test_shares_leave_what_one_process_leaves(tiny_bundle: Path, folder: Path) -> None:
    began = [start(*words(tiny_bundle, folder, "shares", "--shard", f"{index}/2")) for index in range(2)]
    said = [process.communicate()[0] for process in began]
    assert [process.returncode for process in began] == [4, 4], said
    require_whole(folder / "shares", folder / "whole", GOOD)


def test_two_processes_of_which_some_are_killed(tiny_bundle: Path, folder: Path) -> None:
    out = folder / "workers"
    command = [sys.executable, "-m", "segpipe", *words(tiny_bundle, folder, "workers", "--workers", "2", "--json")]
    kinds = {"driver": lambda own: [own.pid], "share": shares, "worker": workers}
    killed = kill_at_random(command, out, GOOD, kinds)
    before = finished(out)
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 4, last.stderr
    assert before.items() <= finished(out).items() and killed.total() == KILLS
    document = json.loads(last.stdout)
    assert len(document["cases"]) == CASES
    counts = document["counts"]
    assert (counts["done"] + counts["skipped"], counts["failed"], counts["refused"]) == (GOOD, len(BAD), 0)
    require_whole(out, folder / "whole", GOOD)


def shares(own: psutil.Process) -> list[int]:
    return [child.pid for child in own.children()]


def workers(own: psutil.Process) -> list[int]:
    """The processes that compute, of each share one."""
    return [each.pid for each in own.children(recursive=True) if each.pid not in shares(own)]
