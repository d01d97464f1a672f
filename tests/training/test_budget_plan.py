"""A plan within a budget, measured on this machine; its printed command is followed."""

from __future__ import annotations

import json
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from segpipe.cli.app import run
from segpipe.data.manifest import load_manifest
from segpipe.errors import UsageError
from segpipe.training import budget_plan
from segpipe.training.budget_plan import Runs, cases_of_a_run, length_within, usual_cases
from segpipe.training.planning import plan
from segpipe.training.step_measurement import Measured, require_device
from tiny_data import train_arguments


def test_a_device_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device to measure"):
        require_device("cuda")
    require_device("cpu")


def test_cases_of_a_run(tiny_manifest: Path) -> None:
    manifest = load_manifest(tiny_manifest)  # 6 cases, 2 folds
    assert cases_of_a_run(manifest, None) == cases_of_a_run(manifest, 2) == (3, 3)
    unsplit = manifest.model_copy(
        update={"training": [case.model_copy(update={"fold": None}) for case in manifest.training]}
    )
    assert cases_of_a_run(unsplit, None) == (5, 1)


def test_cuda_without_a_budget_starts_from_the_gpu_fragment(tiny_manifest: Path) -> None:
    runtime = yaml.safe_load(plan(tiny_manifest, device="cuda").runtime_text)
    assert "cuda" in runtime["device"]


def test_usual_cases_are_those_of_medium_size(tiny_manifest: Path) -> None:
    manifest, fingerprint = load_manifest(tiny_manifest), plan(tiny_manifest).fingerprint
    sizes = {f"case_{number}": number for number in range(6)}
    cases = [case.model_copy(update={"shape": (1 + sizes[case.id], 9, 9)}) for case in fingerprint.cases]
    chosen = usual_cases(manifest, fingerprint.model_copy(update={"cases": cases}))
    assert [case.id for case in chosen] == ["case_2", "case_3"]


def test_jobs_are_of_folds(tiny_manifest: Path) -> None:
    with pytest.raises(UsageError, match="how many folds are trained at the same time"):
        plan(tiny_manifest, budget="1m", jobs=2)


@pytest.mark.parametrize(("seeds", "jobs", "beside", "turns"), [(2, 1, 0, 2), (2, 2, 1, 1), (3, 2, 1, 2), (1, 4, 0, 1)])
def test_a_budget_is_of_all_runs_that_are_trained_at_the_same_time(
    tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, jobs: int, beside: int, turns: int
) -> None:
    asked: list[tuple[int, int]] = []

    def others_at_work(processes: int, threads: int) -> AbstractContextManager[None]:
        asked.append((processes, threads))
        return nullcontext()

    planned = plan(tiny_manifest)
    monkeypatch.setattr(budget_plan, "startup_seconds", lambda: 2.0)
    monkeypatch.setattr(budget_plan, "others_at_work", others_at_work)
    monkeypatch.setattr(budget_plan, "measure_config", lambda *_: Measured(0.1, 0.1, 0.1, 0.1, 2))
    config = {**planned.task, **planned.settings, "device": "cpu", "threads": 3}
    runs = Runs(600.0, seeds=seeds, jobs=jobs)
    spent = length_within(config, planned.fingerprint, load_manifest(tiny_manifest), tiny_manifest.parent, runs)
    assert asked == [(beside, 3)]
    assert 0.75 * 600 <= spent.total_s <= 600
    assert spent.runs == seeds
    assert spent.training_s + spent.validation_s == pytest.approx(600 * 0.95 / turns, rel=0.1)


@pytest.mark.slow
def test_folds_at_the_same_time_are_measured_under_their_load(
    tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", str(tiny_manifest), "-o", "task.yaml", "--budget", "40s", "--folds", "2", "--jobs", "2", "--json"]
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    rules = {rule["name"]: rule for rule in document["rules"]}
    assert rules["threads"]["value"] == max(1, torch.get_num_threads() // 2)
    assert "2 runs, 2 at the same time" in rules["seconds"]["why"]
    spent = document["estimate"]
    parts = ("startup_s", "loading_s", "training_s", "validation_s", "prediction_s")
    assert spent["total_s"] == pytest.approx(sum(spent[part] for part in parts), rel=0.01)  # they end together
    printed = shlex.split(document["next"])
    assert printed[printed.index("--folds") : printed.index("--out")] == ["--folds", "all", "--jobs", "2"]
    assert run(printed[1:]) == 0
    assert json.loads((tmp_path / "runs/first/cross_validation.json").read_text())["folds"][1]["status"] == "finished"


@pytest.mark.slow
def test_the_printed_command_trains_what_was_planned(
    tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    assert run(["plan", str(tiny_manifest), "-o", "task.yaml", "--budget", "12s", "--json"]) == 0
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), generator)
    document = json.loads(capsys.readouterr().out)
    spent, settings = document["estimate"], document["settings"]
    assert spent["step_s"] > 0 and spent["validation_case_s"] > 0 and spent["load_case_s"] > 0
    assert settings["max_epochs"] == spent["epochs"]
    assert run([*shlex.split(document["next"])[1:], "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["epochs"] == spent["epochs"]
    config = json.loads((tmp_path / "runs/first/config.json").read_text())
    assert {name: config[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "1h", "--epochs", "3"], "both say how long"),
        (["--budget", "never"], "not a budget of time"),
        (["--budget", "1h", "--explain"], "--budget measures"),
    ],
)
def test_budgets_of_train_that_make_no_sense(
    tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / "run", *words)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_train_within_a_budget(tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = train_arguments(tiny_manifest, out, "--budget", "10s")
    assert run(words) == 0
    seen = capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    steps = config["steps_per_epoch"] * config["max_epochs"]
    assert f"{steps:,} steps of" in seen.err and "of 10 s" in seen.err
    assert config["max_epochs"] % config["val_interval"] == 0
    assert run(words) == 2  # its length is decided
    said = capsys.readouterr().err
    assert f"segpipe train --resume {out}" in said
    assert run(["train", "--resume", str(out)]) == 0
