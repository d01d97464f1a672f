"""Settings of the step: how many there are, in which type, and which weights are kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from segpipe.cli.app import run
from segpipe.training import weights_of
from tiny_data import train_arguments


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


def state(path: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(path, weights_only=True)
    return loaded.get("network", loaded)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def kept_last(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "last"
    more = ["--set", "keep_weights=last", "--set", "steps_per_epoch=3", "--set", "precision=bfloat16"]
    assert run(train_arguments(tiny_manifest, out, "--epochs", "3", *more)) == 0
    return out


def test_an_epoch_has_the_stated_number_of_steps(kept_last: Path) -> None:
    last = torch.load(kept_last / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (3, 9)  # of 3 cases and a batch of 2, each once, there would be 2


def test_no_stated_number_is_each_case_once(tiny_manifest: Path, tmp_path: Path) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / "run", "--epochs", "1")) == 0
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["iteration"] == 2


def test_the_last_weights_are_what_is_kept_and_reported(kept_last: Path) -> None:
    assert weights_of(kept_last) == kept_last / "final.pt"
    assert equal(state(kept_last / "final.pt"), state(kept_last / "last.pt"))
    best = json.loads((kept_last / "run.json").read_text())["best"]
    assert best == {"epoch": 3, "val_mean_dice": float(rows(kept_last)[-1]["val_mean_dice"])}


def test_what_was_used_is_recorded(kept_last: Path) -> None:
    record = json.loads((kept_last / "run.json").read_text())
    assert record["precision"] == "bfloat16" and record["channels_last"] is True
    assert record["environment"]["hardware"]["cpu_kind"] in ("amx", "avx512_bf16", "neither")


def test_auto_is_settled_when_a_run_begins(tiny_manifest: Path, tmp_path: Path, monkeypatch) -> None:
    from segpipe.common import precision

    for kind, used in (("amx", "bfloat16"), ("neither", "float32")):
        monkeypatch.setattr(precision, "cpu_kind", lambda kind=kind: kind)
        saved = tmp_path / f"{kind}.json"
        arguments = train_arguments(tiny_manifest, tmp_path / "run", "--explain", "--save-config", str(saved))
        assert run(arguments) == 0
        assert json.loads(saved.read_text())["precision"] == used


def test_a_run_in_bfloat16_that_keeps_its_last_weights_resumes_bit_for_bit(
    kept_last: Path, tiny_manifest: Path, tmp_path: Path, monkeypatch
) -> None:
    from segpipe.components.handlers import StopOnNonFinite

    def interrupt(self, engine) -> None:
        if engine.state.iteration == 5:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    more = ["--set", "keep_weights=last", "--set", "steps_per_epoch=3", "--set", "precision=bfloat16"]
    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "3", *more)) == 130
    assert not (out / "final.pt").exists()
    assert run(["train", "--resume", str(out)]) == 0
    assert equal(state(out / "final.pt"), state(kept_last / "final.pt"))


def test_a_run_that_is_extended_has_no_final_weights_until_its_new_end(
    kept_last: Path, tmp_path: Path, monkeypatch
) -> None:
    import shutil

    from segpipe.components.handlers import StopOnNonFinite

    out = tmp_path / "extended"
    shutil.copytree(kept_last, out)

    def interrupt(self, engine) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(["train", "--resume", str(out), "--epochs", "4"]) == 130
    assert not (out / "final.pt").exists()
    assert run(["train", "--resume", str(out)]) == 0
    assert equal(state(out / "final.pt"), state(out / "last.pt"))
    assert not equal(state(out / "final.pt"), state(kept_last / "final.pt"))


def test_amp_of_earlier_fragments_is_refused_with_what_replaces_it(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / "run", "--set", "amp=true")) == 2
    assert "precision" in capsys.readouterr().err
    own = tmp_path / "runtime.yaml"
    own.write_text("amp: false\n")
    assert run(train_arguments(tiny_manifest, tmp_path / "run", "--runtime", str(own))) == 2
    assert "precision" in capsys.readouterr().err


AVERAGED = ["--set", "averaging=0.9", "--set", "warmup_epochs=2", "--set", "steps_per_epoch=4", "--epochs", "4"]


def test_averaged_weights_are_validated_kept_and_resumed_bit_for_bit(
    tiny_manifest: Path, tmp_path: Path, monkeypatch
) -> None:
    from segpipe.components.handlers import StopOnNonFinite

    whole, out = tmp_path / "whole", tmp_path / "stopped"
    for keep in ("best", "last"):
        assert run(train_arguments(tiny_manifest, whole / keep, *AVERAGED, "--set", f"keep_weights={keep}")) == 0
    last = torch.load(whole / "last" / "last.pt", weights_only=True)
    assert equal(state(whole / "last" / "final.pt"), last["averaged"])
    assert not equal(last["averaged"], last["network"])
    assert [float(row["learning_rate"]) for row in rows(whole / "last")][:3] == pytest.approx(
        [0.002 / 3, 0.004 / 3, 0.002]
    )
    best = torch.load(whole / "best" / "last.pt", weights_only=True)
    assert equal(last["network"], best["network"]), "what is kept does not change what is trained"
    kept = state(whole / "best" / "best.pt")
    assert (best["best_epoch"] == 4) == equal(kept, best["averaged"]) and not equal(kept, best["network"])

    def interrupt(self, engine) -> None:
        if engine.state.iteration == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(train_arguments(tiny_manifest, out, *AVERAGED, "--set", "keep_weights=last")) == 130
    assert run(["train", "--resume", str(out)]) == 0
    again = torch.load(out / "last.pt", weights_only=True)
    assert equal(again["averaged"], last["averaged"]) and equal(again["network"], last["network"])
    told = [{name: row[name] for name in ("val_mean_dice", "val_loss", "learning_rate")} for row in rows(out)]
    assert told == [
        {name: row[name] for name in ("val_mean_dice", "val_loss", "learning_rate")} for row in rows(whole / "last")
    ]


def test_early_stopping_is_told_and_stands_in_the_history(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "early"
    stop = ["--set", "early_stop_patience=2", "--set", "learning_rate=1e-9", "--set", "keep_weights=last"]
    assert run(train_arguments(tiny_manifest, out, *stop, "--epochs", "9")) == 0
    assert "stopped early: no better validation Dice in 2 validations" in capsys.readouterr().err
    assert [row["validations_since_best"] for row in rows(out)][-2:] == ["1.0", "2.0"]
    assert len(rows(out)) < 9 and (out / "final.pt").is_file()


def test_a_warm_up_as_long_as_the_run_is_refused(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    arguments = train_arguments(tiny_manifest, tmp_path / "run", "--epochs", "2", "--set", "warmup_epochs=2")
    assert run(arguments) == 2
    assert "warm-up" in capsys.readouterr().err


def test_the_recipe_of_nnunet_trains_and_resumes_bit_for_bit(tiny_manifest: Path, tmp_path: Path, monkeypatch) -> None:
    from segpipe.components.handlers import StopOnNonFinite

    whole, out = tmp_path / "whole", tmp_path / "stopped"
    more = ["--augment", "nnunet_mirror", "--epochs", "3", "--set", "steps_per_epoch=3"]
    assert run(train_arguments(tiny_manifest, whole, *more)) == 0
    assert json.loads((whole / "run.json").read_text())["mirror_axes"] == ["x", "y", "z"]

    def interrupt(self, engine) -> None:
        if engine.state.iteration == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", interrupt)
        assert run(train_arguments(tiny_manifest, out, *more)) == 130
    assert run(["train", "--resume", str(out)]) == 0
    assert equal(state(out / "last.pt"), state(whole / "last.pt"))
    plain = [*more[2:], "--augment", "none"]
    assert run(train_arguments(tiny_manifest, tmp_path / "plain", *plain)) == 0
    assert not equal(state(tmp_path / "plain" / "last.pt"), state(whole / "last.pt"))


def test_a_dry_run_takes_the_transforms_of_the_batch_too(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    arguments = train_arguments(tiny_manifest, tmp_path / "run", "--augment", "nnunet", "--dry-run", "--json")
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"]["batch_shape"] == [2, 1, 16, 16, 16]


@pytest.mark.parametrize(
    "override",
    [
        "batch_transforms#0#degrees=big",
        "batch_transforms#0#scale=[2]",
        "batch_transforms#0#prob=1.5",
        "batch_transforms#1#std=[0.3,0.1]",
        "batch_transforms#2#channel_prob=x",
        "batch_transforms=3",
        "batch_transforms=[1]",
    ],
)
def test_arguments_that_make_no_sense_are_named(tiny_manifest: Path, tmp_path: Path, capsys, override: str) -> None:
    arguments = train_arguments(tiny_manifest, tmp_path / "run", "--augment", "nnunet", "--dry-run", "--set", override)
    assert run(arguments) == 2
    assert override.partition("=")[0].rpartition("#")[2] in capsys.readouterr().err


def test_a_run_whose_config_an_earlier_version_wrote_trains_and_resumes_bit_for_bit(
    tiny_manifest: Path, tmp_path: Path, monkeypatch
) -> None:
    from segpipe.components.handlers import StopOnNonFinite
    from segpipe.training import start
    from segpipe.training.fragments import Composed, compose_config

    earlier = json.loads(Path(__file__).with_name("train_config_of_an_earlier_version.json").read_text())
    assert earlier["amp"] is False and "precision" not in earlier and "averaged" not in earlier["train"]
    fragments = {"network": "unet", "loss": "dice_ce", "augment": "none", "runtime": "cpu"}
    task = compose_config({**fragments, "task": str(tiny_manifest.parent / "task.yaml")}).config
    names = ("channels", "labels", "in_channels", "out_channels", "patch_size", "deterministic_transforms")
    small = {
        "max_epochs": 3,
        "val_interval": 1,
        "batch_size": 2,
        "threads": 1,
        "dataset_dir": str(tiny_manifest.parent),
    }
    small["manifest"] = "$@bundle_root + '/manifest.json'"
    small["run_dir"] = "@bundle_root"
    for name in ("whole", "stopped"):
        out = tmp_path / name
        config = {**earlier, **{id: task[id] for id in names}, **small, "bundle_root": str(out)}
        config["network_def"] = {**earlier["network_def"], "channels": [4, 8], "strides": [2]}

        def interrupt(self, engine) -> None:
            if engine.state.epoch == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if name == "stopped":
                patch.setattr(StopOnNonFinite, "__call__", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    start(Composed(config), tiny_manifest, out)
            else:
                start(Composed(config), tiny_manifest, out)
    assert run(["train", "--resume", str(tmp_path / "stopped")]) == 0
    assert equal(state(tmp_path / "whole" / "last.pt"), state(tmp_path / "stopped" / "last.pt"))
    assert weights_of(tmp_path / "whole") == tmp_path / "whole" / "best.pt"


def test_the_estimate_of_a_dry_run_counts_steps_and_validations(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    arguments = train_arguments(tiny_manifest, tmp_path / "run", "--dry-run", "--json", "--epochs", "1000")
    assert run([*arguments, "--set", "steps_per_epoch=7", "--set", "val_interval=3"]) == 0
    found = json.loads(capsys.readouterr().out)["dry_run"]
    assert found["steps_per_epoch"] == 7
    seconds = 7000 * found["seconds_per_step"] + 334 * 3 * found["seconds_per_validation_case"]
    rounding = (7000 + 1002) * 0.0005 + 3
    assert abs(found["estimated_minutes"] * 60 - seconds) <= rounding


def test_a_dry_run_of_several_processes_is_of_the_share_of_one(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    found = {}
    for processes in (1, 3):
        words = ["--processes", str(processes), "--set", "batch_size=3", "--epochs", "900", "--dry-run", "--json"]
        assert run(train_arguments(tiny_manifest, tmp_path / "run", *words)) == 0
        found[processes] = json.loads(capsys.readouterr().out)["dry_run"]
    one, three = found[1], found[3]
    assert (one["batch_shape"][0], three["batch_shape"][0]) == (3, 1)
    assert (three["processes"], three["steps_per_epoch"]) == (3, one["steps_per_epoch"]) == (3, 1)
    assert 2.8 * one["memory_gb"] < three["memory_gb"] <= 3 * one["memory_gb"] + 0.01
    seconds = 900 * (three["seconds_per_step"] + three["seconds_per_validation_case"])  # one case each
    assert abs(three["estimated_minutes"] * 60 - seconds) <= 1800 * 0.0005 + 3
