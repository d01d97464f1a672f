"""The search: who trains which fold, what is kept, and that every choice is made by out-of-fold figures alone."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segpipe.common.subprocesses import Ended
from segpipe.data.manifest import load_manifest
from segpipe.errors import DataError, UsageError
from segpipe.studies import candidates as training_of
from segpipe.studies import search as searching
from segpipe.studies.candidates import Candidate, parse_candidate
from segpipe.studies.search import Question, most_candidates, runs_of, search, turns_of
from segpipe.training.budget_rules import Estimate
from segpipe.training.planning import plan
from segpipe.training.training_run import TrainingRun

GOOD = {"unet": 0.6, "unet_fine": 0.8, "dynunet": 0.7, "segresnet": 0.5}


class FakeTraining:
    """Stands for planning and training: a candidate is as good as `GOOD` says; steps follow from the seconds."""

    def __init__(self, steps_a_second: float = 100.0) -> None:
        self.trained: list[tuple[str, tuple[int, ...]]] = []
        self.planned: list[tuple[str, float]] = []
        self.recorded: list[tuple[list[str], str]] = []
        self.steps_a_second = steps_a_second
        self.stop_at: tuple[str, int] | None = None
        self.diverging: set[str] = set()

    def plan_from(self, fingerprint: Any, dataset: Any, root: Path, asked: Any) -> Any:
        self.planned.append((asked.network, asked.seconds))
        made = plan(self.manifest)
        steps = int(self.steps_a_second * asked.seconds / asked.folds)
        zero = Estimate(1, 1, 1, 1, 1, asked.seconds, steps, 10, 10, 5, asked.folds, 0.1, 0.1, 0.1)
        return replace(made, estimate=zero)

    def train(self, manifest: Path, *, network: str, folds: list[int], out: Path, **more: Any) -> TrainingRun:
        if self.stop_at == (network, len(folds)):
            raise KeyboardInterrupt
        if network in self.diverging:
            raise UsageError("the loss is not finite")
        self.trained.append((network, tuple(folds)))
        for fold in folds:
            (out / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
            (out / f"fold_{fold}/run.json").write_text(json.dumps({"sessions": [{"seconds": 2.0}]}))
        cases = [
            {"id": case.id, "fold": case.fold, "failure": None, "mean_dice": GOOD[network]}
            for case in load_manifest(manifest).training
            if case.fold in folds
        ]
        return TrainingRun(out, "finished", out_of_fold={"cases": cases})

    def record_candidates(self, run: Path, candidates: dict[str, Path], chosen: str) -> dict[str, Any]:
        assert candidates[chosen] == run
        self.recorded.append(([path.parent.name for path in candidates.values()], chosen))
        return {"chosen": chosen}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, three_folds: Path) -> FakeTraining:
    fake = FakeTraining()
    fake.manifest = three_folds  # type: ignore[attr-defined]
    for name in ("plan_from", "record_candidates"):
        monkeypatch.setattr(searching, name, getattr(fake, name))
    monkeypatch.setattr(training_of, "train", fake.train)
    return fake


@pytest.fixture
def three_folds(tiny_manifest: Path, tmp_path: Path) -> Path:
    document = json.loads(tiny_manifest.read_text())
    for number, case in enumerate(document["training"]):
        case["fold"] = number % 3
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(tiny_manifest.parent / name)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    return tmp_path / "manifest.json"


def question(manifest: Path, *networks: str, seconds: float = 6000.0) -> Question:
    candidates = tuple(Candidate(network) for network in networks)
    return Question(manifest, load_manifest(manifest), plan(manifest).fingerprint, manifest.parent, candidates, seconds)


def test_the_better_half_goes_on_and_one_trains_every_fold(
    fake: FakeTraining, three_folds: Path, tmp_path: Path
) -> None:
    networks = ("unet", "dynunet", "unet_fine", "segresnet")
    found = search(question(three_folds, *networks), tmp_path / "search", lambda line: None)
    assert fake.trained == [
        *((network, (0,)) for network in networks),
        ("unet_fine", (0, 1)),
        ("dynunet", (0, 1)),
        ("unet_fine", (0, 1, 2)),
    ]
    assert found.chosen.network == "unet_fine"
    assert found.run == tmp_path / "search/candidates/unet_fine+light+dice_ce/run"
    assert len({seconds for _, seconds in fake.planned}) == 1  # all have the same time
    assert fake.recorded == [([f"{network}+light+dice_ce" for network in networks], "unet_fine+light+dice_ce")]
    document = json.loads((tmp_path / "search/search.json").read_text())
    assert [entry["kept"][0] for entry in document["rounds"]] == ["unet_fine+light+dice_ce"] * 3


def test_the_trainings_are_as_many_as_the_time_is_shared_among(
    fake: FakeTraining, three_folds: Path, tmp_path: Path
) -> None:
    for networks in (("unet",), ("unet", "dynunet"), ("unet", "dynunet", "unet_fine", "segresnet")):
        fake.trained.clear()
        search(question(three_folds, *networks), tmp_path / networks[-1], lambda line: None)
        begun = {(network, fold) for network, folds in fake.trained for fold in folds}
        assert len(begun) == runs_of(len(networks), 3)


class FakeChildren:
    """Makes the calls of a search's processes in its threads, and waits until two are made at the same time."""

    def __init__(self, fake: FakeTraining) -> None:
        self.fake, self.together, self.stopped = fake, threading.Barrier(2, timeout=10), False

    def call(self, name: str, arguments: dict[str, Any], on_line: Any) -> Ended:
        assert name == "segpipe.train" and arguments["jobs"] == 2
        self.together.wait()
        on_line("epoch 1/2")
        try:
            run = self.fake.train(**arguments)
        except UsageError as error:
            return Ended(2, {"error": error.as_dict()})
        (arguments["out"] / "out_of_fold.json").write_text(json.dumps(run.out_of_fold))
        return Ended(0, {"result": {}})

    def stop(self) -> None:
        self.stopped = True


