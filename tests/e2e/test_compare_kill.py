"""A real comparison, interrupted in one training and killed in another, ends as if never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segpipe.cli.app import run
from tiny_data import SMALL, write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # some twenty processes that import MONAI
EPOCHS = 60
LOSSES = ("dice_ce", "dice")


def options(data: Path) -> list[str]:
    settings = [item for item in SMALL if not item.startswith(("network_def", "patch_divisor"))]
    words = [word for item in settings for word in ("--set", item)]
    return [
        str(data / "manifest.json"),
        "--task",
        str(data / "task.yaml"),
        "--network",
        str(data / "small.yaml"),
        "--threads",
        "1",
        *words,
    ]


def compare(data: Path, out: Path) -> list[str]:
    more = ["--loss", ",".join(LOSSES), "--steps", str(2 * EPOCHS), "--out", str(out)]
    return [sys.executable, "-m", "segpipe", "compare", *options(data), *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "data"
    write_data(folder)
    (folder / "small.yaml").write_text(
        "network_name: small\npatch_divisor: 2\nnetwork_def: {_target_: UNet, spatial_dims: 3,"
        " in_channels: '@in_channels', out_channels: '@out_channels', channels: [4, 8], strides: [2]}\n"
    )
    return folder


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_folder / "last.pt", weights_only=True)["network"]


def wait_for_history(out: Path, loss: str) -> None:
    path = out / "runs" / f"small+{loss}" / "fold0-seed0" / "run" / "history.csv"
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) > 2:
            return
        time.sleep(0.01)
    raise AssertionError("no epoch was trained")


def test_stopped_twice_it_ends_as_if_never_stopped(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for loss, sign, code in zip(LOSSES, (signal.SIGINT, signal.SIGKILL), (130, -signal.SIGKILL), strict=True):
        process = subprocess.Popen(
            compare(data, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )
        wait_for_history(out, loss)
        process.send_signal(sign)
        assert process.wait() == code
        assert json.loads((out / "compare.json").read_text())["results"] is None
    done = subprocess.run(compare(data, out), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr

    for loss in LOSSES:
        alone = tmp_path / loss
        more = ["--loss", loss, "--epochs", str(EPOCHS), "--out", str(alone)]
        assert run(["train", *options(data), *more]) == 0
        one, other = weights(alone), weights(out / "runs" / f"small+{loss}" / "fold0-seed0" / "run")
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    rows = json.loads((out / "compare.json").read_text())["results"]["rows"]
    assert [row["steps"] for row in rows] == [[2 * EPOCHS]] * 2
    assert all(row["peak_memory_mb"] > 100 for row in rows)
    assert rows[1]["p"] is None  # three patients
    page = (out / "report.html").read_text()
    assert "fewer than 6" in page and page.count("data:image/gif") == 2 and str(tmp_path) not in page
    events = list((out / "tensorboard").glob("*/fold0-seed0/events.*"))
    assert {event.parent.parent.name for event in events} == {"small+dice_ce", "small+dice"}
