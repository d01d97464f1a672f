"""Which labels the cases have, and which of them a fold's training never sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from segpipe.common.nifti import read_header, read_volume
from segpipe.common.processes import Progress, over_cases, workers_to_read
from segpipe.data.fingerprint import count_values
from segpipe.data.manifest import Case, Manifest
from segpipe.errors import SegpipeError

Present = Mapping[str, Collection[int] | None]
"""Case id to the values in its label map; None where that is not known."""


def labels_present(manifest: Manifest, root: Path, progress: Progress | None = None) -> Present:
    """Read the label maps of all training cases, several at a time; of what cannot be read, `check` speaks."""
    files = [root / str(case.label) for case in manifest.training]
    jobs = list(zip(manifest.training, files, strict=True))
    found = over_cases(_values, jobs, workers_to_read(files), lambda job: None, progress=progress)
    return {case.id: values for case, values in zip(manifest.training, found, strict=True)}


def _values(job: tuple[Case, Path]) -> set[int] | None:
    try:
        label = read_volume(read_header(job[1]))
        if label.dtype.kind in "iu" and label.dtype.itemsize <= 2:  # counted, which is much faster than sorted
            counts, lowest = count_values(label)
            return set((np.flatnonzero(counts) + lowest).tolist())
        return set(np.unique(label).astype(int).tolist())
    except (SegpipeError, OSError, ValueError):
        return None


def labels_not_trained(manifest: Manifest, present: Present) -> list[tuple[int | None, str]]:
    """Return each fold (None where there are none) and label that not one of the cases trained on has.

    Args:
        manifest: with its folds.
        present: of every training case; a fold that has a case of which nothing is known is passed over.
    """
    lacking: list[tuple[int | None, str]] = []
    folds: list[int | None] = [*manifest.folds()]
    for fold in folds or [None]:
        known = [present.get(case.id) for case in manifest.select("training", fold)]
        seen = {value for values in known for value in values or ()}
        if known and None not in known:
            lacking += [(fold, name) for value, name in manifest.foreground.items() if value not in seen]
    return lacking


def not_trained_words(manifest: Manifest, fold: int | None, label: str) -> str:
    """Say that a label is not trained."""
    cases = len(manifest.select("training", fold))
    where = "" if fold is None else f"fold {fold}: "
    return f"{where}none of the {cases} cases trained on has {label}, so it would not be learned"
