"""Several runs that differ by one id of their config, each trained in a process of its own: the run it would be alone.

What is finished is kept, what was stopped goes on, what is missing is begun; several at the same time where that is
asked for. `segpipe.training.seeds` and `segpipe.training.cross_validation` say which runs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.console import Console, as_clock
from segpipe.common.files import read_json
from segpipe.common.folder_lock import locked
from segpipe.common.subprocesses import Subprocesses, in_threads, require_ended_well
from segpipe.data import FINGERPRINT
from segpipe.errors import UsageError
from segpipe.training.fragments import Composed
from segpipe.training.run_folder import prepare, read_places, require_same
from segpipe.training.time_left import TimeLeft

EPOCH = re.compile(r"epoch (\d+)/(\d+)")
Progress = Callable[[str], object]
Recorder = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """Runs that differ by one id.

    Attributes:
        id: of the config: ``seed`` or ``fold``.
        values: one a run.
        out: folder of the run folders.
        naming: what a run folder is called, such as ``seed{}``.
    """

    id: str
    values: tuple[int, ...]
    out: Path
    naming: str

    def folder(self, value: int) -> Path:
        """Return the run folder of a value."""
        return self.out / self.naming.format(value)

    def is_begun(self, value: int) -> bool:
        """Return whether there is a run of that value."""
        return (self.folder(value) / "run.json").exists()

    def rows(self, *facts: str) -> list[dict[str, Any]]:
        """Return how each run stands: its value, folder and the named facts of its record (status, epochs, best)."""
        return [self._row(value, facts) for value in self.values]

    def _row(self, value: int, facts: tuple[str, ...]) -> dict[str, Any]:
        row: dict[str, Any] = {"status": "waiting", "epochs": 0, "best": None}
        if self.is_begun(value):
            record = read_json(self.folder(value) / "run.json", "run record")
            row.update({name: record[name] for name in row if name in record})
        return {self.id: value, "folder": self.folder(value).name, **{name: row[name] for name in facts}}


@dataclass(frozen=True)
class Sources:
    """What all runs of a series are made of.

    Attributes:
        composed: config of one of them.
        manifest: of the data set.
        fingerprint: of the data set, kept in each run; passed over where it is not there.
        data: where a run that goes on finds its data; None where its config says.
    """

    composed: Composed
    manifest: Path
    fingerprint: Path | None = None
    data: Path | None = None

    def of(self, series: Series, value: int) -> Composed:
        """Return the config of one run."""
        place = str(series.folder(value).resolve())
        config = {**self.composed.config, series.id: value, "bundle_root": place}
        return Composed(config, self.composed.origins, self.composed.notes, self.composed.initial)


def train_series(
    series: Series, sources: Sources, record: Recorder, jobs: int = 1, progress: Progress | None = None
) -> None:
    """Train every run that is not finished.

    Args:
        series: which runs.
        sources: what they are made of.
        record: called whenever one begins or ends.
        jobs: runs at the same time.
        progress: called with a line for each run and epoch; None writes them to standard error.

    Raises:
        UsageError: the folder holds a single run, or one of the series has another config; nothing is trained then.
        SegpipeError: a training failed, with its exit code; the others are stopped, and go on another time.
        KeyboardInterrupt: it was interrupted, after what ran has recorded it.
    """
    if (series.out / "run.json").exists():
        raise UsageError(
            "the folder holds a single run", path=series.out, hint=f"choose another --out for several {series.id}s"
        )
    for value in series.values:
        if series.is_begun(value):
            require_same(series.folder(value), sources.of(series, value).config, sources.manifest)
    if sources.composed.initial is not None:  # all at once: whoever resumes them does not name the parent
        for value in series.values:
            if not series.is_begun(value):
                prepare(sources.of(series, value), sources.manifest, series.folder(value), sources.fingerprint)
    work = _Work(series, sources, record, jobs, progress or Console("train").note)
    in_threads(work.train, series.values, jobs, work.children)
    record()


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of several runs: two processes would train, predict and write the same at the same time.

    Raises:
        UsageError: another process works there, or it cannot be written to.
    """
    hint = "wait until it has ended: the same command then goes on with what is left; or choose another --out"
    with locked(out, UsageError("another process works in this folder", path=out, hint=hint)):
        yield


def sources_of(series: Series, data: Path | None = None) -> Sources:
    """Return what the runs of a series were begun with, by one that was.

    Raises:
        UsageError: none was begun.
    """
    begun = next((series.folder(value) for value in series.values if series.is_begun(value)), None)
    if begun is None:
        raise UsageError(f"no {series.id} was begun yet", path=series.out, hint="give the first command again")
    record = read_json(begun / "run.json", "run record")
    config = {**read_json(begun / "config.json", "run config"), **read_places(begun)}
    return Sources(Composed(config, record["origins"]), begun / "manifest.json", begun / FINGERPRINT, data)


class _Work:
    """The trainings of a series, from several threads."""

    def __init__(self, series: Series, sources: Sources, record: Recorder, jobs: int, progress: Progress) -> None:
        self.series, self.sources, self.progress = series, sources, progress
        self.children = Subprocesses()
        self._record = record
        self._lock = threading.Lock()
        epochs = sources.composed.config["max_epochs"]
        trained = {row[series.id]: (row["status"], row["epochs"]) for row in series.rows("status", "epochs")}
        self._time = TimeLeft(trained, epochs, jobs) if isinstance(epochs, int) and len(trained) > 1 else None

    def train(self, value: int) -> None:
        """Begin or go on with a run, in a process of its own."""
        series, folder = self.series, self.series.folder(value)
        with self._lock:
            self._record()
            if not series.is_begun(value):
                prepare(self.sources.of(series, value), self.sources.manifest, folder, self.sources.fingerprint)
                self._record()
        if read_json(folder / "run.json", "run record")["status"] == "finished":
            return
        if self._time is not None:
            with self._lock:
                self._time.begin(value)
        self.progress(f"{series.id} {value}")
        arguments = {"resume": folder, "data": self.sources.data}
        try:
            ended = self.children.call("segpipe.train", arguments, lambda line: self._hear(value, line))
        finally:
            with self._lock:
                self._record()
        require_ended_well(ended, f"{series.id} {value}")

    def _hear(self, value: int, line: str) -> None:
        found = EPOCH.match(line)
        if found:
            left = ""
            if self._time is not None:
                with self._lock:
                    seconds = self._time.after(value, int(found[1]), line)
                left = f", {as_clock(seconds)} of all {len(self.series.values)} {self.series.id}s"
            self.progress(f"{self.series.folder(value).name} {line}{left}")
