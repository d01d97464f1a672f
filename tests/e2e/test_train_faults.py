"""Whole training commands that are killed: what was finished is kept, and the end is the same bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segpipe.cli.app import run
from segpipe.data import NOT_HASHED
from tiny_data import train_arguments

pytestmark = pytest.mark.slow


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "segpipe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_epoch(process: subprocess.Popen, epoch: int) -> None:
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            return
    raise AssertionError(f"ended before epoch {epoch}")


def network(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "last.pt", weights_only=True)["network"]


def equal(one: Path, other: Path) -> bool:
    first, second = network(one), network(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_third_epoch_and_resumed_equals_four_epochs(tiny_manifest, tmp_path, workers: int) -> None:
    more = ["--epochs", "4", "--workers", str(workers)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(train_arguments(tiny_manifest, whole, *more)) == 0
    process = start(train_arguments(tiny_manifest, killed, *more))
    wait_for_epoch(process, 2)
    # the checkpoint of epoch 2 is written right after its line; then the third epoch is under way
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (killed / "last.pt").exists() and torch.load(killed / "last.pt", weights_only=True)["epoch"] >= 2:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(killed / "last.pt", weights_only=True)["epoch"] < 4
    assert run(["train", "--resume", str(killed)]) == 0
    assert equal(whole, killed)


def test_killed_at_any_moment_resumes_to_the_same_end(tiny_manifest, tmp_path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--epochs", "6"]
    assert run(train_arguments(tiny_manifest, whole, *more)) == 0
    process = start(train_arguments(tiny_manifest, killed, *more))
    for delay in (0.02, 0.11, 0.23):
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not [path for path in killed.rglob("*.partial") if path.suffix == ".pt"]
        process = start(["train", "--resume", str(killed)])
    process.communicate()
    assert process.returncode == 0
    assert equal(whole, killed)


def test_terminate_leaves_a_resumable_run_and_exit_code_130(tiny_manifest, tmp_path) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        out = tmp_path / signum.name
        process = start(train_arguments(tiny_manifest, out, "--epochs", "400"))
        wait_for_epoch(process, 1)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "--resume" in output
        assert "Traceback" not in output
        assert json.loads((out / "run.json").read_text())["status"] == "interrupted"


def test_a_full_disk_stops_with_the_reason_and_keeps_the_last_checkpoint(tiny_manifest, tmp_path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    try:
        filler = disk / "filler"
        process = start(train_arguments(tiny_manifest, disk / "run", "--epochs", "400"))
        wait_for_epoch(process, 2)
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(bytes(4096))
                stream.flush()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "No space left" in output
        assert "Traceback" not in output
        epoch = torch.load(disk / "run/last.pt", weights_only=True)["epoch"]
        assert epoch >= 1
        filler.unlink()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_no_third_party_noise_on_success(tiny_manifest, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segpipe", *train_arguments(tiny_manifest, tmp_path / "run", "--epochs", "1")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith("epoch ")] == [NOT_HASHED]
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("fold", ["0", "none"])  # none: there is nothing to validate
def test_stock_monai_trains_the_same_weights_from_the_config(tiny_manifest, tmp_path, fold: str) -> None:
    ours, stock = tmp_path / "ours", tmp_path / "stock"
    assert run(train_arguments(tiny_manifest, ours, "--epochs", "2", "--fold", fold)) == 0
    stock.mkdir()
    for name in ("config.json", "manifest.json"):
        shutil.copy(ours / name, stock / name)
    words = ["-m", "monai.bundle", "run", "--config_file", str(stock / "config.json"), "--bundle_root", str(stock)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert equal(ours, stock)
