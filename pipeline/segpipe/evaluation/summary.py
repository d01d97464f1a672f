"""Sum up the cases: mean, interval and counts of every measure, as metrics.csv, metrics.json and the table.

Cases go by their ids; no path and no patient is in the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import write_csv, write_json
from segpipe.evaluation.case_evaluation import CaseResult
from segpipe.evaluation.made_by import made_by, seal
from segpipe.evaluation.measure import DEFINITIONS, MEASURES, LabelMeasure, mean_defined
from segpipe.evaluation.statistics import Estimate, bootstrap_mean

BY_LABEL = tuple(name for name, measure in MEASURES.items() if measure.kind != "volume")
OVERALL = tuple(name for name in BY_LABEL if MEASURES[name].kind != "difference")
CSV_COLUMNS = ["case", *(column.name for column in fields(LabelMeasure))]
TABLE_COLUMNS = ["label", "measure", "mean", "interval", "median", "n"]


@dataclass(frozen=True)
class Summary:
    """Estimates by measure.

    Attributes:
        labels: for each label value its name, ``counts`` and ``metrics`` (name of a measure to its `Estimate`).
        overall: ``counts`` and ``metrics`` of the cases, each case being the mean over its counted labels.
    """

    labels: dict[int, dict[str, Any]]
    overall: dict[str, Any]

    def parts(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and content of each label's part, then of the mean of labels."""
        return [*((part["name"], part) for part in self.labels.values()), ("mean of labels", self.overall)]

    def rows(self) -> list[list[Any]]:
        """Return the main measures as rows of `TABLE_COLUMNS`, numbers as text with the digits worth reading."""
        return [
            _row(name, metric, estimate)
            for name, part in self.parts()
            for metric, estimate in part["metrics"].items()
            if MEASURES[metric].headline and (estimate.n or MEASURES[metric].kind != "error")
        ]

    def document(self) -> dict[str, Any]:
        """Return the summary as plain values."""

        def plain(part: Mapping[str, Any]) -> dict[str, Any]:
            return {**part, "metrics": {name: asdict(estimate) for name, estimate in part["metrics"].items()}}

        return {
            "overall": plain(self.overall),
            "labels": {str(value): plain(part) for value, part in self.labels.items()},
        }


def _row(label: str, metric: str, estimate: Estimate) -> list[Any]:
    digits = MEASURES[metric].digits
    interval = None if estimate.low is None else f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
    mean, median = (None if value is None else f"{value:.{digits}f}" for value in (estimate.mean, estimate.median))
    return [label, metric, mean, interval, median, estimate.n]


def summarise(
    results: Sequence[CaseResult], labels: Mapping[int, str], n_bootstrap: int = 2000, seed: int = 0
) -> Summary:
    """Return mean, median, interval and counts of every measure."""
    groups = [result.group for result in results]

    def estimate(values: list[float | None]) -> Estimate:
        return bootstrap_mean(values, groups, n_bootstrap, seed)

    by_label = {}
    for position, (value, name) in enumerate(labels.items()):
        measures = [result.measures[position] for result in results]
        by_label[value] = {
            "name": name,
            "counts": _label_counts(measures),
            "metrics": {metric: estimate([getattr(measure, metric) for measure in measures]) for metric in BY_LABEL},
        }
    overall = {
        "counts": _case_counts(results),
        "metrics": {metric: estimate([case_value(result, metric) for result in results]) for metric in OVERALL},
    }
    return Summary(by_label, overall)


def case_value(result: CaseResult, metric: str) -> float | None:
    """Return the mean of a measure over the labels that have it; a failed case scores 0, whatever its truth holds."""
    if result.failure is not None:
        return 0.0 if MEASURES[metric].kind == "score" else None
    return mean_defined(getattr(measure, metric) for measure in result.measures)


def _label_counts(measures: Sequence[LabelMeasure]) -> dict[str, int]:
    flags = Counter(measure.flag for measure in measures)
    return {
        "counted": sum(measure.counted for measure in measures),
        **{flag: flags[flag] for flag in ("missing", "failed", "missed", "false_positive", "absent")},
        **({"not_annotated": flags["not_annotated"]} if flags["not_annotated"] else {}),
        "undefined_distances": sum(_lacks_a_distance(measure) for measure in measures),
    }


def _case_counts(results: Sequence[CaseResult]) -> dict[str, int]:
    missing = sum(result.missing for result in results)
    return {
        "cases": len(results),
        "patients": len({result.group for result in results}),
        "counted": sum(case_value(result, "dice") is not None for result in results),
        "missing": missing,
        "failed": sum(result.failure is not None for result in results) - missing,
        "undefined_distances": sum(
            result.failure is not None or any(map(_lacks_a_distance, result.measures)) for result in results
        ),
    }


def _lacks_a_distance(measure: LabelMeasure) -> bool:
    """Return whether a mean distance passes over a label that counts in the mean Dice."""
    return measure.counted and measure.hd_mm is None


def write_metrics(folder: Path, results: Sequence[CaseResult], summary: Summary, settings: Mapping[str, Any]) -> None:
    """Write metrics.csv and metrics.json, each whole or not at all.

    Args:
        folder: made where it is not there.
        results: in the order of the manifest.
        summary: of the same results.
        settings: what the figures depend on besides the data: split, tolerance, bootstrap, seed.

    Raises:
        UsageError: they cannot be written.
    """
    rows = [{"case": result.id, **asdict(measure)} for result in results for measure in result.measures]
    write_csv(folder / "metrics.csv", rows, CSV_COLUMNS)
    document = {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "predictions": made_by({result.id: result.origin for result in results}),
        "definitions": DEFINITIONS,
        "summary": summary.document(),
        "cases": [
            {
                "id": result.id,
                "failure": result.failure,
                "remark": result.remark,
                "prediction_sha256": result.origin and result.origin.sha256,
                "image_sha256": list(result.origin.images) if result.origin else [],
                "mean_dice": case_value(result, "dice"),
                "labels": [asdict(measure) for measure in result.measures],
            }
            for result in results
        ],
    }
    write_json(folder / "metrics.json", {**document, "content_sha256": seal(document)})
