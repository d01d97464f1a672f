"""What `segpipe tune` does: trials on one fold, the best of them, and whether its gain holds on folds drawn anew.

    OUT/tune.json                         settings, every trial, the best one, both gains
    OUT/study.db, OUT/study.journal       of `segpipe.studies.trials`
    OUT/candidates/NAME/run/              of each trial, as of ``segpipe train --folds``
    OUT/confirmation/                     the best and the default on folds drawn anew: manifest.json, candidates/
    OUT/tune.html                         the page

Trials only propose candidates; `segpipe.studies.search` trains and measures them, on cases that they did not see.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.console import counted
from segpipe.common.files import read_json, sha256_of, write_json
from segpipe.common.folder_lock import locked
from segpipe.data import Manifest, data_root, draw_split, load_manifest, patients_note, save_manifest
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError
from segpipe.reporting import read_history
from segpipe.studies.candidates import Candidate, mean_dice, run_folder, train_candidate
from segpipe.studies.comparison_results import FEWEST_PATIENTS, compare
from segpipe.studies.pairing import side_of
from segpipe.studies.same_settings import require_same
from segpipe.studies.space import Space, read_space
from segpipe.studies.trials import Outcome, Trial, Trials, title_of
from segpipe.studies.tuning_page import write_tuning_page
from segpipe.studies.variants import own_fragments
from segpipe.training import duration, read_out_of_fold, record_candidates

STATE, PAGE, CONFIRMATION = "tune.json", "tune.html", "confirmation"
SCHEMA_VERSION = 1
NEVER_PRUNED = 1 / 3  # of the epochs: before, a validation says little of the last one
SAVED_EVERY_S = 2.0
VALIDATED = re.compile(r"epoch (\d+)/(\d+) .*validation Dice (\d\.\d+)")
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """What `segpipe tune` is asked for.

    Attributes:
        manifest: with folds.
        out: folder for all that is made.
        task: task fragment.
        space: by name or path.
        network, loss, augment: fragments of the default; None: the space's first.
        runtime: fragment.
        trials: in all, the default among them.
        seconds: the budget; None: as long as it takes.
        fold: that the trials are measured on.
        confirm: folds of the confirmation; None: as many as the manifest has; 0: none.
        prune: give up trials whose validation curve lies below the median of the others.
        epochs, threads, workers: of each training; None: as the runtime says.
        seed: of the proposals and of each training; the confirmation has the next one.
        data: folder that the manifest's paths start from.
        overrides: ``id=value``, of each training.
        storage: ``sqlite``, or ``journal`` for several processes in one folder.
    """

    manifest: Path
    out: Path
    task: str
    space: str = "usual"
    network: str | None = None
    loss: str | None = None
    augment: str | None = None
    runtime: str = "cpu"
    trials: int = 20
    seconds: float | None = None
    fold: int = 0
    confirm: int | None = None
    prune: bool = True
    epochs: int | None = None
    threads: int | None = None
    workers: int | None = None
    seed: int = 0
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    storage: str = "sqlite"

    def shared(self) -> dict[str, Any]:
        """Return keywords of `segpipe.train` that all candidates have."""
        names = ("task", "runtime", "epochs", "threads", "workers", "seed", "data")
        return {name: getattr(self, name) for name in names} | {"overrides": list(self.overrides)}

    def record(self, space: Space, dataset: Manifest) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share; no path is among them."""
        searched = [(kind, fragment) for kind, known in space.fragments.items() for fragment in known]
        return {
            "dataset": dataset.name,
            "manifest_sha256": sha256_of(self.manifest),
            "space": dict(space.content),
            "default": dict(space.default),
            "task": Path(self.task).name,
            "runtime": Path(self.runtime).name,
            "own_fragments": own_fragments([("task", self.task), ("runtime", self.runtime), *searched]),
            "fold": self.fold,
            "epochs": self.epochs,
            "threads": self.threads,
            "workers": self.workers,
            "seed": self.seed,
            "overrides": list(self.overrides),
            "prune": self.prune,
            "storage": self.storage,
        }


