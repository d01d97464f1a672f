"""Several seeds and reproductions as whole commands: stopped, killed, gone on with, and the same bits at the end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from segpipe.cli.app import run
from tiny_data import train_arguments
from whole_commands import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]


def weights(folder: Path, name: str = "best.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def is_left_alone(folder: Path) -> bool:
    """Whether no process trains there any more, soon after its parent was killed."""
    for _ in range(100):
        with (folder / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.1)
            else:
                return True
    return False


def test_seeds_stopped_and_killed_go_on_to_what_each_would_be_alone(tiny_manifest, tmp_path) -> None:
    out, more = tmp_path / "two", ("--epochs", "8")
    process = start(*train_arguments(tiny_manifest, out, *more, "--seeds", "2"))
    wait_for(process, "seed0 epoch 1/8")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"segpipe train --resume {out}" in output
    assert "Traceback" not in output
    states = [each["status"] for each in json.loads((out / "seeds.json").read_text())["seeds"]]
    assert states == ["interrupted", "waiting"]
    process = start("train", "--resume", out)
    wait_for(process, "seed1 epoch 1/8")
    process.kill()
    process.wait()
    assert is_left_alone(out / "seed1")
    process = start("train", "--resume", out, "--json")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    found = json.loads((out / "seeds.json").read_text())
    assert [each["status"] for each in found["seeds"]] == ["finished", "finished"]
    assert found["val_mean_dice"]["n"] == 2
    for seed in ("0", "1"):
        alone = tmp_path / f"alone{seed}"
        assert run(train_arguments(tiny_manifest, alone, *more, "--seed", seed)) == 0
        assert same(weights(alone), weights(out / f"seed{seed}"))
        assert same(weights(alone, "last.pt")["network"], weights(out / f"seed{seed}", "last.pt")["network"])


def test_a_failing_seed_ends_the_command_with_its_exit_code_and_words(tiny_manifest, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_manifest.parent, data)
    (data / "images/case_1.nii.gz").write_bytes(b"no image")
    process = start(*train_arguments(data / "manifest.json", tmp_path / "two", "--seeds", "2"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "seed 0: " in output
    assert "case_1" in output
    assert not (tmp_path / "two" / "seed1").exists()


@pytest.mark.realdata
def test_a_short_hippocampus_run_is_reproduced_bit_for_bit_twice_and_through_a_kill(tmp_path) -> None:
    data = Path(os.environ["SEGPIPE_DATA"]) / "Task04_Hippocampus"
    manifest = short_manifest(tmp_path / "manifest.json")
    origin, bundle = tmp_path / "origin", tmp_path / "hippocampus_short"
    words = ["train", manifest, "--data", data, "--out", origin, "--task", "hippocampus"]
    words += ["--network", "unet_fine", "--augment", "mirror", "--threads", "1", "--epochs", "3"]
    words += ["--set", "val_interval=1"]
    assert run([*map(str, words)]) == 0
    assert run(["export", str(origin), str(bundle)]) == 0
    again = ["reproduce", bundle, "--data", data, "--out"]
    assert run([*map(str, again), str(tmp_path / "here")]) == 0  # in this process, which has trained before
    process = start(*again, tmp_path / "killed")
    wait_for(process, "epoch 1/3")
    process.kill()
    process.wait()
    record = json.loads((tmp_path / "killed/run.json").read_text())
    assert record["status"] == "running"
    assert not (tmp_path / "killed/reproduction.json").exists()
    process = start(*again, tmp_path / "killed")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "bit-identical weights" in output
    for name in ("here", "killed"):
        assert same(weights(bundle, "models/model.pt"), weights(tmp_path / name))
        assert same(weights(origin, "last.pt")["network"], weights(tmp_path / name, "last.pt")["network"])
        report = json.loads((tmp_path / name / "reproduction.json").read_text())
        assert report["verdict"] == "bit-identical"
        assert report["data"] == {"cases": 8, "files": 16, "without_hash": 0}


def short_manifest(path: Path) -> Path:
    """Eight cases of the shipped manifest: six to train on, two of fold 0 to validate."""
    manifest = json.loads((ROOT / "data_manifests/msd_task04_hippocampus.json").read_text())
    learnt = [case for case in manifest["training"] if case["fold"] != 0][:6]
    validated = [case for case in manifest["training"] if case["fold"] == 0][:2]
    path.write_text(json.dumps({**manifest, "training": [*learnt, *validated], "test": []}))
    return path
