"""metrics.csv, metrics.json and dice.png. They name cases by id; no path and no patient stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pipeline.console import SCHEMA_VERSION
from pipeline.evaluate.cases import CaseResult
from pipeline.evaluate.summary import Summary, case_value
from pipeline.files import write_csv, write_json, write_whole
from pipeline.measure import DEFINITIONS, LabelMeasure
from pipeline.report.figures import dice_bars

COLUMNS = ["case", *(column.name for column in fields(LabelMeasure))]


def write_report(
    folder: Path, results: Sequence[CaseResult], summary: Summary, settings: Mapping[str, Any]
) -> None:
    """Write the three files, each whole or not at all.

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
    with write_whole(folder / "dice.png") as stream:
        stream.write(dice_bars(_dice_of_labels(results)))


def _dice_of_labels(results: Sequence[CaseResult]) -> dict[str, dict[str, float | None]]:
    """Label name to case id to Dice."""
    table: dict[str, dict[str, float | None]] = {}
    for result in results:
        for measure in result.measures:
            table.setdefault(measure.name, {})[result.id] = measure.dice
    return table


def summary_document(summary: Summary) -> dict[str, Any]:
    """The summary as plain values."""

    def plain(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "metrics": {name: asdict(each) for name, each in part["metrics"].items()}}

    return {
        "overall": plain(summary.overall),
        "labels": {str(value): plain(part) for value, part in summary.labels.items()},
    }