class _Pruned(Exception):  # noqa: N818 - it is the outcome of a trial, not a fault
    """A trial whose curve lies below the median."""


def parse_fold(text: str) -> int:
    """Return the fold that trials are measured on.

    Raises:
        RefusedError: it is the test set.
        UsageError: it is no number.
    """
    if text == "test":
        raise RefusedError(
            "a search never reads test cases: what is chosen on them is not measured by them",
            found="--fold test",
            expected="a fold of the training cases",
            hint="measure the model that was chosen, once: segpipe evaluate --split test",
        )
    if not text.isdecimal():
        raise UsageError("the fold cannot be read", found=text, expected="a number like 0")
    return int(text)


def run_tuning(wanted: Wanted, progress: Progress) -> dict[str, Any]:
    """Search, or go on; return the content of ``tune.json``.

    Raises:
        UsageError: the settings do not go together, the folder was begun with others, or optuna is not installed.
        DataError: a case cannot be used.
        SegpipeError: the default cannot be trained.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    dataset = load_manifest(wanted.manifest)
    if len(dataset.folds()) < 2 or wanted.fold not in dataset.folds():
        raise UsageError(
            "trials are measured on a fold that the manifest does not have",
            found=f"fold {wanted.fold} of {dataset.folds() or 'none'}",
            hint="make folds with `segpipe split`, or name one with --fold",
        )
    defaults = {kind: getattr(wanted, kind) for kind in ("network", "loss", "augment")}
    base = {"task": wanted.task, "runtime": wanted.runtime, "overrides": list(wanted.overrides)}
    space = read_space(wanted.space, defaults, base)
    busy = UsageError("another process works in this folder", path=wanted.out, hint="wait, or name another --out")
    with locked(wanted.out, busy) if wanted.storage == "sqlite" else nullcontext():
        return _Tuning(wanted, dataset, space, progress).run()


@dataclass
class _Tuning:
    """A search that is under way."""

    wanted: Wanted
    dataset: Manifest
    space: Space
    progress: Progress
    document: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        wanted = self.wanted
        self.document = _open_state(wanted, wanted.record(self.space, self.dataset))
        self._mark, self._saved = time.monotonic(), 0.0
        epochs = self.space.config_of_default["max_epochs"] if wanted.epochs is None else wanted.epochs
        first = max(1, int(epochs * NEVER_PRUNED)) if wanted.prune else None
        trials = Trials(wanted.out, self.space, wanted.storage, wanted.seed, first)
        self._run_trials(trials)
        outcomes = trials.outcomes()
        unfinished = [each for each in outcomes if each.state in ("running", "waiting")]
        if unfinished:
            self.progress(f"{counted(len(unfinished), 'trial')} run in other processes; the last one to end compares")
        else:
            busy = UsageError("another process compares")
            try:
                with locked(wanted.out / CONFIRMATION, busy):
                    self._compare(outcomes)
            except UsageError as error:
                if error is not busy:
                    raise
                self.progress("another process compares the best with the default")
                return self.document
            self.document["status"] = "finished"
        self._tick(save=True)
        self._write(trials.outcomes())
        return self.document

    def _run_trials(self, trials: Trials) -> None:
        while self._has_time(trials.outcomes()):
            with trials.next(self.wanted.trials) as trial:
                if trial is None:
                    return
                self._run_trial(trial)
            self._write(trials.outcomes())

    def _has_time(self, outcomes: list[Outcome]) -> bool:
        """Whether the budget holds one more trial and a fold of the confirmation."""
        if self.wanted.seconds is None or not outcomes:
            return True
        known = [each.seconds for each in outcomes if each.seconds and each.state == "complete"]
        later = 0.0 if not known else max(known) * (1 if self.wanted.confirm == 0 else 3)
        if self._left() > later:
            return True
        if any(each.state in ("waiting", "running") for each in outcomes):
            return bool(self._left() > 0)
        reason = f"the budget holds no more: {duration(max(0.0, self._left()))} left"
        if self.document["stopped"] is None and len(outcomes) < self.wanted.trials:
            self.document["stopped"] = reason
            self.progress(reason)
        return False

    def _run_trial(self, trial: Trial) -> None:
        """Train and measure a candidate, and tell how it ended."""
        wanted, began = self.wanted, time.monotonic()
        candidate = self.space.candidate(trial.point, trial.title)
        self.progress(f"{trial.title}: {', '.join(f'{name} {value}' for name, value in trial.point.items())}")
        history = run_folder(wanted.out, candidate) / f"fold_{wanted.fold}"
        try:
            for row in read_history(history) if (history / "history.csv").is_file() else []:
                if row["val_mean_dice"]:
                    trial.report(int(row["epoch"]), float(row["val_mean_dice"]))

            def hear(line: str) -> None:
                self._say(line)
                match = VALIDATED.search(line)
                if match and trial.report(int(match[1]), float(match[3])) and match[1] != match[2]:
                    raise _Pruned

            measured = train_candidate(candidate, wanted.out, wanted.manifest, [wanted.fold], wanted.shared(), hear)
            trial.complete(mean_dice(measured), time.monotonic() - began)
        except _Pruned:
            trial.give_up(time.monotonic() - began)
            self.progress(f"{trial.title} is given up: its validation lies below the median of the others")
        except DataError:
            raise
        except SegpipeError as error:
            if not trial.candidate:
                raise
            trial.fail(error.message, time.monotonic() - began)
            self.progress(f"{trial.title} failed: {error.message}")

    def _compare(self, outcomes: list[Outcome]) -> None:
        """Choose the best trial, and compare it with the default, there and on folds drawn anew."""
        complete = {each.candidate: each for each in outcomes if each.dice is not None}
        best = max(complete.values(), key=lambda each: (each.dice or 0.0, -each.candidate))
        folders = {number: run_folder(self.wanted.out, self._candidate(each)) for number, each in complete.items()}
        titles = {title_of(number): folder for number, folder in folders.items()}
        chosen = self._candidate(best)
        record_candidates(folders[best.candidate], titles, chosen.name)
        self.document["best"] = {"candidate": chosen.name, **chosen.record(), "dice": best.dice}
        documents = [read_out_of_fold(folders[number]) for number in (0, best.candidate)]
        self.document["gain_on_the_search_fold"] = None if not best.candidate else self._gain(self.dataset, *documents)
        confirmed = self.document["confirmation"]
        if confirmed and confirmed["candidate"] != chosen.name:  # more trials found a better one
            self.document["confirmation"] = confirmed = None
        if not best.candidate:
            self.document["not_confirmed"] = "the default is the best: there is nothing to confirm"
        elif confirmed is None:
            self._confirm(complete[0], best)
        confirmed = self.document["confirmation"]
        gain: dict[str, Any] = confirmed["gain"] if confirmed else {"patients": 0}
        enough = gain["patients"] >= FEWEST_PATIENTS
        self.document["recommended"] = bool(enough and (gain["difference"]["low"] or 0) > 0)

    def _confirm(self, default: Outcome, best: Outcome) -> None:
        """Train both on folds drawn anew by patient, with an unused seed."""
        wanted = self.wanted
        folds = len(self.dataset.folds())
        most = folds if wanted.confirm is None else min(wanted.confirm, folds)
        a_fold = (default.seconds or 0.0) + (best.seconds or 0.0)
        fits = most if wanted.seconds is None or not a_fold else min(most, int(self._left() / a_fold))
        out, seed = wanted.out / CONFIRMATION, wanted.seed + 1
        begun = [int(each.name.removeprefix("fold_")) for each in out.glob("candidates/*/run/fold_*")]
        fits = max([fits, *(fold + 1 for fold in begun)])
        self.document["not_confirmed"] = None
        if fits < 1:
            self.document["not_confirmed"] = (
                "it was not asked for"
                if most < 1
                else f"a fold of both takes about {duration(a_fold)}, and {duration(max(0.0, self._left()))} are left"
            )
            self.progress(f"the gain is not confirmed: {self.document['not_confirmed']}")
            return
        path = out / "manifest.json"
        if not path.is_file():
            save_manifest(draw_split(self.dataset, None, folds, seed, redraw=True), path)
        self.progress(f"confirming on {counted(fits, 'fold')} drawn anew")
        shared = {**wanted.shared(), "seed": seed, "data": data_root(wanted.manifest, wanted.data)}
        documents: list[Mapping[str, Any]] = [{}, {}]
        for fold in range(fits):  # both a fold at a time, so that they are equal when it is stopped
            for place, outcome in enumerate((default, best)):
                candidate = self._candidate(outcome)
                documents[place] = train_candidate(candidate, out, path, list(range(fold + 1)), shared, self._say)
        gain = self._gain(load_manifest(path), *documents)
        means = {"default": mean_dice(documents[0]), "best": mean_dice(documents[1])}
        self.document["confirmation"] = {
            "candidate": title_of(best.candidate),
            "folds": fits,
            "of": folds,
            "seed": seed,
            "dice": means,
            "gain": gain,
        }

    def _gain(self, dataset: Manifest, default: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
        """Return the paired difference over cases, with its interval over patients."""
        groups = {case.id: case.group for case in dataset.training}
        one, other = (side_of(document["cases"]) for document in (default, best))
        return compare(one, {"best": other}, groups)["best"].document()

    def _candidate(self, outcome: Outcome) -> Candidate:
        return self.space.candidate(outcome.point, title_of(outcome.candidate))

    def _say(self, line: str) -> None:
        self._tick()
        self.progress(line if self.wanted.seconds is None else f"{line}  [{duration(max(0.0, self._left()))} left]")

    def _left(self) -> float:
        self._tick()
        return float(self.wanted.seconds or 0.0) - float(self.document["seconds"])

    def _tick(self, save: bool = False) -> None:
        now = time.monotonic()
        self.document["seconds"] = round(self.document["seconds"] + now - self._mark, 2)
        self._mark = now
        if save or now - self._saved > SAVED_EVERY_S:
            self._saved = now
            write_json(self.wanted.out / STATE, self.document)

    def _write(self, outcomes: list[Outcome]) -> None:
        self.document["trials"] = [
            {
                "name": title_of(each.candidate),
                "state": each.state,
                "point": dict(each.point),
                "dice": each.dice,
                "epochs": each.epochs,
                "seconds": each.seconds,
                "failure": each.failure,
            }
            for each in outcomes
        ]
        write_json(self.wanted.out / STATE, self.document)
        write_tuning_page(self.wanted.out / PAGE, self.document)


def _open_state(wanted: Wanted, settings: dict[str, Any]) -> dict[str, Any]:
    path = wanted.out / STATE
    head = {"schema_version": SCHEMA_VERSION, "command": "tune", "status": "running"}
    doubt = patients_note(load_manifest(wanted.manifest))
    new = {**head, "settings": settings, "seconds": 0.0, "notes": [doubt] if doubt else [], "trials": []}
    new |= {"stopped": None, "best": None, "gain_on_the_search_fold": None, "confirmation": None}
    new |= {"not_confirmed": None, "recommended": False}
    if not path.is_file():
        return new
    hint = "put a copy of it back, or begin anew in another folder"
    document = read_json(path, "search", hint)
    if not isinstance(document, dict) or set(document) != set(new) or not isinstance(document["settings"], dict):
        raise DataError("this is not the state of a search", path=path, hint=hint)
    begun = {"own_fragments": settings["own_fragments"], **document["settings"]}  # which older searches do not record
    require_same(settings, begun, wanted.out, "another search")
    seconds = document["seconds"] if wanted.storage == "sqlite" else 0.0
    return {**document, "status": "running", "stopped": None, "seconds": seconds}
