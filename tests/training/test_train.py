"""Training: repeatable, resumable, and stopped with a reason. Small networks on generated volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import segpipe
from segpipe.cli.app import run
from segpipe.common.folder_lock import locked
from segpipe.data.manifest import NOT_HASHED
from segpipe.errors import UsageError
from segpipe.training import session
from segpipe.training.fragments import Composed
from segpipe.training.session import unwrap
from tiny_data import train_arguments, write_data


def weights(out: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    state = torch.load(out / name, weights_only=True)
    return state["network"] if name == "last.pt" else state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def whole(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(train_arguments(tiny_manifest, out, "--epochs", "4")) == 0
    return out


def stop_after(out: Path, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt in the middle of the epoch after."""
    from segpipe.components.handlers import StopOnNonFinite

    def interrupt(self, engine) -> None:
        if engine.state.epoch == epochs + 1 and engine.state.iteration % engine.state.epoch_length == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopOnNonFinite, "__call__", interrupt)


def test_a_run_leaves_everything_that_repeats_it(whole: Path, tiny_manifest: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["cases"] == {"training": ["case_1", "case_3", "case_5"], "validation": ["case_0", "case_2", "case_4"]}
    assert record["threads"] == 1
    assert {"torch", "monai", "segpipe"} <= set(record["environment"]["versions"])
    assert (whole / "manifest.json").read_text() == tiny_manifest.read_text()
    config = json.loads((whole / "config.json").read_text())
    assert config["max_epochs"] == 4
    rows = history(whole)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row[name]) > 0 for row in rows for name in ("train_loss", "val_loss", "learning_rate"))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert same(weights(whole, "best.pt"), weights(whole, "best.pt"))
    assert record["best"]["val_mean_dice"] == max(float(row["val_mean_dice"]) for row in rows)


def test_tensorboard_has_every_scalar_once_an_epoch_and_a_picture(whole: Path) -> None:
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert {"train_loss", "val_loss", "val_mean_dice", "learning_rate", "dice_liver"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
    assert len(events.Images("validation case")) == 4


def test_two_runs_with_one_seed_are_bit_identical_and_another_seed_is_not(whole, tiny_manifest, tmp_path) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / "same", "--epochs", "4")) == 0
    assert same(weights(whole), weights(tmp_path / "same"))
    assert run(train_arguments(tiny_manifest, tmp_path / "other", "--epochs", "1", "--seed", "1")) == 0
    assert history(tmp_path / "other")[0]["train_loss"] != history(whole)[0]["train_loss"]


def test_an_interrupted_run_resumes_bit_for_bit(whole, tiny_manifest, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(out, 2, patch)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "4")) == 130
    assert f"segpipe train --resume {out}" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert len(history(out)) == 2
    assert run(["train", "--resume", str(out)]) == 0
    assert same(weights(whole), weights(out))
    assert same(weights(whole, "best.pt"), weights(out, "best.pt"))
    ignored = {"seconds", "train_seconds"}
    assert [{k: v for k, v in row.items() if k not in ignored} for row in history(out)] == [
        {k: v for k, v in row.items() if k not in ignored} for row in history(whole)
    ]
    one, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, out))
    assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    for name in ("lr_scheduler", "best", "best_epoch", "stale", "epoch", "iteration"):
        assert one[name] == other[name]
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]


