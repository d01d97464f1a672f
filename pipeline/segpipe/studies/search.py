"""The one search: candidates x folds under a budget of time, and every choice on out-of-fold cases.

All candidates train the first fold, each for the same time; the better half goes on to the second fold, and so on until
one is left, which trains the folds that remain. So what was spent on the winner is part of its cross-validation, and
nothing is decided on a case by a model that was trained on it.

    OUT/search.json                   what was decided, with seconds foreseen and real; a stopped search goes on from it
    OUT/candidates/NAME/task.yaml     of `plan`, for this candidate's share of the time
    OUT/candidates/NAME/run/          its cross-validation, as of ``segpipe train --folds``
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.console import counted
from segpipe.common.files import read_json, write_json
from segpipe.data import Fingerprint, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.studies.same_settings import require_same
from segpipe.studies.variants import fragment_name
from segpipe.training import (
    ENOUGH_STEPS,
    Wishes,
    duration,
    network_path,
    plan_from,
    read_fragment,
    record_candidates,
    runtime_path,
    step_memory,
    train,
)

STATE = "search.json"
SCHEMA_VERSION = 1
JUDGED_SHARE = 0.5  # of the steps that are enough: with fewer, candidates cannot be told apart, and the first is taken
PLANNING_S = 15.0  # about what measuring a candidate takes
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Candidate:
    """A training that may be chosen: fragments, each by name or path, and what is set beside them.

    Attributes:
        network, augment, loss: fragments.
        overrides: ``id=value``.
        title: its name, where the fragments do not tell it from others.
    """

    network: str
    augment: str = "light"
    loss: str = "dice_ce"
    overrides: tuple[str, ...] = ()
    title: str = ""

    @property
    def name(self) -> str:
        """Return the name that is shown, and that its folder bears."""
        return self.title or "+".join(map(fragment_name, (self.network, self.augment, self.loss)))

    def record(self) -> dict[str, Any]:
        """Return its plain values, without those that say nothing."""
        overrides = {"overrides": list(self.overrides)} if self.overrides else {}
        return {**{name: value for name, value in asdict(self).items() if value}, **overrides}


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        manifest: path of the manifest, with folds.
        dataset, fingerprint: its content, and what its training cases look like.
        data: folder that its paths start from.
        candidates: the first is taken where the time does not hold a comparison, and where two are equal.
        seconds: the budget of all of it, planning included.
        memory_bytes, device, seed: of each training.
    """

    manifest: Path
    dataset: Manifest
    fingerprint: Fingerprint
    data: Path
    candidates: tuple[Candidate, ...]
    seconds: float
    memory_bytes: int = field(default_factory=step_memory)
    device: str = "cpu"
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share."""
        return {
            "candidates": [candidate.record() for candidate in self.candidates],
            "budget_seconds": self.seconds,
            "folds": sorted(self.dataset.folds()),
            "memory_bytes": self.memory_bytes,
            "device": self.device,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        run: folder of the cross-validation that was chosen.
        chosen: which candidate.
        document: content of ``search.json``.
        out_of_fold: content of ``out_of_fold.json`` of the chosen one, its figure corrected for the choice.
    """

    run: Path
    chosen: Candidate
    document: Mapping[str, Any]
    out_of_fold: Mapping[str, Any]


