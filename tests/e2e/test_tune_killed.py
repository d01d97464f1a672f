"""A search of two trials, killed in the second: the same command ends it, and the best is a run that repeats."""

from __future__ import annotations

import json
import os
import signal

import pytest

from segpipe.cli.app import run
from tiny_data import SMALL
from whole_commands import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPACE = """
learning_rate: {low: 0.001, high: 0.05, log: true}
width: [1.0, 2.0]
"""
EPOCHS = 12


def test_killed_in_its_second_trial_it_goes_on_and_the_best_is_an_ordinary_run(tiny_manifest, tmp_path):
    pytest.importorskip("optuna")
    out = tmp_path / "tune"
    (tmp_path / "space.yaml").write_text(SPACE)
    small = [word for item in SMALL for word in ("--set", item)]
    words = ["tune", tiny_manifest, "--task", tiny_manifest.parent / "task.yaml", "--space", tmp_path / "space.yaml"]
    words += ["--trials", 2, "--epochs", EPOCHS, "--threads", 1, "--confirm", 0, "--out", out, *small]
    process = start(*words)
    wait_for(process, "trial_1: fold_0 epoch 2/")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    second = out / "candidates/trial_1/run/fold_0"
    assert json.loads((second / "run.json").read_text())["status"] == "running"
    default = (out / "candidates/default/run/fold_0/final.pt").stat().st_mtime_ns
    process = start(*words, "--json")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "default: fold_0 epoch" not in said and "trial_1: fold_0 epoch 1/" not in said
    document = json.loads((out / "tune.json").read_text())
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * 2
    assert (out / "candidates/default/run/fold_0/final.pt").stat().st_mtime_ns == default

    import optuna

    study = optuna.load_study(study_name="segpipe", storage=f"sqlite:///{out / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].params == pytest.approx(study.trials[2].params, rel=1e-5)
    assert sorted(study.trials[2].intermediate_values) == list(range(1, EPOCHS + 1))

    assert run(["export", str(second), str(tmp_path / "bundle")]) == 0  # the same bits as of one that never stopped
    words = [
        "reproduce",
        str(tmp_path / "bundle"),
        "--data",
        str(tiny_manifest.parent),
        "--out",
        str(tmp_path / "again"),
    ]
    assert run([*words, "--json"]) == 0
    again = json.loads((tmp_path / "again/reproduction.json").read_text())
    assert again["verdict"] == "bit-identical"
