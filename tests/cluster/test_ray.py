"""`segpipe submit --engine ray`: two nodes of a local Ray give the bytes of one process, whatever is killed meanwhile.

Ray has an environment of its own: `make test-ray`.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from random_kills import KILLS, kill_at_random, run_until
from segpipe.cli.app import run
from tiny_batches import require_whole, write_mixed

GOOD, NODES = 60, 2
# a head without cores, and two nodes of one; for each line that it reads one more
HEAD = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0, "include_dashboard": False})
def add():
    node = cluster.add_node(num_cpus=1, **small)
    print("raylet", node.all_processes["raylet"][0].process.pid, flush=True)
add()
add()
print("address", cluster.address, flush=True)
for _ in sys.stdin:
    add()
cluster.shutdown()
"""


def test_a_cluster_has_to_be_named(tmp_path: Path, capsys: Any) -> None:
    words = ["submit", "--engine", "ray", "--jobs", str(tmp_path / "jobs")]
    assert run([*words, "--", "predict", "a", "b", "c"]) == 2
    assert "give --address HOST:PORT" in capsys.readouterr().err
    assert run([*words, "--no-wait", "--address", "127.0.0.1:1", "--", "predict", "a", "b", "c"]) == 2
    assert "only Slurm keeps jobs" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["submit", "--engine", "ray", "--address", "127.0.0.1:1", "--jobs", str(tmp_path / "jobs")]
    assert run([*words, "--", "predict", "a", "b", "c"]) == 2
    assert "pip install 'segpipe[cluster]'" in capsys.readouterr().err


@dataclass
class LocalRay:
    """A cluster of this machine.

    Attributes:
        address: of its head.
        process: that holds it.
        raylets: process ids of the nodes that have a core.
    """

    process: subprocess.Popen[str]
    raylets: list[int] = field(default_factory=list)
    address: str = ""

    def read(self) -> None:
        """Read what it says until both nodes are there."""
        while len(self.live_raylets()) < NODES or not self.address:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, "Ray did not start"
            word, _, value = line.strip().partition(" ")
            if word == "raylet":
                self.raylets.append(int(value))
            elif word == "address":
                self.address = value

    def live_raylets(self, own: object = None) -> list[int]:
        """Return those that run."""
        return [pid for pid in self.raylets if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]

    def replace(self, kind: str) -> None:
        """Add a node where one was killed."""
        if kind == "raylet" and self.process.stdin is not None:
            time.sleep(0.1)
            self.process.stdin.write("another\n")
            self.process.stdin.flush()
            self.read()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRay]:
    try:
        import ray  # noqa: F401
    except ImportError:
        pytest.skip("Ray's environment is not made (make test-ray)")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nobody else's tasks
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        (Path(folder) / "ray").mkdir()
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}  # 15: it starves
        environment = {**os.environ, **token, **settings}
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for name, value in token.items():
            patch.setenv(name, value)
        assert process.stdin is not None
        try:
            found = LocalRay(process)
            found.read()
            yield found
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_leave_what_one_process_leaves_whatever_is_killed(
    cluster: LocalRay, tiny_bundle: Path, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "in", GOOD)
    out, more = tmp_path / "two", ["--threads", "1", "--no-overlay"]
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "one"), *more]) == 4
    submit = ["submit", "--engine", "ray", "--address", cluster.address, "--array", "2"]
    words = ["predict", str(tiny_bundle), str(tmp_path / "in"), str(out), *more]
    command = [sys.executable, "-m", "segpipe", *submit, "--jobs", str(tmp_path / "jobs"), "--", *words]
    kinds = {"driver": lambda own: [own.pid], "task": lambda own: tasks(out), "raylet": cluster.live_raylets}
    killed = kill_at_random(command, out, GOOD, kinds, cluster.replace)
    assert killed.total() == KILLS
    run_until(4, command)
    require_whole(out, tmp_path / "one", GOOD)


def tasks(out: Path) -> list[int]:
    """Return Ray's worker processes that have begun a share of this folder, and those shares."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "--shard" in words and "submit" not in words:
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.info["ppid"])
                ours = "ray::" in parent.name() or "ray::" in " ".join(parent.cmdline())
                found += [process.pid, *([parent.pid] if ours else [])]
    return found
