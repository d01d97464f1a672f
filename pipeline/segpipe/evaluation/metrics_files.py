"""metrics.csv, metrics.json, and the rows of the table. Cases go by their ids; no path and no patient is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import write_csv, write_json
from segpipe.evaluation.case_evaluation import CaseResult
from segpipe.evaluation.measure import DEFINITIONS, MEASURES, LabelMeasure
from segpipe.evaluation.statistics import Estimate, Summary, case_value

COLUMNS = ["case", *(column.name for column in fields(LabelMeasure))]
TABLE_COLUMNS = ["label", "measure", "mean", "interval", "median", "n"]


def write_report(folder: Path, results: Sequence[CaseResult], summary: Summary, settings: Mapping[str, Any]) -> None:
    """Write the two files, each whole or not at all.

    Args:
        folder: made where it is not there.
        results: in the order of the manifest.
        summary: of the same results.
        settings: what the figures depend on besides the data: split, tolerance, bootstrap, seed.

    Raises:
        UsageError: they cannot be written.
    """
    rows = [{"case": result.id, **asdict(measure)} for result in results for measure in result.measures]
    write_csv(folder / "metrics.csv", rows, COLUMNS)
    document = {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "definitions": DEFINITIONS,
        "summary": summary_document(summary),
        "cases": [
            {
                "id": result.id,
                "failure": result.failure,
                "remark": result.remark,
                "mean_dice": case_value(result, "dice"),
                "labels": [asdict(measure) for measure in result.measures],
            }
            for result in results
        ],
    }
    write_json(folder / "metrics.json", document)


def summary_document(summary: Summary) -> dict[str, Any]:
    """The summary as plain values."""

    def plain(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "metrics": {name: asdict(each) for name, each in part["metrics"].items()}}

    return {
        "overall": plain(summary.overall),
        "labels": {str(value): plain(part) for value, part in summary.labels.items()},
    }


def parts(summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    """Name and content of each label's part, then of the mean of labels."""
    return [*((part["name"], part) for part in summary.labels.values()), ("mean of labels", summary.overall)]


def table_rows(summary: Summary) -> list[list[Any]]:
    """The main measures as rows of `TABLE_COLUMNS`, numbers as text with the digits that are worth reading."""
    return [
        _row(name, metric, each)
        for name, part in parts(summary)
        for metric, each in part["metrics"].items()
        if MEASURES[metric].headline and (each.n or MEASURES[metric].kind != "error")
    ]


def _row(label: str, metric: str, each: Estimate) -> list[Any]:
    digits = MEASURES[metric].digits
    interval = None if each.low is None else f"{each.low:.{digits}f} to {each.high:.{digits}f}"
    mean, median = (None if value is None else f"{value:.{digits}f}" for value in (each.mean, each.median))
    return [label, metric, mean, interval, median, each.n]
