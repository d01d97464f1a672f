"""A comparison's folder, and ``compare.json`` in it: what was asked for, what is done, what came of it; never half.

OUT/compare.json                     settings, variants, cells, results
OUT/runs/<variant>/<cell>/run        what `train` left
                         /bundle, /predictions, /metrics   what `export`, `predict` and `evaluate` left
OUT/tensorboard/<variant>/<cell>     the run's, for ``tensorboard --logdir OUT/tensorboard``
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import read_json, sha256_of, write_json
from segpipe.common.folder_lock import locked
from segpipe.data import Manifest
from segpipe.errors import DataError, UsageError
from segpipe.studies.same_settings import require_same
from segpipe.studies.variants import Cell, Settings

STATE = "compare.json"
WRITING = ".compare.lock"  # held while it is read and written anew
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Study:
    """What is compared, and where everything is.

    Attributes:
        settings: what is asked for.
        dataset: the data set.
        manifest: its path.
        data: folder that its paths start from.
        out: folder of the comparison.
    """

    settings: Settings
    dataset: Manifest
    manifest: Path
    data: Path
    out: Path

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.out / "runs" / cell.variant.name / cell.place

    def record(self) -> dict[str, Any]:
        """Return the plain values that two starts in one folder must share."""
        data = {"dataset": self.dataset.name, "manifest_sha256": sha256_of(self.manifest)}
        return {**data, **self.settings.record()}


class State:
    """The document, written anew whenever something is done.

    Args:
        out: folder of the comparison.
        document: as it was read, or as a new one begins.
    """

    def __init__(self, out: Path, document: dict[str, Any]) -> None:
        self.out = out
        self.document = document
        self.variants: dict[str, Any] = document["variants"]  # by name: epochs by fold, parameters, first timings
        self.cells: dict[str, Any] = document["cells"]  # by key: how each ended; what never did is not there
        self._lock = threading.Lock()

    def finished(self, cell: Cell) -> bool:
        """Return whether a cell has nothing left to do."""
        return bool(self.cells.get(cell.key, {}).get("status") == "finished")

    def end(self, cell: Cell, facts: dict[str, Any]) -> None:
        """Record how a cell ended, beside what other shares have recorded meanwhile."""
        busy = UsageError("another process keeps the state to itself", path=self.out, hint="give the command again")
        with self._lock, locked(self.out, busy, name=WRITING, wait_s=LONGEST_WAIT_S):
            self.refresh()
            self.cells[cell.key] = facts
            self.write()

    def refresh(self) -> None:
        """Take in what other shares have written.

        Raises:
            UsageError: one that began at the same time has other settings, which are named.
        """
        path = self.out / STATE
        if path.exists():
            written = read_json(path, "comparison")
            require_same(self.document["settings"], written["settings"], self.out, "other settings")
            self.variants.update(written["variants"])
            self.cells.update(written["cells"])

    def write(self) -> None:
        """Bring the document to disk."""
        write_json(self.out / STATE, self.document)


def open_state(study: Study) -> State:
    """Read the state of the study's folder, or begin one that is not written yet.

    Raises:
        UsageError: the folder was begun with other settings, which are named, or holds something else.
        DataError: the state cannot be read.
    """
    out, settings = study.out, study.record()
    path = out / STATE
    if not path.exists():
        if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise UsageError(
                "the folder holds something that is not of a comparison", path=out, hint="name an empty one"
            )
        head = {"schema_version": SCHEMA_VERSION, "command": "compare"}
        return State(out, {**head, "settings": settings, "variants": {}, "cells": {}, "results": None})
    document = read_json(path, "comparison")
    if not isinstance(document, dict) or not {"settings", "variants", "cells"} <= set(document):
        raise DataError("this is not the state of a comparison", path=path, hint="name another --out")
    require_same(settings, document["settings"], out, "other settings")
    return State(out, document)