def test_resuming_a_finished_run_does_nothing(whole: Path, capsys) -> None:
    before = (whole / "last.pt").stat().st_mtime_ns
    assert run(["train", "--resume", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert (whole / "last.pt").stat().st_mtime_ns == before


def test_a_run_is_not_written_over_and_a_changed_config_not_resumed(whole, tiny_manifest, tmp_path, capsys) -> None:
    assert run(train_arguments(tiny_manifest, whole)) == 2
    assert "--resume" in capsys.readouterr().err
    changed = tmp_path / "changed"
    changed.mkdir()
    record = json.loads((whole / "run.json").read_text())
    (changed / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    (changed / "config.json").write_text((whole / "config.json").read_text() + " ")
    assert run(["train", "--resume", str(changed)]) == 2
    assert "changed" in capsys.readouterr().err
    assert run(["train", "--resume", str(tmp_path / "none")]) == 2
    assert run(["train", str(tiny_manifest), "--resume", str(whole)]) == 2


def test_a_run_is_not_resumed_by_what_would_not_train(whole: Path, capsys) -> None:
    for option in ("--dry-run", "--explain"):
        assert run(["train", "--resume", str(whole), option]) == 2
        assert f"{option} would not train" in capsys.readouterr().err
    with pytest.raises(UsageError, match="would not train"):
        segpipe.train(resume=whole, dry_run=True)


@pytest.mark.parametrize(
    "more", ["--loss dice_ce", "--network dynunet --seed 7", "--fold 1", "--store none", "--out x"]
)
def test_what_a_resumed_run_would_not_obey_is_refused(whole: Path, capsys, more: str) -> None:
    assert run(["train", "--resume", str(whole), *more.split()]) == 2
    assert f"found: {', '.join(word for word in more.split() if word.startswith('--'))}" in capsys.readouterr().err


def test_what_a_resumed_run_would_not_obey_is_refused_in_python_too(whole: Path) -> None:
    with pytest.raises(UsageError, match="settings from the run") as caught:
        segpipe.train(resume=whole, loss="tversky", member=2, progress=len)
    assert caught.value.found == "loss, member"


def test_a_session_is_recorded_when_it_begins_and_a_killed_one_has_the_time_of_its_epochs(
    tmp_path: Path, monkeypatch
) -> None:
    rows = "".join(f"{epoch},{seconds}\n" for epoch, seconds in ((1, 7.5), (2, 2.0), (3, 3.25)))
    (tmp_path / "history.csv").write_text("epoch,seconds,val_mean_dice\n" + rows.replace("\n", ",\n"))
    killed = {"resumed": True, "began": 5.0, "versions": {}, "seconds": 0.0}
    record = {"status": "interrupted", "epochs": 1, "sessions": [{**killed, "seconds": 9.0}, killed]}
    seen: list[list[float]] = []

    def execute(*_: object) -> None:
        written = json.loads((tmp_path / "run.json").read_text())
        seen.append([session["seconds"] for session in written["sessions"]])

    monkeypatch.setattr(session, "_execute", execute)
    ended = session._session(tmp_path, record, True, None, len)
    assert seen == [[9.0, 5.2, 0.0]]  # 2.0 s and 3.25 s: the first epoch is of the first session
    assert [each["seconds"] for each in ended["sessions"]][:2] == [9.0, 5.2]


def test_of_two_that_begin_at_once_the_second_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "run", UsageError("unused")), pytest.raises(UsageError, match="another process trains"):
        session.start(Composed({"fold": 0}), tmp_path / "manifest.json", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_jobs_are_of_several_runs(whole: Path, tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    for words in (train_arguments(tiny_manifest, tmp_path / "run"), ["train", "--resume", str(whole)]):
        assert run([*words, "--jobs", "3"]) == 2
        assert "--jobs is of several runs" in capsys.readouterr().err


def test_what_is_missing_is_named_as_it_is_given(tiny_manifest: Path, capsys) -> None:
    assert run(["train", str(tiny_manifest)]) == 2
    assert "--task and --out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="task= and out="):
        segpipe.train(tiny_manifest)


def test_a_damaged_checkpoint_is_named(whole, tmp_path, capsys) -> None:
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_text((whole / name).read_text())
    record = json.loads((whole / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    (tmp_path / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:500])
    assert run(["train", "--resume", str(tmp_path)]) == 3
    assert "last.pt" in capsys.readouterr().err


def test_early_stopping_counts_validations_and_survives_a_resume(tiny_manifest, tmp_path) -> None:
    out = tmp_path / "early"
    stop = ["--set", "early_stop_patience=2", "--set", "learning_rate=1e-9", "--epochs", "9"]
    assert run(train_arguments(tiny_manifest, out, *stop)) == 0
    state = torch.load(out / "last.pt", weights_only=True)
    assert state["stale"] == 2
    assert state["epoch"] == state["best_epoch"] + 2 < 9


def test_loss_that_is_not_finite_stops_the_run_and_names_the_cases(tiny_manifest, tmp_path, capsys) -> None:
    out = tmp_path / "diverged"
    assert run(train_arguments(tiny_manifest, out, "--epochs", "30", "--set", "learning_rate=1e30")) == 2
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "case_" in error
    assert "learning_rate" in error
    assert not (out / "last.pt").exists(), "weights that diverged are not kept"


def spoiled(tiny_manifest: Path, folder: Path, change) -> Path:
    """A copy of the data set whose case_1 was changed: change(image, label) returns new arrays."""
    import shutil

    shutil.copytree(tiny_manifest.parent, folder)
    paths = [folder / kind / "case_1.nii.gz" for kind in ("images", "labels")]
    loaded = [nib.load(path) for path in paths]
    arrays = change(*[np.asarray(volume.dataobj).astype(np.float32) for volume in loaded])
    for path, volume, array in zip(paths, loaded, arrays, strict=True):
        nib.save(nib.Nifti1Image(array, volume.affine), path)
    return folder / "manifest.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image, label: (np.where(label > 0, np.nan, image), label), "NaN"),
        (lambda image, label: (np.ones_like(image), label), "constant"),
        (lambda image, label: (image, np.where(label == 3, 7, label)), "outside the manifest"),
        (lambda image, label: (image, label * 0.8), "outside the manifest"),
        (lambda image, label: (image, label[:-2]), "different grids"),
        (lambda image, label: (np.stack([image, image], -1), label), "channels"),
    ],
)
def test_bad_data_is_refused_by_case_before_the_first_step(tiny_manifest, tmp_path, capsys, change, words) -> None:
    manifest = spoiled(tiny_manifest, tmp_path / "data", change)
    assert run(train_arguments(manifest, tmp_path / "run", "--epochs", "1")) == 3
    error = capsys.readouterr().err
    assert words in error
    assert "case_1" in error
    assert not (tmp_path / "run" / "last.pt").exists()


def test_unreadable_and_missing_files(tiny_manifest, tmp_path, capsys) -> None:
    manifest = spoiled(tiny_manifest, tmp_path / "data", lambda image, label: (image, label))
    path = tmp_path / "data/images/case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    assert run(train_arguments(manifest, tmp_path / "cut", "--epochs", "1")) == 3
    assert "case_1" in capsys.readouterr().err
    path.unlink()
    assert run(train_arguments(manifest, tmp_path / "gone", "--epochs", "1")) == 2
    assert "case_1" in capsys.readouterr().err


def test_usage_errors(tiny_manifest, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert run(train_arguments(tiny_manifest, out, "--fold", "7")) == 2
    assert run(train_arguments(tmp_path / "none.json", out)) == 2
    assert run(train_arguments(tiny_manifest, out, "--set", "max_epoch=4")) == 2
    assert run(train_arguments(tiny_manifest, out, "--network", "unett")) == 2
    assert run(train_arguments(tiny_manifest, out, "--set", "labels=[background,liver,kidney,other]")) == 2
    assert run(["train", str(tiny_manifest)]) == 2
    (tmp_path / "file").write_text("")
    assert run(train_arguments(tiny_manifest, tmp_path / "file" / "run")) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not out.exists()


def test_dry_run_builds_everything_and_writes_nothing(tiny_manifest, tmp_path, capsys) -> None:
    arguments = train_arguments(tiny_manifest, tmp_path / "run", "--dry-run", "--json")
    assert run(arguments) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["dry_run"]
    assert NOT_HASHED in said.err
    assert found["batch_shape"] == [2, 1, 16, 16, 16]
    assert found["validation_scores_shape"][1] == 4
    assert not (tmp_path / "run").exists()


def test_patients_of_the_test_set_are_not_trained_on(tmp_path, capsys) -> None:
    path = write_data(tmp_path / "data")
    document = json.loads(path.read_text())
    document["test"] = [{**document["training"].pop(), "fold": None, "patient_id": "P1"}]
    document["training"][0]["patient_id"] = "P1"
    path.write_text(json.dumps(document))
    assert run(train_arguments(path, tmp_path / "run")) == 3
    assert "patients of the test set are in training too" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["tversky", "focal_tversky", "hausdorff", "lovasz_softmax"])
def test_each_loss_trains_by_one_word(tiny_manifest, tmp_path, loss: str) -> None:
    assert run(train_arguments(tiny_manifest, tmp_path / loss, "--loss", loss, "--epochs", "2")) == 0
    rows = history(tmp_path / loss)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


def test_unetpp_trains_with_deep_supervision(tiny_manifest, tmp_path) -> None:
    more = ["--network", "unetpp", "--set", "network_def#features=[4,4,4,8,8,4]", "--set", "patch_size=[32,32,32]"]
    more += ["--epochs", "1", "--set", "val_interval=1", "--augment", "none"]
    assert run(train_arguments(tiny_manifest, tmp_path / "run", *more, small=False)) == 0
    assert weights(tmp_path / "run", "best.pt")


def test_unwrap_finds_our_error_or_the_first_cause() -> None:
    from segpipe.errors import DataError, UsageError

    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise RuntimeError("outer") from error
        except RuntimeError as error:
            return error

    assert isinstance(unwrap(wrapped(DataError("x"))), DataError)
    assert isinstance(unwrap(wrapped(OSError(28, "No space left on device", "f"))), UsageError)
    assert isinstance(unwrap(wrapped(KeyError("x"))), KeyError)


def test_the_scaler_of_mixed_precision_travels_in_the_checkpoint(tiny_manifest, tmp_path, monkeypatch) -> None:
    # without a GPU the scaler is switched off, so its state is empty; but it is there, and clipping asks it
    out = tmp_path / "amp"
    with monkeypatch.context() as patch:
        stop_after(out, 1, patch)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "2", "--set", "train#trainer#amp=true")) == 130
    assert torch.load(out / "last.pt", weights_only=True)["scaler"] == {}
    assert run(["train", "--resume", str(out)]) == 0


def test_a_disk_that_is_full_for_tensorboard_is_told_once_and_without_a_traceback(
    tiny_manifest, tmp_path, monkeypatch, capfd
) -> None:
    import threading

    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write

    def full(self, data: bytes) -> None:
        if b"train_loss" in data:
            raise OSError(28, "No space left on device", "events")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's prints nothing
    assert run(train_arguments(tiny_manifest, tmp_path / "run", "--epochs", "3")) == 2
    said = capfd.readouterr().err
    assert "No space left" in said and "Traceback" not in said
