"""The last epoch is always validated, and a run can be given more epochs, with the learning rates that are said."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

import segpipe
from segpipe.cli.app import run
from segpipe.components.handlers import StopOnNonFinite
from segpipe.errors import INTERRUPTED, OK, USAGE, UsageError
from segpipe.training.session import resume
from tiny_data import train_arguments

SCHEMA = Path(__file__).parents[2] / "docs/schemas/run.schema.json"
RATE = 0.002


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


def record(out: Path) -> dict[str, object]:
    document = json.loads((out / "run.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    return document


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "last.pt", weights_only=True)["network"]


def cosine(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, counted from 1 (Loshchilov & Hutter 2017, without restarts)."""
    return RATE * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


@pytest.fixture(scope="module")
def short(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs, where every fifth is validated."""
    out = tmp_path_factory.mktemp("short") / "run"
    rare = ["--set", "val_interval=5", "--set", f"learning_rate={RATE}"]
    assert run(train_arguments(tiny_manifest, out, *rare, "--epochs", "2")) == OK
    return out


def copied(short: Path, to: Path) -> Path:
    shutil.copytree(short, to)
    return to


@pytest.fixture(scope="module")
def longer(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, extended to four."""
    out = copied(short, tmp_path_factory.mktemp("longer") / "run")
    assert run(["train", "--resume", str(out), "--epochs", "4"]) == OK
    return out


def test_the_last_epoch_is_validated_and_can_be_exported(short: Path, tmp_path: Path) -> None:
    assert [bool(row["val_mean_dice"]) for row in rows(short)] == [False, True]
    assert record(short)["best"] == {"epoch": 2, "val_mean_dice": float(rows(short)[1]["val_mean_dice"])}
    assert segpipe.export(short, tmp_path / "bundle").labels[1] == "liver"


def test_a_finished_run_is_given_more_epochs_and_says_how(short: Path, longer: Path, tmp_path: Path) -> None:
    found = rows(longer)
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    assert [float(row["learning_rate"]) for row in found[:2]] == pytest.approx([cosine(1, 2), cosine(2, 2)])
    assert [float(row["learning_rate"]) for row in found[2:]] == pytest.approx([cosine(3, 4), cosine(4, 4)])
    assert [bool(row["val_mean_dice"]) for row in found] == [False, True, False, True]
    document = record(longer)
    assert document["status"] == "finished" and document["epochs"] == 4 and len(document["sessions"]) == 2
    schedule = "from epoch 3 on, the learning rate is that of a run of 4 epochs"
    assert document["extensions"] == [{"from": 2, "to": 4, "after_epoch": 2, "schedule": schedule}]
    assert json.loads((longer / "config.json").read_text())["max_epochs"] == 4
    assert any(not torch.equal(one, weights(longer)[name]) for name, one in weights(short).items())
    provenance = json.loads((segpipe.export(longer, tmp_path / "bundle").root / "provenance.json").read_text())
    assert provenance["extensions"] == document["extensions"]
    Draft202012Validator(json.loads((SCHEMA.parent / "provenance.schema.json").read_text())).validate(provenance)


def test_an_extension_that_was_stopped_goes_on_bit_for_bit(
    short: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stopped_in in (3, 4):
        out = copied(short, tmp_path / f"stopped{stopped_in}")

        def interrupt(self: object, engine: object, epoch: int = stopped_in) -> None:
            if engine.state.epoch == epoch:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(StopOnNonFinite, "__call__", interrupt)
            assert run(["train", "--resume", str(out), "--epochs", "4"]) == INTERRUPTED
        assert record(out)["status"] == "interrupted"
        assert run(["train", "--resume", str(out)]) == OK
        assert all(torch.equal(one, weights(out)[name]) for name, one in weights(longer).items())
        assert record(out)["extensions"] == record(longer)["extensions"]


def test_a_kill_between_record_and_config_is_mended(short: Path, longer: Path, tmp_path: Path) -> None:
    out = copied(longer, tmp_path / "killed")
    for name in ("config.json", "last.pt", "best.pt", "history.csv"):
        shutil.copy(short / name, out / name)
    document = {**record(out), "status": "running"}
    (out / "run.json").write_text(json.dumps(document))
    assert resume(out, progress=lambda line: None)["status"] == "finished"
    assert (out / "config.json").read_bytes() == (longer / "config.json").read_bytes()
    assert all(torch.equal(one, weights(out)[name]) for name, one in weights(longer).items())


def test_a_checkpoint_of_before_knows_its_schedule_too(short: Path, longer: Path, tmp_path: Path) -> None:
    out = copied(short, tmp_path / "old")
    state = torch.load(out / "last.pt", weights_only=True)
    del state["max_epochs"]
    torch.save(state, out / "last.pt")
    assert segpipe.train(resume=out, epochs=4, progress=lambda line: None).epochs == 4
    assert all(torch.equal(one, weights(out)[name]) for name, one in weights(longer).items())


def test_what_is_no_extension_is_refused_with_what_is(short: Path, tmp_path: Path, capsys) -> None:
    for epochs in ("1", "2"):
        assert run(["train", "--resume", str(short), "--epochs", epochs]) == USAGE
        assert "--epochs 4" in capsys.readouterr().err
    assert run(["train", "--resume", str(short), "--epochs", "4", "--seeds", "2"]) == USAGE
    seed = copied(short, tmp_path / "seed0")
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": [], "val_mean_dice": {}}))
    for place in (seed, tmp_path):
        with pytest.raises(UsageError, match="seeds"):
            segpipe.train(resume=place, epochs=4)


def test_a_run_of_before_that_was_never_validated_is_not_told_to_export(short: Path, tmp_path: Path, capsys) -> None:
    out = copied(short, tmp_path / "unvalidated")
    (out / "best.pt").unlink()
    assert run(["train", "--resume", str(out)]) == OK
    said = " ".join(capsys.readouterr().out.split())
    command = said[said.index("segpipe train --resume") :].split()[1:6]
    assert run(["export", str(out), str(tmp_path / "bundle")]) == USAGE
    assert "--epochs" in capsys.readouterr().err
    assert run(command) == OK
    assert run(["export", str(out), str(tmp_path / "bundle")]) == OK


def test_early_stopping_has_patience_again(tiny_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "early"
    stop = ["--set", "early_stop_patience=1", "--set", "learning_rate=1e-9"]
    assert run(train_arguments(tiny_manifest, out, *stop, "--epochs", "4")) == OK
    before = len(rows(out))
    assert before < 4
    assert run(["train", "--resume", str(out), "--epochs", "6"]) == OK
    assert len(rows(out)) > before
