"""`segpipe submit --engine ray`: two workers of a local Ray give the bytes of one process, also where one is killed.

Ray has an environment of its own: `make test-ray`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segpipe.cli.app import run
from segpipe.common.result_folder import SEGMENTATION
from whole_commands import start, wait_for

HEAD = """
import os, sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
         logging_level="ERROR", _temp_dir=sys.argv[1])
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    try:
        import ray  # noqa: F401
    except ImportError:
        pytest.skip("Ray's environment is not made (make test-ray)")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nobody else's tasks
    environment = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        head = subprocess.Popen(
            [sys.executable, "-c", HEAD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name, value in token.items():
            patch.setenv(name, value)
        assert head.stdin is not None and head.stdout is not None
        try:
            yield next(line.split()[1] for line in head.stdout if line.startswith("address"))
        finally:
            head.stdin.close()
            head.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_give_the_bytes_of_one_process(
    address: str, tiny_bundle: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    scans = str(tiny_manifest.parent / "images")
    assert run(["predict", str(tiny_bundle), scans, str(tmp_path / "one"), "--threads", "1"]) == 0
    words = ["predict", str(tiny_bundle), scans, str(tmp_path / "two"), "--threads", "1"]
    submit = ["submit", "--engine", "ray", "--address", address, "--array", "2", "--jobs", str(tmp_path / "jobs"), "--"]
    process = start(*submit, *words)
    wait_for(process, "share 1 of 2: submitted as job")
    worker = the_parent_of("--shard", "1/2", str(tmp_path / "two"))
    os.kill(worker, signal.SIGKILL)  # Ray gives its task to another one
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    cases = [f"case_{number}/{SEGMENTATION}" for number in range(6)]
    assert [(tmp_path / "two" / case).read_bytes() for case in cases] == [
        (tmp_path / "one" / case).read_bytes() for case in cases
    ]
    assert len(list((tmp_path / "jobs").glob("task_*_0_log.err"))) == 2


def the_parent_of(*words: str) -> int:
    """Wait for a command that some process started, and return that process: Ray's worker."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline", "ppid"]):
            found = process.info["cmdline"] or []
            if "segpipe" in found and "predict" in found and "submit" not in found and set(words) <= set(found):
                parent = psutil.Process(process.info["ppid"])
                if "ray::" in parent.name() or "ray::" in " ".join(parent.cmdline()):
                    return parent.pid
        time.sleep(0.05)
    raise AssertionError("no worker of Ray began")