def search(question: Question, out: Path, progress: Progress) -> Found:
    """Find the best candidate and train it on every fold; the same call goes on where it stopped.

    Args:
        question: what is searched for.
        out: folder of the search.
        progress: called with a line for each step and epoch.

    Raises:
        UsageError: the folder was begun with another question, fewer than two folds, or a candidate that cannot be
            trained.
        DataError: a case cannot be used; or ``search.json`` cannot be read.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    state = _open(question, out)
    if not state["plans"]:
        _plan(question, out, state, progress)
    candidates = {candidate.name: candidate for candidate in question.candidates}
    left = list(state["plans"])
    for turn, fold in enumerate(question.record()["folds"]):
        last = len(left) == 1
        folds = question.record()["folds"][: None if last else turn + 1]
        if len(state["rounds"]) <= turn:
            _round(question, out, state, [candidates[name] for name in left], folds, progress)
        left = state["rounds"][turn]["kept"]
        if last:
            break
        progress(f"after fold {fold}: {', '.join(left)} {'goes' if len(left) == 1 else 'go'} on")
    return _end(question, out, state, candidates[left[0]])


def parse_candidate(text: str) -> Candidate:
    """Return the candidate that ``NETWORK`` or ``NETWORK+AUGMENT`` names; the fragments are looked for here.

    Raises:
        UsageError: there is no such fragment.
    """
    network, _, augment = text.partition("+")
    candidate = Candidate(network, augment or "light")
    for kind in ("network", "augment"):
        read_fragment(kind, getattr(candidate, kind))
    return candidate


def runs_of(candidates: int, folds: int) -> int:
    """Return how many trainings it takes to halve the candidates fold by fold, and to train one on every fold."""
    runs, left = 0, candidates
    for _ in range(folds):
        runs += left
        left = max(1, (left + 1) // 2)
    return runs


def most_candidates(folds: int) -> int:
    """Return how many candidates can be halved to one while a fold is left for the last."""
    return int(2 ** (folds - 1))


def _open(question: Question, out: Path) -> dict[str, Any]:
    path = out / STATE
    asked = question.record()
    names = [candidate.name for candidate in question.candidates]
    if len(asked["folds"]) < 2:
        raise UsageError("a search needs two folds or more", found=len(asked["folds"]), hint="make them: segpipe split")
    if not names or len(set(names)) < len(names) or len(names) > most_candidates(len(asked["folds"])):
        raise UsageError(
            "these candidates cannot be compared",
            found=", ".join(names) or "none",
            expected=f"1 to {most_candidates(len(asked['folds']))} different ones on {len(asked['folds'])} folds",
        )
    if not path.is_file():
        return {"schema_version": SCHEMA_VERSION, **asked, "plans": {}, "given_up": None, "rounds": [], "chosen": None}
    state = _read_state(path, asked)
    require_same(asked, state, out, "another search")
    return state


def _read_state(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    hint = "put a copy of it back, or begin anew in another folder"
    state = read_json(path, "search", hint)
    try:
        plans = set(state["plans"])
        kept = [name for entry in state["rounds"] for name in (*entry["kept"], *entry["trained"], *entry["failed"])]
        whole = {*asked, "given_up", "chosen"} <= set(state) and plans >= set(kept)
        whole = whole and all(entry["kept"] for entry in state["rounds"])
        whole = whole and plans <= {Candidate(**candidate).name for candidate in state["candidates"]}
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DataError("this is not the state of a search", path=path, hint=hint)
    return dict(state)


def _plan(question: Question, out: Path, state: dict[str, Any], progress: Progress) -> None:
    """Plan every candidate for its share of the time; where that is too short for a comparison, the first alone."""
    began = time.monotonic()
    first, *others = question.candidates
    folds = len(state["folds"])
    if others:
        runs = runs_of(len(question.candidates), folds)
        share = (question.seconds - PLANNING_S * len(question.candidates)) * folds / runs  # the same for all
        plans = {}
        for candidate in question.candidates:
            plans[candidate.name] = _planned(question, out, candidate, share, progress)
            steps = plans[candidate.name]["estimate"]["steps"]
            if steps < JUDGED_SHARE * ENOUGH_STEPS:
                state["given_up"] = (
                    f"{duration(question.seconds)} for {runs} trainings give {candidate.name} {counted(steps, 'step')} "
                    f"each, too few to tell candidates apart: {first.name} has all of the time"
                )
                progress(state["given_up"])
                break
        else:
            state["plans"] = plans
    if not state["plans"]:
        left = question.seconds - (time.monotonic() - began)
        state["plans"] = {first.name: _planned(question, out, first, left, progress)}
    state["planning_seconds"] = round(time.monotonic() - began, 1)
    write_json(out / STATE, state)


def _planned(question: Question, out: Path, candidate: Candidate, seconds: float, progress: Progress) -> dict[str, Any]:
    progress(f"measuring {candidate.name}")
    asked = Wishes(
        candidate.network,
        candidate.loss,
        candidate.augment,
        question.memory_bytes,
        question.device,
        max(1.0, seconds),
        len(question.dataset.folds()),
    )
    plan = plan_from(question.fingerprint, question.dataset, question.data, asked)
    for note in plan.notes:
        progress(f"{candidate.name}: {note}")
    plan.save(_folder(out, candidate) / "task.yaml", overwrite=True)
    return {
        "rules": [{"name": rule.name, "value": rule.value, "why": rule.why} for rule in plan.rules.values()],
        "estimate": {} if plan.estimate is None else asdict(plan.estimate),
        "notes": list(plan.notes),
    }


def _round(
    question: Question,
    out: Path,
    state: dict[str, Any],
    candidates: Sequence[Candidate],
    folds: Sequence[int],
    progress: Progress,
) -> None:
    """Train the candidates that are left on one fold more, and keep the better half; one alone trains all folds."""
    scores: dict[str, float] = {}
    failed: dict[str, str] = {}
    seconds = {}
    for candidate in candidates:
        try:
            scores[candidate.name] = mean_dice(_train(question, out, candidate, folds, progress))
        except SegpipeError as error:
            if len(failed) + 1 == len(candidates):
                raise
            failed[candidate.name] = error.message
            progress(f"{candidate.name} is given up: {error.message}")
        seconds[candidate.name] = round(run_seconds(run_folder(out, candidate)), 1)
    ranked = sorted(scores, key=lambda name: -scores[name])  # stable: of equals the one that was named first
    state["rounds"].append(
        {
            "folds": list(folds),
            "trained": [candidate.name for candidate in candidates],
            "out_of_fold_dice": scores,
            "training_seconds": seconds,
            "failed": failed,
            "kept": ranked[: max(1, (len(candidates) + 1) // 2)],
        }
    )
    write_json(out / STATE, state)


def _train(
    question: Question, out: Path, candidate: Candidate, folds: Sequence[int], progress: Progress
) -> Mapping[str, Any]:
    task = _folder(out, candidate) / "task.yaml"
    shared: dict[str, Any] = {"task": task, "runtime": runtime_path(task), "seed": question.seed, "data": question.data}
    if (own := network_path(task)).exists():
        shared["network"] = str(own)
    return train_candidate(candidate, out, question.manifest, folds, shared, progress)


def train_candidate(
    candidate: Candidate, out: Path, manifest: Path, folds: Sequence[int], shared: Mapping[str, Any], progress: Progress
) -> Mapping[str, Any]:
    """Train a candidate on some folds, and measure the cases that they leave out; what is done already is kept.

    Args:
        candidate: which.
        out: folder of the search.
        manifest: with these folds.
        folds: which; those that it was trained on before belong to it as well.
        shared: keywords of `segpipe.train` that all candidates have: ``task``, ``seed``, ...; its ``overrides`` come
            before those of the candidate.
        progress: called with a line for each step and epoch; what it raises ends the training, which can go on.

    Returns:
        The content of ``out_of_fold.json``.

    Raises:
        SegpipeError: it cannot be trained or measured.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    fragments = {"network": candidate.network, "loss": candidate.loss, "augment": candidate.augment}
    run = train(
        manifest,
        **{**fragments, **shared, "overrides": [*shared.get("overrides", ()), *candidate.overrides]},
        folds=list(folds),
        out=_folder(out, candidate) / "run",
        progress=lambda line: progress(f"{candidate.name}: {line}"),
    )
    return run.out_of_fold or {}


