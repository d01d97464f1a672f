"""A run on another kind of CPU: refused, and gone on with where that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import segpipe
from segpipe.cli.app import run
from segpipe.errors import UsageError
from segpipe.training import accept_this_cpu, same_cpu
from segpipe.training.same_cpu import require_same_cpu

HERE, THERE = {"cpu_kind": "amx", "cpu_capability": "AVX512"}, {"cpu_kind": "neither", "cpu_capability": "AVX2"}


def a_run(folder: Path, began: dict[str, str], device: str = "cpu", **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"device": f"$torch.device('{device}')"}))
    record = {"status": "interrupted", "epochs": 3, "environment": {"hardware": began}, **more}
    (folder / "run.json").write_text(json.dumps(record))
    return record


@pytest.fixture(autouse=True)
def _this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_cpu, "hardware", lambda: {**HERE, "processor": "any"})


def test_the_same_kind_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    require_same_cpu(tmp_path / "a", a_run(tmp_path / "a", HERE))
    with pytest.raises(UsageError, match="another kind of CPU") as caught:
        require_same_cpu(tmp_path / "b", a_run(tmp_path / "b", THERE))
    assert caught.value.found == "AVX512, bfloat16 by amx" and caught.value.expected == "AVX2, bfloat16 by neither"
    assert "--allow-other-cpu" in (caught.value.hint or "")


def test_a_gpu_or_an_earlier_record_does_not_mind(tmp_path: Path) -> None:
    require_same_cpu(tmp_path / "a", a_run(tmp_path / "a", THERE, "cuda"))
    require_same_cpu(tmp_path / "b", a_run(tmp_path / "b", {"cpu_capability": "AVX2"}))


def test_what_is_accepted_is_recorded_once_for_each_run_of_a_series(tmp_path: Path) -> None:
    a_run(tmp_path / "series" / "seed0", THERE)
    a_run(tmp_path / "series" / "seed1", HERE)
    before = a_run(tmp_path / "series" / "seed2", THERE, status="finished")
    for _ in range(2):
        accept_this_cpu(tmp_path / "series")
    records = [json.loads((tmp_path / "series" / f"seed{seed}" / "run.json").read_text()) for seed in range(3)]
    assert records[0]["other_cpus"] == [{"after_epoch": 3, **HERE}]
    assert "other_cpus" not in records[1] and records[2] == before
    require_same_cpu(tmp_path / "series" / "seed0", records[0])


def test_the_option_goes_on_with_a_run_of_another_cpu(tiny_manifest: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from segpipe.components.handlers import StopOnNonFinite
    from tiny_data import train_arguments

    def interrupt(self, engine) -> None:
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    out, other = tmp_path / "run", {**THERE, "cpu_capability": "none like this"}
    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "2")) == 130
    monkeypatch.setattr(same_cpu, "hardware", lambda: other)
    assert run(["train", "--resume", str(out)]) == 2
    assert "--allow-other-cpu" in capsys.readouterr().err
    assert run(["train", "--resume", str(out), "--allow-other-cpu"]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["other_cpus"] == [{"after_epoch": 1, **other}]


def test_the_option_is_for_a_run_that_goes_on(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    assert run(["train", str(tiny_manifest), "--allow-other-cpu"]) == 2
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--resume"):
        segpipe.train(tiny_manifest, allow_other_cpu=True)
