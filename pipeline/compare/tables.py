"""The comparison as rows of text, the same on the terminal, on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.compare.results import Row
from pipeline.compare.statistics import as_p, in_words
from pipeline.evaluate import Estimate

COLUMNS = (
    "variant", "Dice [95 % interval]", "difference [95 % interval]", "p", "steps", "s/step", "minutes", "parameters",
    "memory MB",
)  # fmt: skip
REFERENCE = "reference"


def main_table(rows: Sequence[Row]) -> list[list[str | None]]:
    """A line for each variant in the order of `COLUMNS`; None where there is nothing to say."""
    return [_line(row, first=row is rows[0]) for row in rows]


def label_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str | None]]]:
    """Column names and lines of the mean Dice by label."""
    names = _labels(rows)
    lines: list[list[str | None]] = [
        [row.name, *(_number(row.labels.get(name)) for name in names)] for row in rows
    ]
    return ["variant", *names], lines


def sentences(rows: Sequence[Row]) -> list[str]:
    """What each variant's figures mean beside the reference's."""
    compared = [(row, row.comparison) for row in rows if row.comparison is not None]
    tests = sum(found.p is not None for _, found in compared)
    words = [in_words(row.name, rows[0].name, found, tests) for row, found in compared]
    return words + [f"{row.name}: {_missing(row)}." for row in rows if _missing(row)]


def case_columns(rows: Sequence[Row]) -> list[str]:
    """Columns of `case_lines`."""
    return ["variant", "network", "loss", "fold", "seed", "case", "dice", *_labels(rows), "failed"]


def case_lines(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """A line for each run and case: Dice as the mean over labels, and of each label."""
    for row in rows:
        for run in row.runs:
            for case, dice in run.dice.items():
                yield {
                    "variant": row.name,
                    "network": row.facts["network"],
                    "loss": row.facts["loss"],
                    "fold": run.cell.fold,
                    "seed": run.cell.seed,
                    "case": case,
                    "dice": dice,
                    **{label: scores.get(case) for label, scores in run.by_label.items()},
                    "failed": int(case in run.failed),
                }


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.labels))


def as_markdown(columns: Sequence[str], lines: Iterable[Sequence[str | None]]) -> str:
    """A table in Markdown; numbers to the right."""
    head = [f"| {' | '.join(columns)} |", "|" + "|".join(["---", *["---:"] * (len(columns) - 1)]) + "|"]
    body = [f"| {' | '.join('–' if cell is None else cell for cell in line)} |" for line in lines]
    return "\n".join([*head, *body])


def _line(row: Row, first: bool) -> list[str | None]:
    facts, found = row.facts, row.comparison
    difference = None if found is None else _estimate(found.difference, "+", 4)
    return [
        row.name + (f" ({_missing(row)})" if _missing(row) else ""),
        _estimate(row.estimate, "", 3),
        REFERENCE if first else difference,
        None if found is None or found.p_holm is None else as_p(found.p_holm),
        ", ".join(map(str, facts["steps"])) or None,
        _number(facts["seconds_per_step"], 3),
        _number(facts["minutes"], 1),
        f"{facts['parameters']:,}",
        _number(facts["peak_memory_mb"], 0),
    ]


def _missing(row: Row) -> str:
    runs = row.facts["runs"]
    return "" if runs["finished"] == runs["planned"] else f"{runs['finished']} of {runs['planned']} runs"


def _estimate(found: Estimate, sign: str, digits: int) -> str | None:
    if found.mean is None or found.low is None:
        return _number(found.mean, digits, sign)
    low, high = _number(found.low, digits, sign), _number(found.high, digits, sign)
    return f"{_number(found.mean, digits, sign)} [{low}, {high}]"


def _number(value: float | None, digits: int = 3, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.{digits}f}"