def test_what_an_interruption_must_reach_is_trained_in_this_thread(
    fake: FakeTraining, three_folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def train(*given: Any, **more: Any) -> TrainingRun:
        threads.append(threading.current_thread())
        return fake.train(*given, **more)

    monkeypatch.setattr(training_of, "train", train)
    search(replace(question(three_folds, "unet"), jobs=2), tmp_path / "one", len)
    search(question(three_folds, "unet", "dynunet"), tmp_path / "two", len)
    assert set(threads) == {threading.main_thread()}


def test_a_search_of_before_goes_on(fake: FakeTraining, three_folds: Path, tmp_path: Path) -> None:
    asked = question(three_folds, "unet", "unet_fine")
    search(asked, tmp_path, len)
    state = json.loads((tmp_path / "search.json").read_text())
    del state["jobs"]
    (tmp_path / "search.json").write_text(json.dumps(state))
    assert search(asked, tmp_path, len).chosen.network == "unet_fine"


def read_plainly(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "out_of_fold.json").read_text()))


@pytest.mark.parametrize("diverging", ["", "dynunet"])
def test_candidates_and_folds_at_the_same_time(
    fake: FakeTraining, three_folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverging: str
) -> None:
    monkeypatch.setattr(searching, "Subprocesses", lambda: FakeChildren(fake))
    monkeypatch.setattr(training_of, "read_out_of_fold", read_plainly)
    fake.diverging = {diverging}
    said: list[str] = []
    asked = replace(question(three_folds, "unet", "dynunet"), jobs=2)
    found = search(asked, tmp_path / "search", said.append)
    assert found.chosen.network == ("dynunet" if not diverging else "unet")
    assert {seconds for _, seconds in fake.planned} == {(6000 - 2 * searching.PLANNING_S) / 2 * 2}  # 2 turns, of 2 jobs
    assert fake.trained[-1] == (found.chosen.network, (0, 1, 2))
    assert "dynunet+light+dice_ce: epoch 1/2" in said
    assert list(found.document["rounds"][0]["failed"]) == ([] if not diverging else ["dynunet+light+dice_ce"])


def test_of_equals_the_first_goes_on(
    fake: FakeTraining, three_folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GOOD, "dynunet", 0.6)
    assert search(question(three_folds, "unet", "dynunet"), tmp_path / "a", len).chosen.network == "unet"
    assert search(question(three_folds, "dynunet", "unet"), tmp_path / "b", len).chosen.network == "dynunet"


