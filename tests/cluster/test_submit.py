"""`segpipe submit`: which jobs a command becomes, how they are followed, and that what died is submitted again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.cli.submit_ import read_command
from segpipe.cluster import Resources, Task, exit_code, submit
from segpipe.cluster import planned as planned_of
from segpipe.cluster.jobs import last_words
from segpipe.errors import DataError, UsageError
from segpipe.training import read_fragment
from tiny_submit import FakeEngine

PREDICT = ["predict", "bundle", "scans", "out"]
COMPARE = ["compare", "m.json", "--task", "t.yaml", "--network", "unet,unetpp", "--loss", "dice", "--out", "c"]
FOLDS = ["train", "m.json", "--folds", "all", "--out", "x"]


def planned(words: Sequence[str], *arguments: Any, **more: Any) -> list[Task]:
    return planned_of(read_command(words), *arguments, **more)


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    said: list[str] = []

    def followed(engine: FakeEngine, words: Sequence[str] = PREDICT, array: int | None = 2) -> dict[str, Any]:
        monkeypatch.setattr("segpipe.cluster.submission.engine_of", lambda *_: engine)
        tasks = planned(words, tmp_path / "jobs", array, tmp_path)
        return submit(tasks, tmp_path / "jobs", "slurm", Resources(), said.append, poll_s=0, grace_s=0)

    followed.said = said  # type: ignore[attr-defined]
    return followed


def states(document: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(row["state"], row["code"]) for row in document["tasks"]]


def test_shares_of_a_prediction(tmp_path: Path) -> None:
    tasks = planned(PREDICT, tmp_path, 3)
    assert [task.words for task in tasks] == [(*PREDICT, "--shard", f"{index}/3") for index in range(3)]
    assert {task.folder for task in tasks} == {str(Path.cwd())}
    assert planned(PREDICT, tmp_path)[0].words == tuple(PREDICT)


@pytest.mark.parametrize(
    ("places", "made"),
    [
        ("bundle scans out", "out"),
        ("bundle a.nii.gz b.nii.gz out", "out"),
        ("bundle a b c out --only nifti", "out"),
        ("bundle scans --device cpu out", "out"),
        ("--json bundle scans out", "out"),
        ("bundle --only nifti a b --threads=2 out --no-overlay", "out"),
    ],
)
def test_what_a_prediction_makes_is_its_last_place(places: str, made: str, tmp_path: Path) -> None:
    assert {task.made for task in planned(["predict", *places.split()], tmp_path, 2)} == {made}


def test_folds_of_a_training_and_what_measures_them(tiny_manifest: Path, tmp_path: Path) -> None:
    words = ["train", str(tiny_manifest), "--task", "t.yaml", "--folds", "all", "--out", "runs/cv", "--epochs", "2"]
    first, second, measure = planned(words, tmp_path)
    shared = ("train", str(tiny_manifest), "--task", "t.yaml", "--epochs", "2")
    assert first.words == (*shared, "--fold", "0", "--out", "runs/cv/fold_0", "--set", "keep_weights=last")
    assert second.again == ("train", "--resume", "runs/cv/fold_1") and second.begun == "runs/cv/fold_1/run.json"
    assert measure.words == tuple(words) and measure.after and not first.after
    (alone,) = planned(["train", "m.json", "--out=runs/one"], tmp_path)
    assert (alone.begun, alone.again) == ("runs/one/run.json", ("train", "--resume", "runs/one"))


def test_a_manifest_may_stand_anywhere(tiny_manifest: Path, tmp_path: Path) -> None:
    words = ["train", "--task=t.yaml", "--folds", "0", "--epochs", "2", str(tiny_manifest), "--jobs=2", "--out", "cv"]
    fold, measure = planned(words, tmp_path)
    shared = ("train", "--task=t.yaml", "--epochs", "2", str(tiny_manifest))
    assert fold.words == (*shared, "--fold", "0", "--out", "cv/fold_0", "--set", "keep_weights=last")
    assert measure.words == tuple(words) and measure.made == "cv"


def test_what_goes_on_has_what_no_run_records(tiny_manifest: Path, tmp_path: Path) -> None:
    words = ["train", str(tiny_manifest), "--task", "t.yaml", "--folds=all", "--out=cv", "--mlflow=http://h:5000"]
    first, second, measure = planned(words, tmp_path, allow_other_cpu=True)
    assert measure.after and not any(word.startswith("--folds") for word in first.words)
    assert first.words[-6:] == ("--fold", "0", "--out", "cv/fold_0", "--set", "keep_weights=last")
    assert second.again == ("train", "--resume", "cv/fold_1", "--mlflow", "http://h:5000", "--allow-other-cpu")
    (resumed,) = planned(["train", "--resume=one", "--out", "one"], tmp_path)
    assert not resumed.begun
    with pytest.raises(UsageError, match="only a training"):
        planned(PREDICT, tmp_path, allow_other_cpu=True)


def test_the_folder_of_the_jobs_is_its_owners_alone(follow: Any, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    umask = os.umask(0)
    try:
        follow(FakeEngine(0, 0))
    finally:
        os.umask(umask)
    assert jobs.stat().st_mode & 0o777 == 0o700
    jobs.chmod(0o755)  # of an earlier version
    follow(FakeEngine())
    assert jobs.stat().st_mode & 0o777 == 0o700
    jobs.chmod(0o770)
    with pytest.raises(UsageError, match="others may write") as refused:
        follow(FakeEngine())
    subprocess.run((refused.value.hint or "").partition("or: ")[2].split(), check=True)
    assert exit_code(follow(FakeEngine())) == 0
    (jobs / "submission.json").rename(jobs / "mine.txt")
    jobs.chmod(0o755)
    with pytest.raises(UsageError, match="has other files"):
        follow(FakeEngine())
    assert jobs.stat().st_mode & 0o777 == 0o755


def test_seeds_of_a_training_and_what_says_how_far_they_differ(tmp_path: Path) -> None:
    words = ["train", "m.json", "--task", "t.yaml", "--seeds=2", "--seed", "5", "--out", "s", "--jobs", "2", "--json"]
    first, second, spread = planned(words, tmp_path)
    assert first.words == ("train", "m.json", "--task", "t.yaml", "--json", "--seed", "5", "--out", "s/seed5")
    assert second.words[-4:] == ("--seed", "6", "--out", "s/seed6") and second.name == "seed 6"
    assert (second.begun, second.again) == ("s/seed6/run.json", ("train", "--resume", "s/seed6", "--json"))
    assert spread.words == tuple(words) and spread.after and not second.after and not spread.begun


def test_shares_of_a_comparison_and_its_report(tmp_path: Path) -> None:
    first, second, report = planned(COMPARE, tmp_path, 2)
    assert [task.words for task in (first, second)] == [(*COMPARE, "--shard", f"{index}/2") for index in range(2)]
    assert report.words == tuple(COMPARE) and report.after and not second.after
    assert [task.words for task in planned(COMPARE, tmp_path)] == [tuple(COMPARE)]


@pytest.mark.parametrize(
    ("words", "array", "message"),
    [
        ([], None, "not submitted"),
        (["export", "a", "b"], None, "not submitted"),
        ([*PREDICT, "--shard", "0/2"], 2, "the shares are those of the array"),
        (["tune", "m.json", "--task", "t.yaml"], 2, "need its journal"),
        (["auto", "data", "--budget", "2h"], 2, "--array has no place here"),
        ([*COMPARE, "--shard", "0/2"], 2, "the shares are those of the array"),
        (["train", "m.json", "--folds", "all", "--out", "x"], 2, "--array has no place here"),
        (["train", "--folds", "all", "m.json"], None, "are not known"),
        (["train", "--folds", "all", "--out", "x"], None, "are not known"),
        (["predict", "bundle", "out"], None, "cannot be read"),
        ([*PREDICT, "--foramt", "seg"], None, "cannot be read"),
        ([*FOLDS, "--set", "early_stop_patience=20"], None, "last of a fixed number of epochs"),
        ([*FOLDS, "--set=keep_weights=best"], None, "last of a fixed number of epochs"),
        (["train", "m.json", "--folds", "all", "--out", "x", "--budget", "2h"], None, "a length of its own"),
        (["train", "m.json", "--folds", "all", "--out", "x", "--seeds", "2"], None, "every fold with one seed"),
        (["train", "m.json", "--seeds", "2", "--out", "x"], 2, "--array has no place here"),
        (["train", "m.json", "--seeds", "two", "--out", "x"], None, "cannot be read"),
        (["train", "m.json", "--seeds", "2"], None, "the seeds of this command are not known"),
        (["train", "m.json", "--seeds", "2", "--out", "x", "--set", "seed=3"], None, "the same seed"),
        (["train", "m.json", "--seeds", "2", "--out", "x", "--budget", "2h"], None, "a length of its own"),
    ],
)
def test_what_is_not_submitted(words: list[str], array: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        planned(words, tmp_path, array)


def test_folds_of_a_runtime_that_stops_early_are_not_submitted(tiny_manifest: Path, tmp_path: Path) -> None:
    runtime = {**read_fragment("runtime", "cpu")[0], "early_stop_patience": 20}
    (tmp_path / "patient.yaml").write_text(json.dumps(runtime))
    words = ["train", str(tiny_manifest), *FOLDS[2:], "--runtime", "patient.yaml"]
    with pytest.raises(UsageError, match="fixed number of epochs") as caught:
        planned(words, tmp_path / "jobs", folder=tmp_path)
    assert caught.value.found == "early_stop_patience: 20"
    assert planned([*words, "--set", "early_stop_patience=0"], tmp_path / "jobs", folder=tmp_path)  # as the hint says


def test_processes_of_one_search(tmp_path: Path) -> None:
    words = ["tune", "m.json", "--task", "t.yaml", "--storage", "journal"]
    tasks = planned(words, tmp_path, 2)
    assert [task.words for task in tasks] == [tuple(words)] * 2
    assert len({task.result for task in tasks}) == 2


def test_jobs_are_followed_to_their_end(follow: Any) -> None:
    engine = FakeEngine(0, 4)
    document = follow(engine)
    assert states(document) == [("ended", 0), ("ended", 4)] and exit_code(document) == 4
    assert follow.said[-2:] == ["share 0 of 2: finished", "share 1 of 2: finished"]
    again = FakeEngine()
    assert states(follow(again)) == states(document) and again.submitted == []  # nothing is left to do


def test_what_died_or_failed_is_submitted_again(follow: Any, tmp_path: Path) -> None:
    document = follow(FakeEngine(None, 3))
    assert states(document) == [("died", None), ("ended", 3)] and exit_code(document) == 1
    assert "share 0 of 2: job 0 is gone without a result; the same command tries it again" in follow.said
    engine = FakeEngine(0, 0)
    assert exit_code(follow(engine)) == 0 and engine.submitted == ["share 0 of 2", "share 1 of 2"]


def test_what_is_after_the_others_waits_for_them(follow: Any, tiny_manifest: Path) -> None:
    words = ["train", str(tiny_manifest), "--folds", "all", "--out", "cv"]
    failed = FakeEngine(0, 2)
    assert states(follow(failed, words, None)) == [("ended", 0), ("ended", 2), ("waiting", None)]
    assert failed.submitted == ["fold 0", "fold 1"]
    engine = FakeEngine(0, 0)
    assert exit_code(follow(engine, words, None)) == 0
    assert engine.submitted == ["fold 1", "measure"]


def test_ctrl_c_leaves_jobs_that_the_same_command_follows(follow: Any, tmp_path: Path) -> None:
    engine = FakeEngine(0)
    with pytest.raises(KeyboardInterrupt):
        follow(engine)
    assert engine.cancelled == ["1"]  # where that is for the engine to do
    document = json.loads((tmp_path / "jobs/submission.json").read_text())
    assert states(document) == [("ended", 0), ("submitted", None)]
    assert (tmp_path / "jobs/submission.json").stat().st_mode & 0o77 == 0
    engine.ends = [0]
    assert exit_code(follow(engine)) == 0 and len(engine.submitted) == 2


def test_another_command_or_a_damaged_file_is_refused(follow: Any, tmp_path: Path) -> None:
    follow(FakeEngine(0, 0))
    with pytest.raises(UsageError, match="jobs of another command"):
        follow(FakeEngine(0, 0, 0), array=3)
    (tmp_path / "jobs/submission.json").write_text("{}")
    with pytest.raises(DataError, match="not what `segpipe submit` writes"):
        follow(FakeEngine())


def test_without_submitit_or_slurm_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("submitit")
    words = ["submit", "--jobs", str(tmp_path / "jobs"), "--", *PREDICT]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(words) == 2
    assert "try it with --engine local" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    assert run(words) == 2
    assert "pip install 'segpipe[slurm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "message", "expected", "hint"),
    [
        (
            "fatal: Could not establish a configuration source",
            "nothing says which cluster this machine belongs to",
            "a slurm.conf",
            "export SLURM_CONF=PATH",
        ),
        (
            "error: Munge encode failed: Failed to access munge.socket (Did you start munged?)\n"
            "sbatch: error: Batch job submission failed: Protocol authentication error",
            "munge does not answer",
            "munged at work",
            "systemctl start munge",
        ),
        (
            "error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "controller (slurmctld) does not answer",
            "scontrol ping",
            "wait until it does",
        ),
    ],
)
def test_a_slurm_that_is_not_reached_is_named(
    says: str, message: str, expected: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("submitit")
    for name, words in (("srun", "true"), ("sbatch", f"echo 'sbatch: {says}' >&2; exit 1"), ("squeue", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run(["submit", "--jobs", str(tmp_path / "jobs"), "--", *PREDICT]) == 2
    said = capsys.readouterr().err.partition("segpipe submit: error: ")[2]
    assert message in said.partition("\n")[0] and says.rpartition("sbatch: ")[2].partition("\n")[0] in said
    assert expected in said.partition("expected: ")[2].partition("\n")[0]
    assert hint in said.partition("hint: ")[2] and "--engine local" in said and "--partition" not in said


def test_of_a_failed_job_its_error_is_shown_first(tmp_path: Path) -> None:
    said = ["reading", "segpipe predict: error: no such bundle", *(f"  {part}: x" for part in "abc"), "submitit INFO"]
    (tmp_path / "7_0_log.err").write_text("\n".join(said))
    assert last_words(tmp_path, "7") == said[1:5]
    (tmp_path / "8_0_log.err").write_text("\n\n".join(["one", "two", "three", "Killed", ""]))
    assert last_words(tmp_path, "8") == ["two", "three", "Killed"]


def test_results_that_are_gone_are_made_again(follow: Any, tiny_manifest: Path, tmp_path: Path) -> None:
    follow(FakeEngine(0, 0))
    kept = FakeEngine()
    follow(kept)
    assert kept.submitted == [] and "share 1 of 2: ended before, exit code 0; with another --jobs" in follow.said[-1]
    (tmp_path / "out").rmdir()
    engine = FakeEngine(0, 0)
    assert exit_code(follow(engine)) == 0 and engine.submitted == ["share 0 of 2", "share 1 of 2"]
    assert "share 0 of 2: ended before, but out is not there: it runs again" in follow.said


def test_what_is_measured_is_measured_again_when_a_fold_is_gone(
    follow: Any, tiny_manifest: Path, tmp_path: Path
) -> None:
    words = ["train", str(tiny_manifest), "--folds", "all", "--out", "cv"]
    follow(FakeEngine(0, 0, 0), words, None)
    (tmp_path / "cv/fold_1").rmdir()
    engine = FakeEngine(0, 0)
    follow(engine, words, None)
    assert engine.submitted == ["fold 1", "measure"]


def test_that_nobody_can_be_asked_is_said_once(follow: Any) -> None:
    engine = FakeEngine(0, 0)
    states, asked = engine.states, list[int]()

    def away(jobs: Sequence[str]) -> dict[str, str]:
        asked.append(1)
        return dict.fromkeys(jobs, "unknown") if len(asked) in (2, 3) else states(jobs)

    engine.states = away  # type: ignore[method-assign]
    assert exit_code(follow(engine)) == 0
    assert sum("squeue does not answer" in line for line in follow.said) == 1


def test_a_task_goes_on_with_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: called.append(command) or 3)
    (task,) = planned(["train", "m.json", "--out", "one"], tmp_path / "jobs", folder=tmp_path)
    (tmp_path / "jobs").mkdir()
    assert task() == 3 and called[-1][-4:] == ["train", "m.json", "--out", "one"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one/run.json").write_text("{}")
    assert task() == 3 and called[-1][-3:] == ["train", "--resume", "one"]
    assert json.loads(Path(task.result).read_text()) == {"code": 3}
