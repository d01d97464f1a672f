"""Trials of a search by optuna: which point is next, what was killed and is tried again, what is given up early.

OUT/study.db        optuna's, SQLite: one process at a time
OUT/study.journal   or its journal: several processes, also of several machines that share the folder

A trial is a candidate of `segpipe.studies.search`, and keeps its number when it is tried again after a kill.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.console import quiet_libraries
from segpipe.common.files import cannot_write
from segpipe.common.folder_lock import locked
from segpipe.errors import DataError, UsageError
from segpipe.studies.space import Space, as_written

STORAGES = {"sqlite": "study.db", "journal": "study.journal"}
NAME = "segpipe"
CANDIDATE, FAILURE, SECONDS, EPOCHS = "candidate", "failure", "seconds", "epochs"  # user attributes of a trial
COMPLETE_FIRST = 4  # trials that are never given up early, since nothing is known yet
ASKING_S = 60.0  # to wait for another process that asks for a trial


@dataclass(frozen=True)
class Outcome:
    """How a candidate stands.

    Attributes:
        candidate: its number; 0 is the default.
        state: ``complete``, ``pruned``, ``failed``, ``running`` or ``waiting``.
        point: name to value.
        dice: mean Dice out of fold; None where it has none.
        seconds: that its training and measuring took, as far as is known.
        epochs: that were trained of it.
        failure: why it failed, or None.
    """

    candidate: int
    state: str
    point: Mapping[str, Any]
    dice: float | None
    seconds: float | None
    epochs: int | None
    failure: str | None


class Trials:
    """The trials of a folder.

    Args:
        out: the folder.
        space: what is searched.
        storage: of `STORAGES`.
        seed: of the proposals; the same trials follow from the same outcomes, also after a kill.
        first_pruned: epoch before which no trial is given up; None: none is given up.

    Raises:
        UsageError: optuna is not installed, or the folder cannot be written to.
        DataError: what is there cannot be read.
    """

    def __init__(self, out: Path, space: Space, storage: str, seed: int, first_pruned: int | None) -> None:
        optuna = _optuna()
        self.out, self.space, self._seed = out, space, seed
        pruner = optuna.pruners.NopPruner()
        if first_pruned is not None:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=COMPLETE_FIRST, n_warmup_steps=first_pruned)
        with self._alone():
            try:
                self._study = optuna.create_study(
                    storage=_open(optuna, out / STORAGES[storage], storage),
                    study_name=NAME,
                    direction="maximize",
                    pruner=pruner,
                    load_if_exists=True,
                )
                if not self._study.get_trials(deepcopy=False):
                    self._study.enqueue_trial(dict(space.default), user_attrs={CANDIDATE: 0})
            except OSError as error:
                raise cannot_write(out, error) from error
            except Exception as error:
                raise DataError(
                    "the trials cannot be read",
                    path=out / STORAGES[storage],
                    found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                    hint="put a copy of the file back, or begin anew in another folder",
                ) from error

    @contextmanager
    def next(self, most: int) -> Iterator[Trial | None]:
        """Hold the next trial for the time of the block; None where there is none: all ran, or others run the rest.

        What a killed process left running is failed, and queued again.

        Args:
            most: candidates in all.
        """
        optuna = _optuna()
        with ExitStack() as held:
            with self._alone():
                self._queue_again()
                trials = self._study.get_trials(deepcopy=False)
                waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in trials)
                known = len({trial.user_attrs[CANDIDATE] for trial in trials if CANDIDATE in trial.user_attrs})
                trial = None
                if waiting or known < most:
                    self._study.sampler = optuna.samplers.TPESampler(seed=self._seed * 100_003 + known)
                    asked = self._study.ask()
                    if CANDIDATE not in asked.user_attrs:
                        asked.set_user_attr(CANDIDATE, known)
                    trial = Trial(self._study, asked, self.space)
                    # before another process may ask: it takes a running trial that nobody holds for a killed one
                    held.enter_context(locked(self._folder(trial.candidate), _busy(self.out)))
            yield trial

    def outcomes(self) -> list[Outcome]:
        """Return how each candidate stands, by its number; of one that was tried again the last trial counts."""
        found: dict[int, Outcome] = {}
        for trial in self._study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            if CANDIDATE not in attributes:  # killed before it was one
                continue
            candidate = attributes[CANDIDATE]
            found[candidate] = Outcome(
                candidate,
                "failed" if trial.state.name == "FAIL" else trial.state.name.lower(),
                self._point(trial),
                trial.value if trial.state.name == "COMPLETE" else None,
                attributes.get(SECONDS),
                attributes.get(EPOCHS),
                attributes.get(FAILURE),
            )
        return [found[candidate] for candidate in sorted(found)]

    def _point(self, trial: Any) -> dict[str, Any]:
        point = {**self.space.only, **trial.system_attrs.get("fixed_params", {}), **trial.params}
        return {name: as_written(value) for name, value in point.items()}

    def _alone(self) -> Any:
        return locked(self.out, _busy(self.out), name=".asking", wait_s=ASKING_S)

    def _folder(self, candidate: int) -> Path:
        return self.out / "candidates" / title_of(candidate)

    def _queue_again(self) -> None:
        """Fail what runs in no process any more, and queue the same point under the same number."""
        optuna = _optuna()
        trials = self._study.get_trials(deepcopy=False)
        waiting = {each.user_attrs.get(CANDIDATE) for each in trials if each.state == optuna.trial.TrialState.WAITING}
        for trial in trials:
            if trial.state != optuna.trial.TrialState.RUNNING:
                continue
            candidate = trial.user_attrs.get(CANDIDATE)
            if candidate is None:
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                continue
            try:
                with locked(self._folder(candidate), _busy(self.out)):
                    if candidate not in waiting:  # queued first: a kill in between loses nothing
                        self._study.enqueue_trial(self._point(trial), user_attrs={CANDIDATE: candidate})
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except UsageError as error:
                if error.message != _busy(self.out).message:
                    raise


class Trial:
    """A trial that this process runs."""

    def __init__(self, study: Any, asked: Any, space: Space) -> None:
        self._study, self._asked = study, asked
        self.candidate: int = asked.user_attrs[CANDIDATE]
        self.point = space.draw(asked)
        self._reported: set[int] = set()

    @property
    def title(self) -> str:
        """Return the name of its candidate."""
        return title_of(self.candidate)

    def report(self, epoch: int, dice: float) -> bool:
        """Take a point of the validation curve; return whether the trial is to be given up, which the default never is.

        All others are compared with it, and where many processes start together it need not be the first to end.
        """
        if epoch in self._reported:
            return False
        self._reported.add(epoch)
        self._asked.report(dice, epoch)
        self._asked.set_user_attr(EPOCHS, epoch)
        return self.candidate != 0 and bool(self._asked.should_prune())

    def complete(self, dice: float, seconds: float) -> None:
        """End it with its figure."""
        self._asked.set_user_attr(SECONDS, round(seconds, 1))
        self._study.tell(self._asked, dice)

    def give_up(self, seconds: float) -> None:
        """End it early."""
        self._asked.set_user_attr(SECONDS, round(seconds, 1))
        self._study.tell(self._asked, state=_optuna().trial.TrialState.PRUNED)

    def fail(self, reason: str, seconds: float) -> None:
        """End it with the reason why it cannot be trained; it is not tried again."""
        self._asked.set_user_attr(SECONDS, round(seconds, 1))
        self._asked.set_user_attr(FAILURE, reason)
        self._study.tell(self._asked, state=_optuna().trial.TrialState.FAIL)


def title_of(candidate: int) -> str:
    """Return the name of a candidate, and of its folder."""
    return f"trial_{candidate}" if candidate else "default"


def _busy(out: Path) -> UsageError:
    return UsageError("another process works in this folder", path=out, hint="wait for it, or name another --out")


def _open(optuna: Any, path: Path, storage: str) -> Any:
    if storage == "sqlite":
        from sqlalchemy import URL

        url = URL.create("sqlite", database=os.fspath(path.resolve()))  # a path may have a question mark
        return optuna.storages.RDBStorage(url.render_as_string(hide_password=False))
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(os.fspath(path)))


def _optuna() -> Any:
    quiet_libraries()
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "the search needs optuna, which is not installed", hint="install it: pip install 'segpipe[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
