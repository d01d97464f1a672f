"""What `segpipe auto` is asked for, and ``auto.json``: which steps are finished, what they decided, their time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json, write_json
from segpipe.errors import DataError, UsageError
from segpipe.studies.auto_page import write_auto_page
from segpipe.studies.candidates import Candidate
from segpipe.studies.same_settings import differing, require_same
from segpipe.studies.search import Found
from segpipe.studies.variants import own_fragments
from segpipe.training import duration, step_memory

STATE, PAGE, BUNDLE, SEARCH = "auto.json", "auto.html", "bundle", "search"
SCHEMA_VERSION = 1
STEPS = ("import", "check", "split", "fingerprint", "search", "export")
SAVED_EVERY_S = 2.0  # a killed run knows its time to this
LISTED = ("dataset.json", "manifest.json")  # files that say what a data set is
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Asked:
    """What `segpipe auto` is asked for.

    Attributes:
        source: folder of a data set in a layout that `segpipe import` knows, or a manifest.
        out: folder for all that is made.
        seconds: the budget.
        data: folder that a manifest's paths start from, where it is not its own.
        candidates: trainings that are compared, of which the first is taken where there is no time for it; none: ours.
        folds: to draw where the manifest has none; None: by the budget.
        patient_rule, modality, label_names: of the import.
        device, memory_bytes, seed: of the trainings.
        jobs: trainings at the same time; None: one a core, but one on a GPU.
        name: of the bundle; None: that of the data set.
    """

    source: Path
    out: Path
    seconds: float
    data: Path | None = None
    candidates: tuple[Candidate, ...] = ()
    folds: int | None = None
    patient_rule: str = "none"
    modality: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    device: str = "cpu"
    jobs: int | None = None
    memory_bytes: int = field(default_factory=step_memory)
    seed: int = 0
    name: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share; no path is among them."""
        values = {
            name: value for name, value in asdict(self).items() if name not in ("source", "out", "data", "seconds")
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | {
            "candidates": [candidate.record() for candidate in self.candidates],
            "own_fragments": own_fragments(
                (kind, getattr(each, kind)) for each in self.candidates for kind in ("network", "augment")
            ),
            "budget_seconds": self.seconds,
        }


class State:
    """``auto.json``: written when a step ends, and while one lasts every few seconds.

    Args:
        asked: what is asked for.
        progress: where lines go.
    """

    def __init__(self, asked: Asked, progress: Progress) -> None:
        self.out, self._progress = asked.out, progress
        self.document = _read_state(asked)
        self._step: str | None = None
        self._saying = threading.Lock()
        self._saved = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps so far."""
        return float(sum(step["seconds"] for step in self.document["steps"].values()))

    @property
    def left(self) -> float:
        """Return the seconds that are left of the budget; negative where it is over."""
        return float(self.document["settings"]["budget_seconds"]) - self.seconds

    def decide(self, **facts: Any) -> None:
        """Record what the step decided."""
        self._entry()["decided"].update(facts)

    def decided(self, step: str) -> dict[str, Any]:
        """Return what a step decided."""
        return dict(self.document["steps"].get(step, {}).get("decided", {}))

    def say(self, line: str) -> None:
        """Hand a line on, with the time that is left; from any thread."""
        with self._saying:
            self._tick()
        left = self.left
        self._progress(
            f"{line}  [{duration(left)} left]" if left > 0 else f"{line}  [{duration(-left)} over the budget]"
        )

    def is_finished(self, step: str) -> bool:
        """Return whether the step was finished, by this process or one before."""
        return bool(self.document["steps"].get(step, {}).get("status") == "finished")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step, and record that it is finished."""
        self._step = name
        self.document["steps"].setdefault(name, {"status": "running", "seconds": 0.0, "decided": {}})
        self._mark = time.monotonic()
        if not self.is_finished(name):
            self.say(name)
        try:
            yield
            self._entry()["status"] = "finished"
        finally:
            self._tick(save=True)
            self._step = None

    def end(self, found: Found) -> dict[str, Any]:
        """Write the outcome and the page."""
        figure = found.out_of_fold["figure"]
        self.document["result"] = {
            "bundle": BUNDLE,
            "chosen": found.chosen.name,
            "figure": {name: figure[name] for name in ("measure", "raw", "corrected")},
            "of": found.out_of_fold["of"],
            "seconds": round(self.seconds, 1),
        }
        self.document["status"] = "finished"
        self.write()
        write_auto_page(self.out / PAGE, self.document, found.document, found.out_of_fold)
        return self.document

    def write(self) -> None:
        """Bring the document to disk."""
        write_json(self.out / STATE, self.document)

    def _entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.document["steps"][self._step]
        return entry

    def _tick(self, save: bool = False) -> None:
        now = time.monotonic()
        if self._step is not None:
            self._entry()["seconds"] = round(self._entry()["seconds"] + now - self._mark, 2)
            self._mark = now
        if save or now - self._saved > SAVED_EVERY_S:
            self._saved = now
            self.write()


def _read_state(asked: Asked) -> dict[str, Any]:
    path, record = asked.out / STATE, {**asked.record(), "source_sha256": _source_sha256(asked.source, asked.out)}
    head = {"schema_version": SCHEMA_VERSION, "command": "auto", "status": "running"}
    new = {**head, "settings": record, "steps": {}, "notes": [], "result": None}
    if not path.is_file():
        if any(not entry.name.startswith(".") for entry in asked.out.iterdir()):
            raise UsageError("the folder holds something that is not of `segpipe auto`", path=asked.out)
        return new
    document = _read_document(path)
    if not any(step["status"] == "finished" for step in document["steps"].values()):
        return new  # such as after a wrong path: nothing was done that other settings would not fit
    later = ("source_sha256", "own_fragments")  # which folders of before do not record
    recorded = {**{name: record[name] for name in later}, **document["settings"]}
    others = differing(record, recorded)
    begun = (asked.out / SEARCH).is_dir() and any((asked.out / SEARCH).glob("*.json"))
    if others and "source_sha256" not in others and not begun:
        return new  # what there is takes seconds, and may have ended for just these settings
    require_same(record, recorded, asked.out, "other settings, or another data set")
    return document


def _read_document(path: Path) -> dict[str, Any]:
    """Read ``auto.json``.

    Raises:
        DataError: it cannot be read, or lacks what is read from it.
    """
    hint = "put a copy of it back, or begin anew with another -o"
    document = read_json(path, "state of `segpipe auto`", hint)
    try:
        steps = document["steps"]
        whole = set(steps) <= set(STEPS) and all(
            isinstance(step["status"], str) and isinstance(step["decided"], dict) and float(step["seconds"]) >= 0
            for step in steps.values()
        )
        whole = whole and isinstance(document["settings"], dict) and isinstance(document["notes"], list)
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DataError("this is not the state of `segpipe auto`", path=path, hint=hint)
    return dict(document)


def _source_sha256(source: Path, out: Path) -> str:
    """Return a hash by which a data set is known again, wherever it lies: its list of cases, or its names of files."""
    if not source.exists():
        raise UsageError("there is no such file or folder", path=source)
    try:
        if source.is_file():
            return hashlib.sha256(source.read_bytes()).hexdigest()
        lists = [source / name for name in LISTED if (source / name).is_file()]
        if lists:
            return hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()
        inside = [
            path for folder in (source, *sorted(source.iterdir())) if folder.is_dir() for path in folder.iterdir()
        ]
    except OSError as error:
        raise UsageError("the data set cannot be read", path=source, found=error.strerror) from error
    made = out.resolve()  # it may lie in the data set's folder, and grows
    given = [
        path for path in inside if not path.name.startswith(".") and made not in (path.resolve(), path.parent.resolve())
    ]
    names = sorted(path.relative_to(source).as_posix() for path in given)
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
