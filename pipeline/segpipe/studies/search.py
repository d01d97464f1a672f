"""The one search: candidates x folds under a budget of time, and every choice on out-of-fold cases.

All candidates train the first fold, each for the same time; the better half goes on to the second fold, and so on until
one is left, which trains the folds that remain. So what was spent on the winner is part of its cross-validation, and
nothing is decided on a case by a model that was trained on it.

    OUT/search.json                   what was decided, with seconds foreseen and real; a stopped search goes on from it
    OUT/candidates/NAME/task.yaml     of `plan`, for this candidate's share of the time
    OUT/candidates/NAME/run/          its cross-validation, as of ``segpipe train --folds``
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.console import counted
from segpipe.common.files import read_json, write_json
from segpipe.common.subprocesses import Subprocesses, in_threads
from segpipe.data import Fingerprint, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.studies.candidates import (
    Candidate,
    Progress,
    candidate_folder,
    mean_dice,
    run_folder,
    run_seconds,
    train_candidate,
)
from segpipe.studies.same_settings import require_same
from segpipe.training import (
    ENOUGH_STEPS,
    Wishes,
    duration,
    network_path,
    plan_from,
    record_candidates,
    runtime_path,
    step_memory,
)

STATE = "search.json"
SCHEMA_VERSION = 1
JUDGED_SHARE = 0.5  # of the steps that are enough: with fewer, candidates cannot be told apart, and the first is taken
PLANNING_S = 15.0  # about what measuring a candidate takes


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        manifest: path of the manifest, with folds.
        dataset, fingerprint: its content, and what its training cases look like.
        data: folder that its paths start from.
        candidates: the first is taken where the time does not hold a comparison, and where two are equal.
        seconds: the budget of all of it, planning included.
        memory_bytes, device, seed: of the trainings.
        jobs: trainings at the same time, of candidates and of folds.
    """

    manifest: Path
    dataset: Manifest
    fingerprint: Fingerprint
    data: Path
    candidates: tuple[Candidate, ...]
    seconds: float
    memory_bytes: int = field(default_factory=step_memory)
    device: str = "cpu"
    jobs: int = 1
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share."""
        return {
            "candidates": [candidate.record() for candidate in self.candidates],
            "budget_seconds": self.seconds,
            "folds": sorted(self.dataset.folds()),
            "memory_bytes": self.memory_bytes,
            "device": self.device,
            "jobs": self.jobs,
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


def runs_of(candidates: int, folds: int) -> int:
    """Return how many trainings it takes to halve the candidates fold by fold, and to train one on every fold."""
    return turns_of(candidates, folds, jobs=1)


def turns_of(candidates: int, folds: int, jobs: int) -> int:
    """Return how many trainings follow one another, if so many are made at the same time.

    >>> turns_of(candidates=2, folds=5, jobs=1), turns_of(candidates=2, folds=5, jobs=2)
    (6, 3)
    """
    turns, trained, left = 0, 0, candidates
    while left > 1 and trained < folds:
        turns += math.ceil(left / jobs)
        trained += 1
        left = (left + 1) // 2
    return turns + math.ceil((folds - trained) / jobs)


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
    if isinstance(state, dict):
        state.setdefault("jobs", 1)  # of a search that knew no other
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
        turns = turns_of(len(question.candidates), folds, question.jobs)
        turn_s = (question.seconds - PLANNING_S * len(question.candidates)) / turns
        share = turn_s * math.ceil(folds / question.jobs)  # the same for all
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
        question.jobs,
    )
    plan = plan_from(question.fingerprint, question.dataset, question.data, asked)
    for note in plan.notes:
        progress(f"{candidate.name}: {note}")
    plan.save(candidate_folder(out, candidate) / "task.yaml", overwrite=True)
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
    together = min(question.jobs, len(candidates))
    children = Subprocesses() if together > 1 else None

    def work(candidate: Candidate) -> None:
        try:
            scores[candidate.name] = mean_dice(_train(question, out, candidate, folds, progress, children))
        except SegpipeError as error:
            failed[candidate.name] = error.message
            if len(failed) == len(candidates):
                raise
            progress(f"{candidate.name} is given up: {error.message}")

    if children is None:
        for candidate in candidates:  # in this thread, which an interruption reaches
            work(candidate)
    else:
        in_threads(work, candidates, together, children)
    scores = {candidate.name: scores[candidate.name] for candidate in candidates if candidate.name in scores}
    seconds = {candidate.name: round(run_seconds(run_folder(out, candidate)), 1) for candidate in candidates}
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
    question: Question,
    out: Path,
    candidate: Candidate,
    folds: Sequence[int],
    progress: Progress,
    children: Subprocesses | None,
) -> Mapping[str, Any]:
    task = candidate_folder(out, candidate) / "task.yaml"
    shared: dict[str, Any] = {"task": task, "runtime": runtime_path(task), "seed": question.seed, "data": question.data}
    shared["jobs"] = question.jobs
    if (own := network_path(task)).exists():
        shared["network"] = str(own)
    return train_candidate(candidate, out, question.manifest, folds, shared, progress, children)


def _end(question: Question, out: Path, state: dict[str, Any], chosen: Candidate) -> Found:
    run = run_folder(out, chosen)
    tried = {candidate.name: run_folder(out, candidate) for candidate in question.candidates}
    failed = {name for entry in state["rounds"] for name in entry["failed"]}
    measured = {name: tried[name] for name in state["plans"] if name not in failed}
    out_of_fold = record_candidates(run, measured, chosen.name)
    state["chosen"] = chosen.name
    write_json(out / STATE, state)
    return Found(run, chosen, state, out_of_fold)
