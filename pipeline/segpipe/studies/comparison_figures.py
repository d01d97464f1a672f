"""The figures of a comparison, kept below OUT/figures for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from segpipe.common.files import write_bytes
from segpipe.data import Manifest
from segpipe.errors import DataError, UsageError
from segpipe.evaluation import read_panel, targets_of
from segpipe.reporting import Panel, comparison, dice_bars, gallery, gif, learning_curves, read_history
from segpipe.studies.comparison_results import Measured, Row, best_row
from segpipe.studies.comparison_state import Study

FIGURES = "figures"
WORST = 4


@dataclass(frozen=True)
class Figure:
    """A picture below OUT/figures.

    Attributes:
        file: its name there.
        title: heading.
        alt: what it shows, in words.
        caption: what to know when looking at it.
    """

    file: str
    title: str
    alt: str
    caption: str


def draw_figures(rows: Sequence[Row], study: Study, gifs: Sequence[str]) -> list[Figure]:
    """Draw every figure that the finished runs allow; those of an older start go.

    Args:
        rows: of `gather`.
        study: where the scans and the runs are.
        gifs: ids of cases to animate; by default the worst and the median case of the best variant.

    Raises:
        UsageError: the folder cannot be written to.
    """
    for old in (study.out / FIGURES).glob("*"):
        old.unlink()
    best = best_row(rows)
    if best is None:
        return []
    artist = _Artist(study)
    scored = [row for row in rows if row.dice]
    artist.overview(scored)
    artist.curves(scored)
    artist.bars(scored)
    worst = sorted(best.dice, key=lambda case: best.dice[case])
    artist.gallery(
        "worst.png",
        f"Worst cases of {best.name}",
        [(best, case) for case in worst[:WORST]],
        f"the {min(WORST, len(worst))} cases of lowest Dice of the variant with the highest mean",
    )
    if len(scored) > 1:
        chosen = [(row, min(row.dice, key=lambda case: row.dice[case])) for row in scored]
        artist.gallery("worst_of_each.png", "Worst case of every variant", chosen, "one row for each variant")
    for case in dict.fromkeys(gifs or (worst[0], worst[len(worst) // 2])):
        artist.animation(best, case)
    return artist.figures


class _Artist:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.cases = {case.id: case for case in study.dataset.cases()}
        self.figures: list[Figure] = []

    def add(self, content: bytes, figure: Figure) -> None:
        write_bytes(self.study.out / FIGURES / figure.file, content)
        self.figures.append(figure)

    def overview(self, rows: Sequence[Row]) -> None:
        scores = {row.name: list(row.dice.values()) for row in rows}
        intervals = {
            row.name: (row.estimate.low, row.estimate.high)
            for row in rows
            if row.estimate.low is not None and row.estimate.high is not None
        }
        words = "Dice of every case for each variant, with mean (red) and median (green)"
        self.add(
            comparison(scores, intervals), Figure("variants.png", "All variants", words, "One point for each case.")
        )

    def curves(self, rows: Sequence[Row]) -> None:
        histories = {row.name: read_history(self.study.folder(row.runs[0].cell) / "run") for row in rows}
        words = "training loss, validation loss and validation Dice over the epochs"
        caption = "Losses are in their own units: compare the shapes, not the heights, of different losses."
        if any(len(row.runs) > 1 for row in rows):
            caption += " Of each variant its first run; TensorBoard holds all."
        self.add(learning_curves(histories), Figure("curves.png", "Learning curves", words, caption))

    def bars(self, rows: Sequence[Row]) -> None:
        words = "Dice of every case as bars for each variant, with mean (red) and median (green) lines"
        content = dice_bars({row.name: row.dice for row in rows})
        self.add(content, Figure("dice.png", "Dice per case", words, "Each variant's cases from worst to best."))

    def gallery(self, file: str, title: str, chosen: Iterable[tuple[Row, str]], what: str) -> None:
        panels = list(self.panels(chosen))
        if panels:
            words = f"{what}: slices in three planes, outlines of prediction (red) and truth (green)"
            caption = "Prediction red, truth green, through the place of worst disagreement."
            self.add(gallery(panels), Figure(file, title, words, caption))

    def animation(self, row: Row, case: str) -> None:
        for panel in self.panels([(row, case)]):
            words = f"axial slices of {case} with outlines of prediction (red) and truth (green)"
            self.add(gif(panel), Figure(f"{case}.gif", f"{case}, {panel.caption}", words, "From the feet to the head."))

    def panels(self, chosen: Iterable[tuple[Row, str]]) -> Iterator[Panel]:
        """Yield the cases that can be drawn, each by its worst run; a case without a prediction cannot."""
        for row, case in chosen:
            run = _worst_run(row, case)
            if run is None:
                continue
            caption = f"{row.name}, Dice {run.dice[case]:.3f}"
            predictions = self.study.folder(run.cell) / "predictions"
            try:
                targets = targets_of(self.study.dataset, self.cases[case])
                yield read_panel(self.cases[case], self.study.data, predictions, targets.names, caption, targets)
            except (DataError, UsageError):
                continue  # its Dice of 0 stands in the table, and why in the run's metrics.json


def _worst_run(row: Row, case: str) -> Measured | None:
    runs = [(dice, index) for index, run in enumerate(row.runs) if (dice := run.dice.get(case)) is not None]
    return row.runs[min(runs)[1]] if runs else None


def check_gifs(gifs: Sequence[str], manifest: Manifest) -> None:
    """Refuse a case that the manifest does not have, before anything is run."""
    known = {case.id for case in manifest.cases()}
    for case in gifs:
        if case not in known:
            raise UsageError("no such case to animate", found=case, hint="name an id of the manifest")
