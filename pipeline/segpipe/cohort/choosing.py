"""Which cases to annotate next: those on which the model is in doubt, and that are unlike what is annotated already.

Doubt alone picks the same kind of case over and over, and broken scans; distance alone picks oddities that the model
masters. So both are ranked, and a case's gain is the mean of its two ranks; cases are chosen one by one, each counting
as annotated from then on (uncertainty with farthest-first traversal: Sener and Savarese 2018, arXiv:1708.00489).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.cohort.annotated import Annotated
from segpipe.cohort.descriptors import describe, distances, standardised
from segpipe.common.console import some_of
from segpipe.common.nifti import read_header, read_volume
from segpipe.common.result_folder import ENTROPY, RESULT, SEGMENTATION, STATE, decision_of
from segpipe.common.result_records import ResultRecord, read_result, read_sources
from segpipe.data import data_root, load_manifest
from segpipe.errors import SegpipeError, UsageError

OTHER_PATIENTS = "if these are other patients, predict with --pseudonymise, which makes ids of paths"
QUALITY, MAP, NONE = "quality model", "entropy", "none"  # what doubt was taken from


@dataclass(frozen=True)
class Candidate:
    """A case that nobody annotated.

    Attributes:
        id: of the case.
        images: its files.
        doubt: 1 is the most; None where nobody knows.
        doubt_from: what it was taken from.
        decision: ``ok``, ``look``, ``hold``, ``released``, or None.
    """

    id: str
    images: tuple[Path, ...]
    doubt: float | None = None
    doubt_from: str = NONE
    decision: str | None = None


@dataclass(frozen=True)
class Choice:
    """A case to annotate.

    Attributes:
        id: of the case.
        doubt: of the model, 0 to 1; None where nobody knows.
        distance: to the nearest case that is annotated or chosen before, in standard deviations; None for the first
            where nothing is annotated.
        gain: mean of the two ranks among the cases that are left, 0 to 1.
        decision: on its result.
    """

    id: str
    doubt: float | None
    distance: float | None
    gain: float
    decision: str | None


@dataclass(frozen=True)
class NextCases:
    """What is to be annotated next, most gain first.

    Attributes:
        choices: the cases.
        candidates: how many there were.
        annotated: cases that they were compared with.
        doubt_from: ``quality model``, ``entropy`` or ``none``.
        unreadable: ids of the cases whose image cannot be read, with the reason.
        left_out_by_id: those that an annotated case has the id of, and not the image.
    """

    choices: list[Choice]
    candidates: int
    annotated: int
    doubt_from: str
    unreadable: dict[str, str] = field(default_factory=dict)
    left_out_by_id: list[str] = field(default_factory=list)


def next_cases(
    source: str | Path,
    count: int = 10,
    *,
    annotated: str | Path | None = None,
    data: str | Path | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> NextCases:
    """Choose the cases to annotate next.

    Args:
        source: results of `segpipe predict` on cases without labels, or a manifest, of whose cases without a label
            nothing was predicted.
        count: how many to choose, at most.
        annotated: manifest of what is annotated; its labelled cases, also those of the test set, are never chosen.
            None: that of ``source`` where it is one, else nothing.
        data: folder that the manifest's paths start from.
        progress: called with the images read and of all.

    Raises:
        UsageError: no such folder or file, or no case is left to choose from.
        DataError: a manifest or a file of a result folder that is none.
    """
    source = Path(source)
    known: list[Candidate] = []
    if source.is_file():
        candidates, known = _of_manifest(source, data)
    else:
        candidates = _of_results(source)
    if annotated is not None:
        known += _of_manifest(Path(annotated), None if source.is_file() else data)[1]
    annotations = Annotated([(case.id, case.images) for case in known])
    left_out_by_id = [case.id for case in candidates if annotations.has_id_alone(case.id, case.images)]
    candidates = [case for case in candidates if not annotations.has(case.id, case.images)]
    if not candidates:
        raise UsageError(
            "there is no case to choose from",
            path=source,
            found=f"ids of annotated cases, of other images: {some_of(left_out_by_id)}" if left_out_by_id else None,
            expected="cases that no manifest has a label of",
            hint=OTHER_PATIENTS if left_out_by_id else None,
        )
    unreadable: dict[str, str] = {}
    rows: list[tuple[Candidate, NDArray[np.float64]]] = []
    for done, case in enumerate([*candidates, *known], 1):
        try:
            rows.append((case, describe(case.images)))
        except (SegpipeError, OSError) as error:
            unreadable[case.id] = error.message if isinstance(error, SegpipeError) else "the image cannot be read"
        progress(done, len(candidates) + len(known))
    candidates = [case for case, _ in rows if case in candidates]
    if not candidates:
        raise UsageError("no image can be read", path=source, found=next(iter(unreadable.values())))
    table = standardised([row for _, row in rows])
    doubts = [case.doubt for case in candidates]
    places = _greedy(table[: len(candidates)], table[len(candidates) :], doubts, count)
    choices = [Choice(candidates[i].id, doubts[i], far, gain, candidates[i].decision) for i, far, gain in places]
    said = {case.doubt_from for case in candidates} - {NONE}
    doubt_from = QUALITY if QUALITY in said else MAP if said else NONE
    return NextCases(choices, len(candidates), len(rows) - len(candidates), doubt_from, unreadable, left_out_by_id)


def _greedy(
    table: NDArray[np.float64], labelled: NDArray[np.float64], doubts: Sequence[float | None], count: int
) -> list[tuple[int, float | None, float]]:
    """Return place, distance and gain of the cases that are chosen one by one."""
    nearest = distances(table, labelled).min(axis=1) if len(labelled) else None
    doubt = None if all(each is None for each in doubts) else np.array([1.0 if d is None else d for d in doubts])
    left: list[int] = list(range(len(table)))
    chosen: list[tuple[int, float | None, float]] = []
    while left and len(chosen) < count:
        ranks = [_ranks(values[left]) for values in (doubt, nearest) if values is not None]
        if not ranks:  # nothing is known: the case nearest to the middle of all
            ranks = [_ranks(-distances(table, table.mean(axis=0, keepdims=True))[left, 0])]
        gains = np.mean(ranks, axis=0)
        best = int(np.argmax(gains))
        place = left.pop(best)
        chosen.append((place, None if nearest is None else float(nearest[place]), float(gains[best])))
        own = distances(table, table[place : place + 1])[:, 0]
        nearest = own if nearest is None else np.minimum(nearest, own)
    return chosen


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value, 0 for the least to 1 for the largest; equal values share theirs."""
    from scipy.stats import rankdata

    return (rankdata(values) - 1) / max(len(values) - 1, 1)


