"""Several seeds: each the run that it would be alone, adopted or resumed where it is there, and their spread."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from segpipe.cli.app import run
from segpipe.common.subprocesses import Ended
from segpipe.errors import DataError
from segpipe.training.seeds import read_seeds, spread
from tiny_data import InThisProcess, train_arguments


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    found = InThisProcess()
    monkeypatch.setattr("segpipe.training.several_runs.Subprocesses", lambda: found)
    return found


@pytest.fixture(scope="module")
def three(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, the first of which was trained alone before."""
    out = tmp_path_factory.mktemp("seeds") / "of three"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.training.several_runs.Subprocesses", InThisProcess)
        assert run(train_arguments(tiny_manifest, out / "seed5", "--epochs", "2", "--seed", "5")) == 0
        assert run(several(tiny_manifest, out)) == 0
    return out


def several(manifest: Path, out: Path, *more: str) -> list[str]:
    return train_arguments(manifest, out, "--epochs", "2", "--seed", "5", "--seeds", "3", *more)


def record(out: Path, seed: int) -> dict[str, Any]:
    return json.loads((out / f"seed{seed}" / "run.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "best.pt", weights_only=True)


def test_each_seed_is_an_ordinary_run_and_the_spread_is_that_of_their_best(three: Path) -> None:
    found = json.loads((three / "seeds.json").read_text())
    assert [each["seed"] for each in found["seeds"]] == [5, 6, 7]
    assert [each["folder"] for each in found["seeds"]] == ["seed5", "seed6", "seed7"]
    dice = []
    for each in found["seeds"]:
        one = record(three, each["seed"])
        assert one["seed"] == each["seed"]
        assert one["status"] == each["status"] == "finished"
        assert (one["epochs"], one["best"]) == (each["epochs"], each["best"])
        assert [session["resumed"] for session in one["sessions"]] == [False]
        assert (three / each["folder"] / "last.pt").is_file()
        dice.append(each["best"]["val_mean_dice"])
    mean = sum(dice) / 3
    assert found["val_mean_dice"] == {
        "mean": pytest.approx(mean),
        "sd": pytest.approx((sum((value - mean) ** 2 for value in dice) / 2) ** 0.5),
        "min": min(dice),
        "max": max(dice),
        "n": 3,
    }


def test_a_seed_of_several_equals_the_run_of_that_seed_alone(three, tiny_manifest, tmp_path) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / "alone", "--epochs", "2", "--seed", "7")) == 0
    ours, alone = weights(three / "seed7"), weights(tmp_path / "alone")
    assert all(torch.equal(ours[name], alone[name]) for name in alone)
    assert not torch.equal(*(next(iter(weights(three / f"seed{seed}").values())) for seed in (5, 6)))


