"""Several processes: what they can share, which number goes on, and whose words end them. None is started here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import segpipe
from segpipe.bundle import TrustPolicy
from segpipe.cli.app import run
from segpipe.common.files import write_json
from segpipe.common.subprocesses import Ended
from segpipe.components import join_processes
from segpipe.errors import RefusedError, SegpipeError, UsageError
from segpipe.training import data_parallel
from segpipe.training.data_parallel import LOST, launch, processes_of, settle_processes
from segpipe.training.fragments import configs_folder
from segpipe.training.run_folder import RunSettings, compose_run, prepare
from segpipe.training.session import resume
from tiny_data import SMALL, train_arguments


def explained(manifest: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    code = run(train_arguments(manifest, Path("unused"), "--explain", "--json", *more))
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == document.get("error", {}).get("exit_code", 0)
    return document


def test_the_batch_is_kept_or_scaled(tiny_manifest: Path, capsys) -> None:
    full = ["--set", "steps_per_epoch=2"]
    kept = explained(tiny_manifest, capsys, "--processes", "2", *full)
    assert (kept["config"]["batch_size"], kept["config"]["processes"]) == (2, 2)
    assert kept["origins"]["processes"] == "--processes"
    scaled = explained(tiny_manifest, capsys, "--processes", "2", "--batch-rule", "scaled", *full)
    assert scaled["config"]["batch_size"] == 4 and "2 for each of 2 processes" in scaled["origins"]["batch_size"]
    assert any("batches of 4 cases, at the same learning rate" in note for note in scaled["notes"])
    differing = {key for key in kept["config"] if kept["config"][key] != scaled["config"][key]}
    assert differing == {"batch_size"}


@pytest.mark.parametrize(
    ("given", "found", "ways"),
    [
        ("--processes 2", "1 of 3 cases are left for 2", ["--set steps_per_epoch=2", "--batch-rule scaled"]),
        ("--processes 3", "batch_size 2, 3 processes", ["--set batch_size=3", "--batch-rule scaled"]),
        ("--processes 4 --set batch_size=4 --set steps_per_epoch=1", "3 cases, 4", ["2", "3 --set batch_size=6"]),
        ("--processes 40 --set steps_per_epoch=1", "3 cases, 40", ["2", "3 --set batch_size=3"]),
        ("--processes 40 --batch-rule scaled", "3 cases, 40", ["3"]),
    ],
)
def test_each_refusal_says_what_can_be_shared(
    given: str, found: str, ways: list[str], tiny_manifest: Path, capsys
) -> None:
    error = explained(tiny_manifest, capsys, *given.split())["error"]
    assert error["found"].startswith(found)
    said = error["hint"].split(", or ")
    for way in ways:
        word = way if way.startswith("-") else f"--processes {way}"
        assert word in said
        assert "config" in explained(tiny_manifest, capsys, *given.split(), *word.split())


def test_where_the_batches_are_for_one_process_it_says_so(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    error = explained(tiny_manifest, capsys, "--processes", "5")["error"]
    assert error["found"] == "3 cases, 5 processes"
    assert error["hint"] == "--processes 1, or --processes 3 --set batch_size=3"
    runtime = tmp_path / "five.yaml"
    runtime.write_text((configs_folder() / "runtime/cpu.yaml").read_text().replace("processes: 1", "processes: 5"))
    assert explained(tiny_manifest, capsys, "--runtime", str(runtime))["error"]["hint"] == error["hint"]
    assert "config" in explained(tiny_manifest, capsys, "--runtime", str(runtime), "--processes", "1")
    rule = explained(tiny_manifest, capsys, "--processes", "2", "--batch-rule", "doubled")["error"]
    assert rule["expected"] == "split or scaled"


def test_batch_normalisation_is_refused_before_anything_is_written(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    more = ["--processes", "2", "--set", "steps_per_epoch=2", "--set", "network_def#norm=batch"]
    assert run(train_arguments(tiny_manifest, tmp_path / "run", *more)) == 2
    assert "batch normalisation" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "gpu"
    words = train_arguments(tiny_manifest, out, "--set", "steps_per_epoch=2", "--set", "precision=float32")
    for more, expected in (([], 1), (["--processes", "2"], 2), (["--seeds", "2"], 1), (["--dry-run"], 1)):
        assert run([*words, "--runtime", "gpu", *more]) == 2
        error = capsys.readouterr().err
        assert "for a GPU, and there is none that PyTorch can use" in error and torch.__version__ in error
        assert f"expected: {expected} of CUDA" in error and "--runtime cpu" in error and not out.exists()
    assert run([*words, "--runtime", "cpu", "--dry-run"]) == 0  # as the hint says
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run([*words, "--runtime", "gpu", "--processes", "2"]) == 2
    assert "fewer GPUs than processes" in capsys.readouterr().err and not out.exists()


def test_a_run_of_a_gpu_does_not_go_on_without_one(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = [*SMALL, "steps_per_epoch=2", "precision=float32"]
    asked = RunSettings(tiny_manifest.parent / "task.yaml", runtime="gpu", processes=2, overrides=settings)
    prepare(compose_run(tiny_manifest, tmp_path, asked, TrustPolicy()), tiny_manifest, tmp_path)
    written = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError, match="none that PyTorch can use") as refused:
        resume(tmp_path)
    assert "goes on where there is a GPU" in str(refused.value.hint)
    assert (tmp_path / "run.json").read_bytes() == written


def test_who_joins_for_nccl_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match="none that PyTorch can use"):
        join_processes("cuda")
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def prepared(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that has not begun."""
    out = tmp_path_factory.mktemp("runs") / "two"
    settings = [*SMALL, "steps_per_epoch=2"]
    asked = RunSettings(tiny_manifest.parent / "task.yaml", processes=2, overrides=settings)
    prepare(compose_run(tiny_manifest, out, asked, TrustPolicy()), tiny_manifest, out)
    return out