def _of_results(folder: Path) -> list[Candidate]:
    if not (folder / STATE).is_file():
        raise UsageError(
            "neither results nor a manifest", path=folder, expected="what `segpipe predict` or `segpipe import` wrote"
        )
    sources, found = read_sources(folder), []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result, id = read_result(path), path.parent.name
        found.append(Candidate(id, sources.get(id, ()), *_doubt(result, path.parent), decision_of(vars(result))))
    return found


def _of_manifest(path: Path, data: str | Path | None) -> tuple[list[Candidate], list[Candidate]]:
    """Return the cases of a manifest without a label, and those with one."""
    manifest, root = load_manifest(path), data_root(path, data)
    parts: tuple[list[Candidate], list[Candidate]] = [], []
    for case in manifest.cases():
        parts[case.label is not None].append(Candidate(case.id, tuple(root / image for image in case.images)))
    return parts


def _doubt(result: ResultRecord, folder: Path) -> tuple[float | None, str]:
    """Return the doubt of a result, and what it was taken from: the predicted Dice, else the entropy.

    Of an entropy, a voxel that is fully in doubt between two classes counts as one that may be wrong; these are held
    against the labelled ones.
    """
    told = [dice for dice in ((result.quality and result.quality.dice) or {}).values() if dice is not None]
    if told:
        return 1 - min(told), QUALITY
    if not (folder / ENTROPY).is_file() or not (folder / SEGMENTATION).is_file():
        return None, NONE
    try:
        entropy = np.asarray(read_volume(read_header(folder / ENTROPY)), np.float64)
        labels = np.asarray(read_volume(read_header(folder / SEGMENTATION)))
    except SegpipeError:
        return None, NONE
    unsure = float(np.minimum(entropy / np.log(2), 1).sum())
    voxels = int(np.count_nonzero(labels.max(axis=3) if labels.ndim == 4 else labels))
    return unsure / (unsure + voxels) if unsure + voxels else 1.0, MAP
