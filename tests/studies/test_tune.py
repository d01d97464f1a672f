"""`segpipe tune`: what it tries, prunes, takes up after a kill, compares and refuses."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.common.console import quoted
from segpipe.common.folder_lock import locked
from segpipe.data.manifest import load_manifest, save_manifest
from segpipe.errors import DataError, UsageError
from segpipe.studies.space import read_space
from segpipe.studies.trials import Trials
from segpipe.studies.tuning_page import advised_command
from tiny_data import write_data
from tiny_tune import SPACE, FakeTraining

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_data(tmp_path_factory.mktemp("tune") / "data", cases=2)
    dataset = load_manifest(path)  # twelve patients, whose scans nobody reads here
    case = dataset.training[0]
    dataset.training = [
        case.model_copy(update={"id": f"c{number}", "patient_id": f"p{number}", "fold": number % 2})
        for number in range(12)
    ]
    dataset.patient_rule = "each its own"
    save_manifest(dataset, path)
    (path.parent / "space.yaml").write_text(SPACE)
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    return FakeTraining().put(monkeypatch)


@pytest.fixture
def handles(manifest: Path, tmp_path: Path) -> Callable[..., list[Trials]]:
    """Trials of one folder, as so many processes have them."""

    def made(number: int, first_pruned: int | None = None, storage: str = "journal") -> list[Trials]:
        base = {"task": str(manifest.parent / "task.yaml"), "runtime": "cpu"}
        space = read_space(str(manifest.parent / "space.yaml"), {}, base)
        return [Trials(tmp_path / "out", space, storage, 0, first_pruned) for _ in range(number)]

    return made


def tune(manifest: Path, out: Path, *more: str, trials: int = 3, code: int = 0) -> None:
    words = ["tune", str(manifest), "--task", str(manifest.parent / "task.yaml"), "--out", str(out)]
    words += ["--space", str(manifest.parent / "space.yaml"), "--trials", str(trials), "--epochs", "6"]
    words += [] if "--storage" in more else ["--storage", "journal"]  # ten times as fast as SQLite
    assert run([*words, *more]) == code


def state(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "tune.json").read_text())
    return document


def test_the_default_is_tried_first_and_the_best_is_compared_on_folds_drawn_anew(
    fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    fake.noise = lambda case, seed: int(case[1:]) / 1000
    tune(manifest, out, "--set", "batch_size=2", trials=6)
    assert fake.trained[0] == ("default", (0,), 0)
    assert fake.overrides["default"] == ["batch_size=2"]
    assert all(seed == 0 for _, _, seed in fake.trained[:6])
    document = state(out)
    best = document["best"]["candidate"]
    assert best == max(document["trials"], key=lambda trial: trial["dice"] or 0)["name"] != "default"
    assert document["status"] == "finished"
    assert fake.trained[6:] == [("default", (0,), 1), (best, (0,), 1), ("default", (0, 1), 1), (best, (0, 1), 1)]
    assert fake.recorded == [([trial["name"] for trial in document["trials"] if trial["dice"]], best)]
    anew = load_manifest(out / "confirmation" / "manifest.json")
    old = {case.id: case.fold for case in load_manifest(manifest).training}
    assert {case.id for case in anew.training} == set(old)
    assert any(old[case.id] != case.fold for case in anew.training)
    gain = document["confirmation"]["gain"]
    assert gain["patients"] == 12 and document["gain_on_the_search_fold"]["patients"] == 6
    expected = fake.quality(document["best"]["loss"], fake.overrides[best]) - 0.54 + sum(range(12)) / 12_000
    assert gain["difference"]["mean"] == pytest.approx(expected)
    assert document["recommended"] and gain["difference"]["low"] > 0
    said = capsys.readouterr().out
    assert f"{best} is recommended" in said and "gain on folds drawn anew: +" in said
    page = (out / "tune.html").read_text()
    assert f"{best} is recommended" in page and "segpipe train MANIFEST --task task.yaml" in page
    assert f"--set {quoted(fake.overrides[best][-1])}" in html.unescape(page)
    assert f"next: segpipe export {out}/candidates/{best}/run/fold_0 BUNDLE" in said


def test_a_gain_that_does_not_hold_is_not_recommended(
    fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    fake.noise = lambda case, seed: (-0.5 if int(case[1:]) % 3 else 0.5) if seed else 0.0
    tune(manifest, tmp_path / "out", trials=6)
    document = state(tmp_path / "out")
    assert document["gain_on_the_search_fold"]["difference"]["mean"] > 0
    assert not document["recommended"]
    said, best = capsys.readouterr().out, document["best"]
    assert "is not recommended: on folds drawn anew its gain may be chance" in said
    assert f"next: segpipe export {tmp_path}/out/candidates/default/run/fold_0 BUNDLE" in said
    page = html.unescape((tmp_path / "out/tune.html").read_text())
    assert "--loss dice_ce --augment light --epochs 6 --folds all --out RUN" in page
    assert best["overrides"] and not any(each in page.partition("--folds all")[0] for each in best["overrides"])


def test_cases_of_unknown_patients_are_counted_as_cases(
    fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    dataset = load_manifest(manifest)
    dataset.training = [case.model_copy(update={"patient_id": None}) for case in dataset.training]
    dataset.patient_rule = None
    save_manifest(dataset, manifest.parent / "unknown.json")
    fake.noise = lambda case, seed: int(case[1:]) / 1000
    tune(manifest.parent / "unknown.json", tmp_path / "out", trials=6)
    said, page = capsys.readouterr().out, html.unescape((tmp_path / "out/tune.html").read_text())
    for text in (" ".join(said.split()), page):
        assert "; 12 cases, patients unknown)" in text and "12 patients" not in text
    assert "interval over cases" in page and "interval over patients" not in page


def test_a_loss_alone_may_be_recommended() -> None:
    """The best then has no overrides."""
    default = {"network": "unet", "loss": "dice_ce", "augment": "light", "learning_rate": 0.002}
    settings = {"task": "t.yaml", "runtime": "cpu", "epochs": None, "overrides": [], "default": default}
    document = {"best": {**default, "candidate": "trial_3", "loss": "tversky"}, "settings": settings}
    head = "segpipe train MANIFEST --task t.yaml --runtime cpu --network unet"
    for recommended, loss in ((True, "tversky"), (False, "dice_ce")):
        words = advised_command({**document, "recommended": recommended})
        assert words == f"{head} --loss {loss} --augment light --folds all --out RUN"


def test_few_patients_show_nothing(fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any) -> None:
    dataset = load_manifest(manifest)
    dataset.training = dataset.training[:5]
    save_manifest(dataset, tmp_path / "manifest.json")
    for name in ("task.yaml", "space.yaml"):
        (tmp_path / name).symlink_to(manifest.parent / name)
    fake.noise = lambda case, seed: 0.01 + int(case[1:]) / 1000
    tune(tmp_path / "manifest.json", tmp_path / "out", trials=6)
    document = state(tmp_path / "out")
    assert document["confirmation"]["gain"]["difference"]["low"] > 0 and not document["recommended"]
    assert "is not recommended: 5 patients cannot show it" in capsys.readouterr().out


def test_the_same_command_goes_on_and_ends_as_if_it_had_not_stopped(
    fake: FakeTraining, manifest: Path, tmp_path: Path
) -> None:
    tune(manifest, tmp_path / "whole", trials=3)
    fake.stop_at = "trial_1"
    tune(manifest, tmp_path / "stopped", trials=3, code=130)
    assert [trial["state"] for trial in state(tmp_path / "stopped")["trials"]] == ["complete"]
    fake.stop_at = None
    fake.trained.clear()
    tune(manifest, tmp_path / "stopped", trials=3)
    assert [name for name, _, _ in fake.trained][:2] == ["trial_1", "trial_2"]
    whole, stopped = (state(tmp_path / name) for name in ("whole", "stopped"))
    for document in (whole, stopped):
        document.pop("seconds")
        for trial in document["trials"]:
            trial.pop("seconds")
    assert stopped == whole
    tune(manifest, tmp_path / "stopped", trials=4)  # more of them, later
    assert len(state(tmp_path / "stopped")["trials"]) == 4


def test_what_is_bad_early_is_given_up_and_the_curve_of_a_killed_trial_counts(
    fake: FakeTraining, manifest: Path, tmp_path: Path
) -> None:
    class Worse(FakeTraining):
        def quality(self, loss: str, overrides: list[str]) -> float:
            return 0.2 if len(self.trained) > 5 else 0.6

    with pytest.MonkeyPatch.context() as patch:
        worse = Worse().put(patch)
        tune(manifest, tmp_path / "out", trials=7)
        trials = state(tmp_path / "out")["trials"]
        assert [trial["state"] for trial in trials] == ["complete"] * 5 + ["pruned"] * 2
        assert 2 <= trials[-1]["epochs"] < 6 and trials[-1]["dice"] is None
        assert not (tmp_path / "out/candidates/trial_6/run/out_of_fold.json").exists()
        worse.trained.clear()
        tune(manifest, tmp_path / "kept", "--no-prune", trials=7)
        assert {trial["state"] for trial in state(tmp_path / "kept")["trials"]} == {"complete"}


def test_a_trial_that_cannot_be_trained_is_recorded_and_a_default_that_cannot_ends_it(
    fake: FakeTraining, manifest: Path, tmp_path: Path
) -> None:
    fake.fails = {"trial_1": UsageError("the loss is not finite")}
    tune(manifest, tmp_path / "out")
    failed = state(tmp_path / "out")["trials"][1]
    assert (failed["state"], failed["failure"], failed["dice"]) == ("failed", "the loss is not finite", None)
    assert "trial_1" not in fake.recorded[0][0]
    fake.fails = {"default": UsageError("the loss is not finite")}
    tune(manifest, tmp_path / "default", code=2)
    fake.fails = {"trial_1": DataError("no such voxel")}
    tune(manifest, tmp_path / "data", code=3)


def test_a_budget_ends_the_trials_and_leaves_the_rest_for_the_comparison(
    fake: FakeTraining, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    clock = [0.0]

    def slow(*given: Any, **more: Any) -> Any:
        clock[0] += 100
        return train(*given, **more)

    train = fake.train
    monkeypatch.setattr("segpipe.studies.candidates.train", slow)
    monkeypatch.setattr("segpipe.studies.tuning.time.monotonic", lambda: clock[0])
    tune(manifest, tmp_path / "out", "--budget", "850s", trials=20)
    document = state(tmp_path / "out")
    assert len(document["trials"]) == 6  # 250 s are left, and a fold of both takes 200
    assert document["stopped"] == "the budget holds no more: 4 min 10 s left"
    assert document["confirmation"]["folds"] == 1
    clock[0] = 0.0
    tune(manifest, tmp_path / "short", "--budget", "250s", trials=20)
    short = state(tmp_path / "short")
    assert len(short["trials"]) == 1 and short["best"]["candidate"] == "default"
    assert "The default is the best of what was tried." in capsys.readouterr().out


def test_a_search_that_is_not_confirmed_says_why(
    fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    tune(manifest, tmp_path / "out", "--confirm", "0", trials=6)
    assert "not confirmed: it was not asked for" in capsys.readouterr().out
    assert not state(tmp_path / "out")["recommended"]


def test_two_processes_share_a_journal(handles: Any) -> None:
    """The second is a process of its own, as far as locks go: it asks while a trial of the first runs."""
    first, second = handles(2)
    with first.next(2) as one:
        assert one is not None and one.title == "default"
        with second.next(2) as other:
            assert other is not None and other.title == "trial_1"  # that of the first is not taken for killed
            with first.next(2) as none:
                assert none is None
        one.complete(0.5, 1.0)
    assert [each.state for each in second.outcomes()] == ["complete", "running"]
    with first.next(2) as again:  # nobody holds it any more
        assert again is not None and again.title == "trial_1" and again.point == other.point
        again.complete(0.6, 1.0)
    assert [(each.state, each.dice) for each in second.outcomes()] == [("complete", 0.5), ("complete", 0.6)]


def test_the_default_is_never_given_up_however_many_start_together(handles: Any) -> None:
    with ExitStack() as stack:
        default, *others = [stack.enter_context(each.next(6)) for each in handles(6, first_pruned=1)]
        for number, other in enumerate(others[:4]):
            assert not other.report(2, 0.8 + number / 100)
            other.complete(0.9, 1.0)
        assert others[4].report(2, 0.1)
        assert not default.report(2, 0.1)


def test_nobody_asks_between_a_trial_and_its_lock(
    handles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = handles(2)
    asked: list[str] = []

    def late(folder: Path, *given: Any, **more: Any) -> Any:
        if folder.name == "default" and not asked:
            asked.append("")
            with pytest.raises(UsageError, match="another process works"), second.next(1):
                pass
        return locked(folder, *given, **{**more, "wait_s": 0.0})

    monkeypatch.setattr("segpipe.studies.trials.locked", late)
    with first.next(1) as trial:
        trial.complete(0.5, 1.0)
    assert asked and [each.state for each in second.outcomes()] == ["complete"]


def test_a_kill_while_a_trial_is_queued_again_loses_none(handles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = handles(2)
    with first.next(1):
        pass  # it is left running
    with monkeypatch.context() as patch:
        patch.setattr(second._study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), second.next(1):
            pass
    assert [each.state for each in first.outcomes()] == ["waiting"]
    with first.next(1) as trial:
        assert trial.title == "default"
        trial.complete(0.5, 1.0)
    with second.next(1) as none:
        assert none is None  # it was queued once


def test_a_folder_of_any_name_has_its_trials(handles: Any, tmp_path: Path) -> None:
    (tmp_path / "what? {now} #1 50%").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "what? {now} #1 50%")
    handles(1, storage="sqlite")
    assert (tmp_path / "out/study.db").is_file()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--fold", "test"], 5, "never reads test cases"),
        (["--fold", "7"], 2, "a fold that the manifest does not have"),
        (["--fold", "x"], 2, "the fold cannot be read"),
        (["--storage", "redis"], 2, "no such storage"),
        (["--loss", "focal"], 2, "the space has to hold"),
        (["--set", "learning_rate=0.5"], 2, "does not hold the default"),
    ],
)
def test_what_is_refused(
    more: list[str], code: int, words: str, fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    tune(manifest, tmp_path / "out", *more, code=code)
    assert words in " ".join(capsys.readouterr().err.split())
    assert not fake.trained


def test_another_search_or_a_damaged_one_is_refused(
    fake: FakeTraining, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    tune(manifest, out, "--storage", "sqlite", trials=2)
    tune(manifest, out, "--storage", "sqlite", "--seed", "4", code=2)
    assert "seed: 4" in capsys.readouterr().err
    task = manifest.parent / "task.yaml"
    before = task.read_text()
    task.write_text(before.replace("patch_size: [16, 16, 16]", "patch_size: [16, 16, 8]"))
    tune(manifest, out, "--storage", "sqlite", trials=3, code=2)  # of one name, and another content
    assert "own_fragments: task.yaml (sha256" in capsys.readouterr().err
    task.write_text(before)
    document = state(out)
    del document["settings"]["own_fragments"]  # as of older searches
    (out / "tune.json").write_text(json.dumps(document))
    tune(manifest, out, "--storage", "sqlite", trials=2)
    (out / "study.db").write_bytes(b"no database, and long enough to be read as one" * 40)
    tune(manifest, out, "--storage", "sqlite", code=3)
    assert "the trials cannot be read" in capsys.readouterr().err
    (out / "tune.json").write_text("{}")
    tune(manifest, out, code=3)
    assert "not the state of a search" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(
    fake: FakeTraining, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    tune(manifest, tmp_path / "out", code=2)
    assert "pip install 'segpipe[tune]'" in capsys.readouterr().err