def test_finished_runs_are_adopted_and_only_the_record_is_written(
    three, tiny_manifest, tmp_path, children, capsys
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(three, out)  # at another place: the configs name the first one
    (out / "seeds.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(several(tiny_manifest, out)) == 0
    assert children.folders == []
    assert (out / "seeds.json").read_text() == (three / "seeds.json").read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said = capsys.readouterr().out
    sd = json.loads((out / "seeds.json").read_text())["val_mean_dice"]["sd"]
    assert f"standard deviation {sd:.4f}" in said
    assert "range" in said
    assert run(["train", "--resume", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["val_mean_dice"]["n"] == len(document["seeds"]) == 3


def test_resuming_keeps_the_finished_goes_on_with_the_stopped_and_starts_the_missing(three, tmp_path, children) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(three, out)
    stopped = record(out, 6)
    (out / "seed6" / "run.json").write_text(json.dumps({**stopped, "status": "interrupted"}))
    shutil.rmtree(out / "seed7")
    kept = (out / "seed5" / "last.pt").stat().st_mtime_ns
    assert run(["train", "--resume", str(out)]) == 0
    assert children.folders == ["seed6", "seed7"]
    assert (out / "seed5" / "last.pt").stat().st_mtime_ns == kept
    assert [session["resumed"] for session in record(out, 6)["sessions"]] == [False, True]
    ours, whole = weights(out / "seed7"), weights(three / "seed7")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert read_seeds(out) == read_seeds(three)


def test_fewer_or_other_seeds_do_not_forget_those_that_were_begun(
    three, tiny_manifest, tmp_path, children, capsys
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(three, out)
    assert run(several(tiny_manifest, out, "--seeds", "2", "--seed", "6")) == 0
    assert "begun here before belong to the spread as well: 5" in capsys.readouterr().err
    assert read_seeds(out) == read_seeds(three) and children.folders == []
    shutil.rmtree(out / "seed6")  # listed, and never begun: not asked for, it is not trained
    assert run(several(tiny_manifest, out, "--seeds", "1", "--seed", "7")) == 0
    assert [row["seed"] for row in read_seeds(out)["seeds"]] == [5, 7] and children.folders == []


def test_a_run_of_another_config_or_data_set_is_refused_before_any_training(
    three, tiny_manifest, tmp_path, children, capsys
) -> None:
    assert run(several(tiny_manifest, three, "--set", "learning_rate=0.5")) == 2
    assert "learning_rate" in capsys.readouterr().err
    moved = tmp_path / "data"
    shutil.copytree(tiny_manifest.parent, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["training"][0]["fold"] = 1
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert run(several(moved / "manifest.json", three)) == 2
    assert "manifest" in capsys.readouterr().err
    assert run(several(tiny_manifest, three / "seed5")) == 2
    assert "single run" in capsys.readouterr().err
    assert children.folders == []


def test_a_failure_ends_it_with_its_words_and_its_exit_code(tiny_manifest, tmp_path, children, capsys) -> None:
    error = {"message": "the image has NaN", "exit_code": 3, "case_id": "case_1"}
    children.instead = {"seed5": Ended(3, {"error": error})}
    assert run(several(tiny_manifest, tmp_path / "bad")) == 3
    said = capsys.readouterr().err
    assert "seed 5: the image has NaN" in said
    assert "case_1" in said
    assert len(children.folders) == 1
    children.instead = {"seed5": Ended(-9, {})}
    assert run(several(tiny_manifest, tmp_path / "killed")) == 2
    assert "memory" in capsys.readouterr().err
    states = [each["status"] for each in read_seeds(tmp_path / "killed")["seeds"]]
    assert states == ["running", "waiting", "waiting"]


def test_an_interruption_stops_the_training_and_says_how_to_go_on(tiny_manifest, tmp_path, children, capsys) -> None:
    children.instead = {"seed5": KeyboardInterrupt()}
    assert run(several(tiny_manifest, tmp_path / "run")) == 130
    assert f"segpipe train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert children.stopped
    spread = read_seeds(tmp_path / "run")["val_mean_dice"]
    assert spread == {"mean": None, "sd": None, "min": None, "max": None, "n": 0}


def test_what_cannot_be_gone_on_with_is_said(tmp_path, capsys) -> None:
    (tmp_path / "seeds.json").write_text("[]")
    assert run(["train", "--resume", str(tmp_path)]) == 3
    row = {"seed": 0, "folder": "seed0", "status": "waiting", "epochs": 0, "best": None}
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": [row], "val_mean_dice": {}}))
    assert run(["train", "--resume", str(tmp_path)]) == 2
    assert "first command" in capsys.readouterr().err
    assert run(["train", "--resume", str(tmp_path), "--seeds", "3"]) == 2
    with pytest.raises(DataError):
        (tmp_path / "seeds.json").write_text(json.dumps({"seeds": [row, row], "val_mean_dice": {}}))
        read_seeds(tmp_path)


def test_weights_without_a_record_are_not_gone_on_with(three, tiny_manifest, tmp_path, capsys) -> None:
    shutil.copytree(three / "seed5", tmp_path / "odd")
    (tmp_path / "odd" / "run.json").unlink()
    assert run(train_arguments(tiny_manifest, tmp_path / "odd")) == 2
    assert "last.pt" in capsys.readouterr().err


def test_one_seed_has_no_spread_and_none_no_mean() -> None:
    assert spread([0.5]) == {"mean": 0.5, "sd": None, "min": 0.5, "max": 0.5, "n": 1}
    assert spread([])["mean"] is None