def test_with_too_few_steps_the_first_has_all_of_the_time(
    fake: FakeTraining, three_folds: Path, tmp_path: Path
) -> None:
    fake.steps_a_second = 1.0
    said: list[str] = []
    found = search(question(three_folds, "unet", "unet_fine", seconds=900.0), tmp_path / "search", said.append)
    assert found.chosen.network == "unet"
    assert {network for network, _ in fake.trained} == {"unet"}
    assert any("too few to tell candidates apart" in line for line in said)
    assert fake.planned[-1] == ("unet", pytest.approx(900, abs=20))


@pytest.mark.parametrize("stop", [("unet_fine", 1), ("unet_fine", 3)])
def test_the_same_call_goes_on(fake: FakeTraining, three_folds: Path, tmp_path: Path, stop: tuple[str, int]) -> None:
    asked = question(three_folds, "unet", "unet_fine")
    whole = search(asked, tmp_path / "whole", len)
    fake.planned.clear()
    fake.stop_at = stop
    with pytest.raises(KeyboardInterrupt):
        search(asked, tmp_path / "stopped", len)
    fake.stop_at = None
    found = search(asked, tmp_path / "stopped", len)
    assert len(fake.planned) == 2  # once each
    assert found.document["rounds"] == whole.document["rounds"]


def test_another_question_is_refused(fake: FakeTraining, three_folds: Path, tmp_path: Path) -> None:
    search(question(three_folds, "unet"), tmp_path / "search", len)
    with pytest.raises(UsageError, match="begun with another search") as caught:
        search(question(three_folds, "unet", seconds=60.0), tmp_path / "search", len)
    assert caught.value.found == "budget_seconds: 60.0"


@pytest.mark.parametrize("networks", [(), ("unet", "unet"), ("unet", "dynunet", "unet_fine", "segresnet", "unetpp")])
def test_candidates_that_cannot_be_compared(
    fake: FakeTraining, three_folds: Path, tmp_path: Path, networks: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        search(question(three_folds, *networks), tmp_path / "search", len)


def test_a_state_that_was_damaged_is_said(fake: FakeTraining, three_folds: Path, tmp_path: Path) -> None:
    asked = question(three_folds, "unet", "unet_fine")
    search(asked, tmp_path, len)
    sound = json.loads((tmp_path / "search.json").read_text())
    first = sound["rounds"][0]
    for damage in (
        {"rounds": [{}]},
        {"rounds": [{**first, "kept": []}]},
        {"rounds": [{**first, "kept": ["../../x"]}]},
        {"plans": {"../../x": {}}},
        {"plans": None},
        {"candidates": [{"name": "x"}]},
    ):
        (tmp_path / "search.json").write_text(json.dumps({**sound, **damage}))
        with pytest.raises(DataError, match="not the state of a search"):
            search(asked, tmp_path, len)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(DataError, match="cannot be parsed") as caught:
        search(asked, tmp_path, len)
    assert "another folder" in str(caught.value.hint)


@pytest.mark.parametrize("folds", range(2, 6))
def test_the_last_fold_is_trained_by_one_alone(folds: int) -> None:
    most = most_candidates(folds)
    left = most
    for _ in range(folds - 1):
        left = (left + 1) // 2
    assert left == 1
    assert runs_of(1, folds) == folds and runs_of(2, folds) == folds + 1
    assert turns_of(1, folds, jobs=folds) == 1 and turns_of(2, folds, jobs=folds) == 2
    assert turns_of(4, folds, jobs=2) == 2 + 1 + (folds - 1) // 2 if folds > 2 else True


def test_candidates_by_name() -> None:
    assert parse_candidate("unet_fine+mirror") == Candidate("unet_fine", "mirror")
    assert parse_candidate("unet") == Candidate("unet", "light")
    with pytest.raises(UsageError, match="no network fragment 'vnet'"):
        parse_candidate("vnet")


def test_a_candidate_that_fails_is_given_up(fake: FakeTraining, three_folds: Path, tmp_path: Path) -> None:
    fake.diverging = {"unet_fine"}
    found = search(question(three_folds, "unet", "unet_fine"), tmp_path / "search", len)
    assert found.chosen.network == "unet"
    assert found.document["rounds"][0]["failed"] == {"unet_fine+light+dice_ce": "the loss is not finite"}
    assert fake.recorded == [(["unet+light+dice_ce"], "unet+light+dice_ce")]
    fake.diverging = {"unet", "unet_fine"}
    with pytest.raises(UsageError, match="not finite"):
        search(question(three_folds, "unet", "unet_fine"), tmp_path / "both", len)
