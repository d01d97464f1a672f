"""`segpipe submit` on a Slurm of this machine, or its processes: real jobs leave what the command itself leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny_slurm
from segpipe.cli.app import run
from segpipe.cli.submit_ import read_command
from segpipe.cluster import Resources, exit_code, planned, submit
from tiny_data import train_arguments
from whole_commands import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    network: dict[str, torch.Tensor] = torch.load(folder / "last.pt", weights_only=True)["network"]
    return network


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def on_slurm() -> Iterator[None]:
    pytest.importorskip("submitit")
    if not tiny_slurm.found():
        pytest.skip("slurm-wlm and munge are not installed (make validators)")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, tiny_slurm.slurm(Path(folder)):
        yield


def test_an_array_job_of_slurm_with_a_job_that_is_cancelled(
    on_slurm: None, tiny_bundle: Path, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", str(tiny_bundle), str(tiny_manifest.parent / "images"), str(tmp_path / "out"), "--threads", "1"]
    jobs = tmp_path / "jobs"
    process = start("submit", "--array", "2", "--jobs", jobs, "--", *words)
    wait_for(process, "share 1 of 2: submitted as job")
    os.killpg(process.pid, signal.SIGKILL)  # jobs are Slurm's
    process.communicate()
    rows = json.loads((jobs / "submission.json").read_text())["tasks"]
    subprocess.run(["scancel", rows[1]["job"]], check=True)
    tasks = planned(read_command(words), jobs, 2, Path(__file__).parents[2])
    said: list[str] = []
    document = submit(tasks, jobs, "slurm", Resources(), said.append, poll_s=0.2, grace_s=1)
    if exit_code(document):  # it was gone while somebody looked; else it had been submitted again at once
        assert document["tasks"][1]["state"] == "died"
        document = submit(tasks, jobs, "slurm", Resources(), said.append, poll_s=0.2, grace_s=1)
    assert exit_code(document) == 0 and [row["state"] for row in document["tasks"]] == ["ended"] * 2
    assert document["tasks"][0]["job"] == rows[0]["job"] and document["tasks"][1]["job"] != rows[1]["job"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {case["id"] for case in summary["cases"]} == {f"case_{number}" for number in range(6)}
    assert {case["state"] for case in summary["cases"]} == {"done"}


def test_a_cross_validation_as_jobs_of_this_machine(tiny_manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    out, began = tmp_path / "cv", time.time()
    words = train_arguments(tiny_manifest, out, "--epochs", "2", "--folds", "0")
    assert run(["submit", "--engine", "local", "--jobs", str(tmp_path / "jobs"), "--", *words]) == 0
    measured = json.loads((out / "out_of_fold.json").read_text())
    assert [row["fold"] for row in measured["folds"]] == [0] and len(measured["cases"]) == 3
    (session,) = json.loads((out / "fold_0/run.json").read_text())["sessions"]  # the second job only measured it
    assert session["began"] >= began
    rows = json.loads((tmp_path / "jobs/submission.json").read_text())["tasks"]
    assert [(row["name"], row["code"]) for row in rows] == [("fold 0", 0), ("measure", 0)]


def test_seeds_whose_command_is_killed_go_on_to_what_each_is_alone(tiny_manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    out, more = tmp_path / "two", ("--epochs", "8")
    words = ["submit", "--engine", "local", "--jobs", str(tmp_path / "jobs"), "--"]
    words += train_arguments(tiny_manifest, out, *more, "--seeds", "2")
    process = start(*words)
    history = out / "seed1/history.csv"
    while not history.is_file() or len(history.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)  # also its jobs, which have its output
    assert json.loads((out / "seed1/run.json").read_text())["status"] == "running"
    assert run(words) == 0
    found = json.loads((out / "seeds.json").read_text())
    assert [each["status"] for each in found["seeds"]] == ["finished"] * 2 and found["val_mean_dice"]["n"] == 2
    assert json.loads((out / "seed1/run.json").read_text())["sessions"][-1]["resumed"]
    for seed in ("0", "1"):
        assert run(train_arguments(tiny_manifest, tmp_path / seed, *more, "--seed", seed)) == 0
        assert same(tmp_path / seed, out / f"seed{seed}")


def test_a_comparison_as_an_array_job_of_slurm(on_slurm: None, tiny_manifest: Path, tmp_path: Path) -> None:
    out, network = tmp_path / "comparison", tmp_path / "small.yaml"
    network.write_text(
        "network_name: small\npatch_divisor: 2\nnetwork_def: {_target_: UNet, spatial_dims: 3,"
        " in_channels: '@in_channels', out_channels: '@out_channels', channels: [4, 8], strides: [2]}\n"
    )
    plain = ["--network", str(network), "--loss", "dice", "--set", "batch_size=2", "--set", "val_interval=1"]
    words = train_arguments(tiny_manifest, out, *plain, "--seeds", "0,1", "--steps", "4", small=False)
    words = ["compare", *words[1:]]
    assert run(["submit", "--array", "2", "--jobs", str(tmp_path / "jobs"), "--", *words]) == 0
    rows = json.loads((tmp_path / "jobs/submission.json").read_text())["tasks"]
    assert [(row["name"], row["code"]) for row in rows] == [("share 0 of 2", 0), ("share 1 of 2", 0), ("report", 0)]
    document = json.loads((out / "compare.json").read_text())
    assert [cell["status"] for cell in document["cells"].values()] == ["finished"] * 2
    assert "small+dice" in (out / "compare.md").read_text() and (out / "report.html").is_file()
    more = ("--epochs", "2", "--seed", "1")
    assert run(train_arguments(tiny_manifest, tmp_path / "alone", *plain, *more, small=False)) == 0
    assert same(tmp_path / "alone", out / "runs/small+dice/fold0-seed1/run")
