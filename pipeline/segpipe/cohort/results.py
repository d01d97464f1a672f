"""The finished cases of result folders, as a report over many needs them: read, nothing computed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json
from segpipe.common.result_folder import RESULT, STATE, decision_of, read_events
from segpipe.errors import DataError, UsageError

OUTLYING = 3.5  # robust z-score from which a volume is an outlier (Iglewicz and Hoaglin 1993)
LEAST = 8  # cases, below which nothing is called an outlier


@dataclass(frozen=True, kw_only=True)
class CohortCase:
    """A finished case.

    Attributes:
        id: of the case.
        run: name of its result folder.
        folder: where its files lie.
        time: when it was finished, in seconds since 1970; None where that is not recorded.
        model: what made it, as `model_of` says it: cases of one are alike.
        volumes_ml: by label.
        decision: ``ok``, ``look``, ``hold``, or ``released`` where it was held; None where nobody judged.
        reasons: of the decision.
        p_value, distance: of the quality model, None where there is none.
        dice: predicted, by label.
        volume_ml_interval: of the true volume, by label, where there is one.
        notes: number of notes.
        labels: value of each label in the label map, or number of each region; empty in results of older versions.
        regions: how many there are that may overlap; 0 for a label map.
        is_dicom: whether it was predicted from a DICOM series.
        sha256: of each of its files, by name.
    """

    id: str
    run: str
    folder: Path
    time: float | None
    model: str
    volumes_ml: dict[str, float]
    decision: str | None = None
    reasons: tuple[str, ...] = ()
    p_value: float | None = None
    distance: float | None = None
    dice: dict[str, float] = field(default_factory=dict)
    volume_ml_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    regions: int = 0
    is_dicom: bool = False
    sha256: dict[str, str] = field(default_factory=dict)


def read_cohort(folders: Sequence[Path]) -> list[CohortCase]:
    """Return the finished cases of result folders, oldest first; those without a time at the end, by id.

    Raises:
        UsageError: a folder is not there or is no result folder, or two have the same name.
        DataError: a ``result.json`` cannot be read.
    """
    # as it is called by a link, but for "." and "..", which are no names
    names = [folder.resolve().name if folder.name in ("", "..") else folder.name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError("two result folders have the same name", found=twice, hint="rename one of them")
    cases = [case for folder, name in zip(folders, names, strict=True) for case in _of_folder(folder, name)]
    if not cases:
        raise UsageError("no finished case", path=folders[0] if folders else None, hint="run `segpipe predict` first")
    return sorted(cases, key=lambda case: (case.time is None, case.time or 0.0, case.run, case.id))


def _of_folder(folder: Path, name: str) -> list[CohortCase]:
    if not folder.is_dir() or not (folder / STATE).is_file():
        expected = f"a folder with {STATE}, which `segpipe predict` writes"
        raise UsageError("not a result folder", path=folder, expected=expected)
    times = {event["id"]: event.get("time") for event in read_events(folder) if event.get("event") == "done"}
    found = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        document = read_json(path, "result")
        try:
            found.append(_case(document, path.parent, name, times))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                "a result cannot be read",
                path=path,
                found=f"{type(error).__name__}: {error}",
                expected="what `segpipe predict` writes",
            ) from error
    return found


def _case(document: Mapping[str, Any], folder: Path, run: str, times: Mapping[str, Any]) -> CohortCase:
    quality = document.get("quality") or {}
    return CohortCase(
        id=str(document["id"]),
        run=run,
        folder=folder,
        time=times.get(document["id"]),
        model=model_of(document),
        volumes_ml={str(name): float(volume) for name, volume in document["volumes_ml"].items()},
        decision=decision_of(document),
        reasons=tuple(document.get("reasons") or ()),
        p_value=_number(quality.get("p_value")),
        distance=_number(quality.get("distance")),
        dice={str(name): float(dice) for name, dice in (quality.get("dice") or {}).items()},
        volume_ml_interval={
            str(name): (float(low), float(high)) for name, (low, high) in (quality.get("volume_ml") or {}).items()
        },
        notes=len(document.get("notes") or ()),
        labels=dict(document.get("labels") or {}),
        regions=int(document.get("regions") or 0),
        is_dicom=document.get("source") == "dicom",
        sha256=dict(document.get("sha256") or {}),
    )


def model_of(result: Mapping[str, Any]) -> str:
    """Return in words what computed a result, as far as other words may be other label maps.

    >>> bundle = {"name": "organs", "version": "1.0.0", "sha256": "0123456789"}
    >>> model_of({"bundle": bundle, "mirror": ["x"], "precision": "bfloat16"})
    'organs 1.0.0 (01234567), torch, bfloat16, mirrored along x'
    """
    bundles = [result["bundle"], *(result.get("ensemble") or ())]
    precision, axes = result.get("precision") or "float32", ", ".join(result.get("mirror") or ())
    parts = [
        " + ".join(f"{each['name']} {each['version']} ({str(each['sha256'])[:8]})" for each in bundles),
        str(result.get("runtime") or "torch"),
        *([str(precision)] if precision != "float32" else []),
        *([f"mirrored along {axes}"] if axes else []),
        *(["masks given"] if result.get("masks_given") else []),
    ]
    return ", ".join(parts)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def robust_scores(values: Sequence[float]) -> list[float]:
    """Return how far each value is from the median, in robust standard deviations; 0 where they hardly differ.

    >>> robust_scores([1, 2, 3, 4, 100])[-1] > 3.5
    True
    """
    if len(values) < 2:
        return [0.0] * len(values)
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]


def outlying(cases: Sequence[CohortCase]) -> dict[tuple[str, str], list[str]]:
    """Return, by run and id, the labels whose volume is unlike that of the other cases of the same model.

    Args:
        cases: of any models; only those of one are compared, and none where there are few.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for model in dict.fromkeys(case.model for case in cases):
        alike = [case for case in cases if case.model == model]
        for label in dict.fromkeys(label for case in alike for label in case.volumes_ml):
            having = [case for case in alike if label in case.volumes_ml]
            if len(having) < LEAST:
                continue
            scores = robust_scores([case.volumes_ml[label] for case in having])
            for case, score in zip(having, scores, strict=True):
                if abs(score) > OUTLYING:
                    found.setdefault((case.run, case.id), []).append(label)
    return found
