"""Two processes train what one trains: the same losses and measures; and the same bits after kills and by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from segpipe.cli.app import run
from tiny_data import SMALL, TASK
from whole_commands import ROOT, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 50
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def arguments(manifest: Path, out: Path, *more: str) -> list[str]:
    settings = [*SMALL, "val_interval=10", "steps_per_epoch=1", "precision=float32", "channels_last=false"]
    options = [word for item in settings for word in ("--set", item)]
    task = str(manifest.parent / "task.yaml")
    return ["train", str(manifest), "--task", task, "--out", str(out), "--threads", "1", *options, *more]


def state(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "last.pt", weights_only=True)
    return loaded


def same(one: Path, other: Path) -> bool:
    first, second = state(one), state(other)
    rows = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in each["history"]] for each in (first, second)
    ]
    moments = [[part for each in s["optimizer"]["state"].values() for part in each.values()] for s in (first, second)]
    pairs = [*zip(first["network"].values(), second["network"].values(), strict=True), *zip(*moments, strict=True)]
    return rows[0] == rows[1] and all(torch.equal(one, other) for one, other in pairs)


def apart(one: Path, other: Path, name: str) -> list[float]:
    """How far the values of a column are apart, epoch by epoch, in parts of the first."""
    pairs = zip(state(one)["history"], state(other)["history"], strict=True)
    return [abs(a[name] - b[name]) / abs(a[name]) for a, b in pairs if a.get(name) is not None]


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Number to process id of those that a launcher started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(each[5:]) for each in variables if each.startswith(b"RANK=")), None)
        if parent == process.pid and rank is not None:
            found[rank] = int(folder.name)
    return found


@pytest.fixture(scope="module")
def double(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task and an augmentation in float64."""
    folder = tmp_path_factory.mktemp("double")
    typed = "{_target_: EnsureTyped, keys: [image, label], dtype: '$torch.float64', allow_missing_keys: true}"
    plain = "{_target_: EnsureTyped, keys: [image, label], allow_missing_keys: true}"
    assert plain in TASK
    (folder / "task.yaml").write_text(TASK.replace(plain, typed))
    crop = "keys: [image, label], label_key: label, spatial_size: '@patch_size', pos: 1, neg: 1"
    (folder / "augment.yaml").write_text(
        "random_transforms:\n"
        "  - {_target_: SpatialPadd, keys: [image, label], spatial_size: '@patch_size'}\n"
        f"  - {{_target_: RandCropByPosNegLabeld, {crop}}}\n"
        "  - {_target_: RandFlipd, keys: [image, label], prob: 0.5, spatial_axis: 0}\n"
        "batch_transforms:\n"
        "  - {_target_: segpipe.components.BatchBrightness, prob: 0.5}\n"
        "  - {_target_: segpipe.components.BatchNoise, prob: 0.5}\n"
    )
    return folder


def in_double(manifest: Path, folder: Path, out: Path, *more: str) -> list[str]:
    fragments = ["--task", str(folder / "task.yaml"), "--augment", str(folder / "augment.yaml")]
    network = ["--set", "train#network#network=$@network_def.double()"]
    return arguments(manifest, out, *fragments, *network, "--epochs", str(STEPS), *more)


def test_fifty_steps_in_float64_are_those_of_one_process(tiny_manifest: Path, double: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(in_double(tiny_manifest, double, one)) == 0
    assert run(in_double(tiny_manifest, double, two, "--processes", "2")) == 0
    assert next(iter(state(two)["network"].values())).dtype == torch.float64
    losses = [row["train_loss"] for row in state(one)["history"]]
    assert len(losses) == STEPS and min(losses[-5:]) < 0.9 * losses[0]
    sys.stdout.write(f"losses in float64, apart at most: {max(apart(one, two, 'train_loss')):.1e}\n")
    assert max(apart(one, two, "train_loss")) < 1e-10
    assert max(apart(one, two, "val_loss")) < 1e-10
    measured = [[row.get("val_mean_dice") for row in state(each)["history"]] for each in (one, two)]
    assert measured[0] == measured[1] and sum(value is not None for value in measured[0]) == STEPS / 10


@pytest.fixture(scope="module")
def two(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that torchrun started."""
    out = tmp_path_factory.mktemp("runs") / "two"
    command = ["segpipe", *arguments(tiny_manifest, out, "--epochs", "30")]
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1 and done.stderr.count("epoch 30/30") == 1, "one of them speaks"
    return out


def test_ten_steps_in_float32_are_nearly_those_of_one_process(two: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert run(arguments(tiny_manifest, one, "--epochs", "30")) == 0
    losses = apart(one, two, "train_loss")
    assert max(losses[:10]) < 1e-5
    sys.stdout.write(f"losses in float32, apart at most: {max(losses):.1e} over {len(losses)} steps\n")
    record = json.loads((two / "run.json").read_text())
    assert record["status"] == "finished" and record["processes"] == 2
    assert len(record["sessions"]) == 1 and record["origins"]["processes"] == "torchrun"


def test_either_process_killed_it_goes_on_bit_for_bit_to_the_end_by_stock_monai(
    two: Path, tiny_manifest: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "killed"
    command: list[str] = arguments(tiny_manifest, out, "--epochs", "30", "--processes", "2")
    for rank, epoch in ((1, 3), (0, 8)):
        process = start(*command)
        wait_for(process, f"epoch {epoch}/30")
        ranks = ranks_of(process)
        assert ranks.keys() == {0, 1}
        os.kill(ranks[rank], signal.SIGKILL)
        words = (process.stdout.read() if process.stdout else "") or ""
        assert process.wait(60) == 2
        assert f"process {rank}: the process was killed" in words
        assert f"segpipe train --resume {out}" in words
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()), "a dead one ends all"
        record = json.loads((out / "run.json").read_text())
        assert record["status"] in ("failed", "interrupted") if rank else record["status"] != "finished"
        assert epoch - 1 <= len(state(out)["history"]) < 30
        command = ["train", "--resume", str(out)]
    assert run(["train", "--resume", str(out), "--processes", "1"]) == 2
    assert "--allow-other-processes" in capsys.readouterr().err
    # the end by stock MONAI
    files = f"['{out}/config.json','{out}/distributed.json']"
    stock = ["monai.bundle", "run", "--config_file", files, "--bundle_root", str(out), "--resume", "true"]
    done = subprocess.run([*TORCHRUN, *stock], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert len(state(out)["history"]) == 30 and same(two, out)


def test_interrupted_all_end_and_one_process_may_go_on(two: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    process = start(*arguments(tiny_manifest, out, "--epochs", "30", "--processes", "2"))
    wait_for(process, "epoch 2/30")
    ranks = ranks_of(process)
    process.send_signal(signal.SIGINT)
    words = (process.stdout.read() if process.stdout else "") or ""
    assert process.wait(60) == 130 and f"segpipe train --resume {out}" in words
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "interrupted"
    # in one process: the same batches, and another order of sums
    assert run(["train", "--resume", str(out), "--processes", "1", "--allow-other-processes"]) == 0
    after = json.loads((out / "run.json").read_text())
    assert after["other_processes"] == [{"after_epoch": record["epochs"], "processes": 1}]
    assert after["status"] == "finished" and not same(two, out)
    assert max(apart(two, out, "train_loss")) < 1e-3
