"""compare.json: what was asked for, what is done, and what came of it; never half of it.

OUT/compare.json                     settings, variants, cells, results
OUT/runs/<variant>/<cell>/run        what `segpipe train` left
                         /bundle, /predictions, /metrics   what export, predict and evaluate left
OUT/tensorboard/<variant>/<cell>     the run's, for `tensorboard --logdir OUT/tensorboard`
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pipeline.console import SCHEMA_VERSION
from pipeline.errors import DataError, UsageError
from pipeline.files import read_json, write_json

STATE = "compare.json"


class State:
    """The document, written anew whenever something is done.

    Args:
        out: folder of the comparison.
        document: as it was read, or as a new one begins.
    """

    def __init__(self, out: Path, document: dict[str, Any]) -> None:
        self.out = out
        self.document = document
        self._lock = threading.Lock()

    @property
    def variants(self) -> dict[str, Any]:
        """Facts of each variant by name: epochs by fold, parameters, first timings."""
        variants: dict[str, Any] = self.document["variants"]
        return variants

    @property
    def cells(self) -> dict[str, Any]:
        """How each cell ended, by key; what was never finished is not there."""
        cells: dict[str, Any] = self.document["cells"]
        return cells

    def finished(self, key: str) -> bool:
        """Whether a cell has nothing left to do."""
        return bool(self.cells.get(key, {}).get("status") == "finished")

    def end(self, key: str, facts: dict[str, Any]) -> None:
        """Record how a cell ended."""
        with self._lock:
            self.cells[key] = facts
            self.write()

    def write(self) -> None:
        """Bring the document to disk."""
        write_json(self.out / STATE, self.document)


def open_state(out: Path, settings: dict[str, Any]) -> State:
    """The state of a folder, or a new one that is not written yet.

    Args:
        out: folder of the comparison.
        settings: plain values that two starts must share.

    Raises:
        UsageError: the folder was begun with other settings, which are named, or holds something else.
        DataError: the state cannot be read.
    """
    path = out / STATE
    if not path.exists():
        if out.is_dir() and any(not each.name.startswith(".") for each in out.iterdir()):
            raise UsageError(
                "the folder holds something that is not of a comparison", path=out, hint="name an empty one"
            )
        head = {"schema_version": SCHEMA_VERSION, "command": "compare"}
        begun = {**head, "settings": settings, "variants": {}, "cells": {}, "results": None}
        return State(out, begun)
    document = read_json(path, "comparison")
    if not isinstance(document, dict) or not {"settings", "variants", "cells"} <= set(document):
        raise DataError("this is not the state of a comparison", path=path, hint="name another --out")
    differing = [name for name in settings if document["settings"].get(name) != settings[name]]
    if differing:
        raise UsageError(
            "the folder was begun with other settings",
            path=out,
            found="; ".join(f"{name}: {_short(settings[name])}" for name in differing),
            expected="; ".join(f"{name}: {_short(document['settings'].get(name))}" for name in differing),
            hint="give the same settings to go on, or another --out",
        )
    return State(out, document)


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
