"""report.html: one evaluation on one page that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.cases import CaseResult
from pipeline.evaluate.figures import BARS, CURVES, GALLERY, LABEL_BARS, Figures
from pipeline.evaluate.output import TABLE_COLUMNS, table_rows
from pipeline.evaluate.summary import Summary
from pipeline.measure import DEFINITIONS
from pipeline.report.html import Picture, Section, Table, write_page

PAGE = "report.html"
WORDS = {
    BARS: ("Dice of each case", "Dice of each case as bars, from the worst to the best"),
    LABEL_BARS: ("Dice of each case, label by label", "Dice of each case as bars, a panel for each label"),
    GALLERY: (
        "The worst cases, in three planes through the place of worst disagreement",
        "slices of the worst cases with the outlines of truth and prediction",
    ),
    CURVES: ("Losses and validation Dice while it was trained", "learning curves"),
}
ORIENTATION = (
    "Red and thin: the outline of the prediction. Green and thick: that of the truth. The patient's right is on the "
    "left (R, L: right, left; A, P: front, back; S, I: head, feet)."
)


def write_evaluation_page(
    folder: Path,
    results: Sequence[CaseResult],
    summary: Summary,
    settings: Mapping[str, Any],
    figures: Figures,
) -> None:
    """Write the page beside the pictures that it embeds.

    Raises:
        UsageError: it cannot be written.
    """
    rows = table_rows(summary)
    measures = dict.fromkeys(row[1] for row in rows)
    failed = [[result.id, result.failure] for result in results if result.failure is not None]
    sections = [
        Section("In short", figures=_short(summary, len(failed))),
        Section("Measures", tables=[Table(TABLE_COLUMNS, rows, _basis(settings))]),
        *([Section("Cases that failed", tables=[Table(["case", "reason"], failed)])] if failed else []),
        Section("Dice by case", pictures=_pictures(folder, figures, (BARS, LABEL_BARS))),
        *_scans(folder, figures),
        *_training(folder, figures),
        Section(
            "Definitions",
            tables=[Table(["measure", "definition"], [[name, DEFINITIONS[name]] for name in measures])],
        ),
    ]
    write_page(folder / PAGE, f"{settings['dataset']}: {settings['split']} cases", sections)


def _short(summary: Summary, failed: int) -> list[tuple[str, str]]:
    dice, counts = summary.overall["metrics"]["dice"], summary.overall["counts"]
    return [
        (_number(dice.mean), "mean Dice over cases"),
        (f"{_number(dice.low)} to {_number(dice.high)}", "95 % interval of the mean"),
        (_number(dice.median), "median Dice"),
        (str(counts["cases"]), f"cases of {counts['patients']} patients, {failed} failed"),
    ]


def _basis(settings: Mapping[str, Any]) -> str:
    return (
        f"Means over cases; intervals from {settings['bootstrap']['draws']} draws of patients; distances in mm, "
        f"volumes in mL; tolerance of NSD {settings['tolerance_mm']:g} mm. metrics.csv holds every case and measure."
    )


def _scans(folder: Path, figures: Figures) -> list[Section]:
    gifs = [name for name in figures.files if name.endswith(".gif")]
    pictures = _pictures(folder, figures, (GALLERY, *gifs))
    if not (pictures or figures.notes):
        return []
    return [
        Section("Scans", paragraphs=[*([ORIENTATION] if pictures else []), *figures.notes], pictures=pictures)
    ]


def _training(folder: Path, figures: Figures) -> list[Section]:
    pictures = _pictures(folder, figures, (CURVES,))
    return [Section("Training", pictures=pictures)] if pictures else []


def _pictures(folder: Path, figures: Figures, names: Sequence[str]) -> list[Picture]:
    pictures = []
    for name in names:
        if name in figures.files:
            case = name.removesuffix(".gif")
            caption, alt = WORDS.get(name, (f"{case}, from the feet to the head", f"axial slices of {case}"))
            pictures.append(Picture((folder / name).read_bytes(), alt, caption))
    return pictures


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