def scores_of(out_of_fold: Mapping[str, Any]) -> dict[str, float]:
    """Return case id to mean Dice; a case that failed counts as 0, one without a truth is left out."""
    cases = [case for case in out_of_fold["cases"] if case["failure"] or case["mean_dice"] is not None]
    return {case["id"]: case["mean_dice"] or 0.0 for case in cases}


def mean_dice(out_of_fold: Mapping[str, Any]) -> float:
    """Return the mean Dice over the cases; a case that failed counts as 0."""
    scores = scores_of(out_of_fold)
    return sum(scores.values()) / len(scores) if scores else 0.0


def run_folder(out: Path, candidate: Candidate) -> Path:
    """Return the folder of a candidate's cross-validation."""
    return _folder(out, candidate) / "run"


def run_seconds(run: Path) -> float:
    """Return the seconds that all folds of a cross-validation trained, by their own records."""
    records = [read_json(path, "run record") for path in sorted(run.glob("fold_*/run.json"))]
    return float(sum(session.get("seconds", 0) for record in records for session in record["sessions"]))


def _end(question: Question, out: Path, state: dict[str, Any], chosen: Candidate) -> Found:
    run = run_folder(out, chosen)
    tried = {candidate.name: run_folder(out, candidate) for candidate in question.candidates}
    failed = {name for entry in state["rounds"] for name in entry["failed"]}
    measured = {name: tried[name] for name in state["plans"] if name not in failed}
    out_of_fold = record_candidates(run, measured, chosen.name)
    state["chosen"] = chosen.name
    write_json(out / STATE, state)
    return Found(run, chosen, state, out_of_fold)


def _folder(out: Path, candidate: Candidate) -> Path:
    return out / "candidates" / candidate.name