def test_another_number_goes_on_only_where_it_is_asked_for(prepared: Path, capsys) -> None:
    record = json.loads((prepared / "run.json").read_text())
    assert record["processes"] == processes_of(record) == settle_processes(prepared, record, None, False) == 2
    assert run(["train", "--resume", str(prepared), "--processes", "1"]) == 2
    words = capsys.readouterr().err
    assert "the run is one of 2 processes" in words and "--processes 1 --allow-other-processes" in words
    with pytest.raises(UsageError, match="dealt out evenly"):
        settle_processes(prepared, dict(record), 3, True)
    assert json.loads((prepared / "run.json").read_text()) == record
    later = dict(record)
    try:
        assert settle_processes(prepared, later, 1, True) == 1
        written = json.loads((prepared / "run.json").read_text())
        assert written["other_processes"] == [{"after_epoch": 0, "processes": 1}] and processes_of(written) == 1
        assert settle_processes(prepared, written, None, False) == 1
    finally:
        write_json(prepared / "run.json", record)


def test_a_run_of_an_earlier_version_stays_in_one_process(prepared: Path, tmp_path: Path) -> None:
    config = json.loads((prepared / "config.json").read_text())
    del config["train"]["sampler"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UsageError, match="knew one process alone"):
        settle_processes(tmp_path, {"processes": 1}, 2, True)


def test_torchrun_says_how_many_and_starts_one_training(
    prepared: Path, tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    config = explained(tiny_manifest, capsys, "--set", "steps_per_epoch=2")
    assert config["config"]["processes"] == 2 and config["origins"]["processes"] == "torchrun"
    for option in (["--folds", "all"], ["--seeds", "2"], ["--budget", "1h"], ["--dry-run"]):
        assert run(train_arguments(tiny_manifest, Path("unused"), *option)) == 2
        assert "torchrun starts the processes of one training" in capsys.readouterr().err
    with pytest.raises(UsageError, match="torchrun started another number"):
        settle_processes(prepared, {"processes": 2}, 3, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="one of 2 processes"):
        resume(prepared)


def test_options_that_do_not_go_together_are_told(tiny_manifest: Path, capsys) -> None:
    with pytest.raises(UsageError, match="goes with --resume"):
        segpipe.train(tiny_manifest, task="task.yaml", out="run", allow_other_processes=True)
    with pytest.raises(UsageError, match="takes its settings from the run"):
        segpipe.train(resume="run", batch_rule="scaled")
    more = ["--processes", "2", "--set", "steps_per_epoch=2", "--budget", "1h"]
    assert run(train_arguments(tiny_manifest, Path("unused"), *more)) == 2
    assert "--budget measures one process" in capsys.readouterr().err


class Children:
    """Ends each process as it is told, in the order of their numbers."""

    ends: tuple[Ended, ...] = ()

    def __init__(self) -> None:
        self.stopped = False

    def call(self, name: str, arguments: Any, on_line: Any, timeout_s: Any, environment: dict[str, str]) -> Ended:
        number = int(environment["RANK"])
        on_line(f"line of {number}")
        return self.ends[number]

    def stop(self, number: int = 0) -> None:
        self.stopped = True


def failed(message: str, code: int = 2, hint: str | None = None) -> Ended:
    return Ended(code, {"error": {"message": message, "exit_code": code, "hint": hint}})


@pytest.mark.parametrize(
    ("ends", "words", "code", "hint"),
    [
        ((failed(LOST), Ended(-9, {})), "process 1: the process was killed", 2, "segpipe train --resume runs/x"),
        ((Ended(-9, {}), failed(LOST)), "process 0: the process was killed", 2, "segpipe train --resume runs/x"),
        ((failed(LOST), failed("no such case", 3, "look")), "process 1: no such case", 3, "look"),
        ((failed(LOST), failed(LOST)), f"process 0: {LOST}", 2, "segpipe train --resume runs/x"),
    ],
)
def test_the_words_are_those_of_the_process_that_failed_by_itself(
    ends: tuple[Ended, ...], words: str, code: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_parallel, "Subprocesses", type("Fake", (Children,), {"ends": ends}))
    lines: list[str] = []
    with pytest.raises(SegpipeError) as error:
        launch(Path("runs/x"), 2, {}, lines.append)
    assert error.value.message.startswith(words) and error.value.exit_code == code
    assert hint in str(error.value.hint)
    assert "line of 0" in lines and ("process 1: line of 1" in lines) == (ends[1].code == -9)


def test_all_that_end_well_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "Subprocesses", type("Fake", (Children,), {"ends": (Ended(0, {}),) * 3}))
    launch(Path("runs/x"), 3, {}, lambda line: None)


def test_a_lost_connection_is_told_from_an_error_of_our_own() -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    assert data_parallel._is_of_others(gloo)
    assert not data_parallel._is_of_others(RefusedError("not this bundle"))
    assert not data_parallel._is_of_others(RuntimeError("out of memory"))
