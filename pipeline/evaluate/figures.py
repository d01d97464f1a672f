"""The pictures of one evaluation: Dice bars, the worst cases, animations, learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from pipeline.errors import SegpipeError, UsageError
from pipeline.evaluate.cases import CaseResult, Job
from pipeline.evaluate.panels import read_panel, worst_cases
from pipeline.evaluate.summary import case_value
from pipeline.manifest import Manifest
from pipeline.report.animation import write_gif
from pipeline.report.bars import dice_bars, draw_dice_bars
from pipeline.report.canvas import write_bytes
from pipeline.report.curves import draw_learning_curves, read_history
from pipeline.report.gallery import draw_gallery
from pipeline.report.planes import Panel

BARS, LABEL_BARS, GALLERY, CURVES = "dice.png", "dice_labels.png", "gallery.png", "curves.png"
ALL = (BARS, LABEL_BARS, GALLERY, CURVES)


@dataclass(frozen=True)
class Wanted:
    """What to draw besides the bars.

    Attributes:
        worst: number of cases in the gallery.
        gifs: ids of cases to animate.
        history: rows of the run's history.csv; empty where no run was named.
    """

    worst: int = 4
    gifs: Sequence[str] = ()
    history: Sequence[Mapping[str, str]] = ()


@dataclass
class Figures:
    """What was drawn.

    Attributes:
        files: names in the folder, in the order of the report.
        notes: what was left out and why, without paths.
    """

    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def draw_figures(
    folder: Path,
    results: Sequence[CaseResult],
    manifest: Manifest,
    data: Path,
    predictions: Path,
    wanted: Wanted,
) -> Figures:
    """Draw into the folder, in place of the pictures that an older evaluation left there.

    What cannot be drawn, since an image is missing or lies on another grid, is told in the notes.

    Raises:
        UsageError: the folder cannot be written to.
    """
    for name in ALL:
        (folder / name).unlink(missing_ok=True)
    figures = Figures()
    _draw_bars(folder, results, figures)
    scans = _Scans(manifest, data, predictions)
    panels = scans.panels(worst_cases(results, wanted.worst))
    first = next(panels, None)
    if first is not None:
        draw_gallery(chain([first], panels), folder / GALLERY)
        figures.files.append(GALLERY)
    chosen = [result for id in wanted.gifs for result in results if result.id == id]
    for panel in scans.panels(chosen):
        write_gif(panel, folder / f"{panel.case_id}.gif")
        figures.files.append(f"{panel.case_id}.gif")
    if wanted.history:
        draw_learning_curves({manifest.name: wanted.history}, folder / CURVES)
        figures.files.append(CURVES)
    if manifest.n_channels > 1 and scans.drawn:
        figures.notes.append(f"of {manifest.n_channels} channels the first is drawn: {manifest.channels[0]}")
    figures.notes += [f"{', '.join(ids)} not drawn: {reason}" for reason, ids in scans.left_out.items()]
    return figures


def _draw_bars(folder: Path, results: Sequence[CaseResult], figures: Figures) -> None:
    by_label = scores_by_label(results)
    several = len(by_label) > 1
    title = "mean of labels" if several else next(iter(by_label), "")
    draw_dice_bars({result.id: case_value(result, "dice") for result in results}, folder / BARS, title)
    figures.files.append(BARS)
    if several:
        write_bytes(folder / LABEL_BARS, dice_bars(by_label))
        figures.files.append(LABEL_BARS)


class _Scans:
    """Reads one case after the other to be drawn, and remembers those that cannot be."""

    def __init__(self, manifest: Manifest, data: Path, predictions: Path) -> None:
        self.cases = {case.id: case for case in manifest.cases()}
        self.labels = manifest.foreground
        self.data, self.predictions = data, predictions
        self.drawn = 0
        self.left_out: dict[str, dict[str, None]] = {}  # reason to case ids, each once

    def panels(self, results: Sequence[CaseResult]) -> Iterator[Panel]:
        for result in results:
            score = case_value(result, "dice")
            caption = "" if score is None else f"Dice {score:.3f}"
            try:
                panel = read_panel(self.cases[result.id], self.data, self.predictions, self.labels, caption)
            except (SegpipeError, MemoryError) as error:
                self.left_out.setdefault(_reason(error), {})[result.id] = None
                continue
            self.drawn += 1
            yield panel


def _reason(error: Exception) -> str:
    """An error in one line; neither a path nor a name of a file stands in it."""
    if not isinstance(error, SegpipeError):
        return "not enough memory"
    what = "the image is not there" if isinstance(error, UsageError) else error.message
    return f"{what}, found {error.found}" if error.found is not None else what


def wanted_figures(jobs: Sequence[Job], worst: int, gifs: Sequence[str], run: Path | None) -> Wanted:
    """What is asked for, judged before the work begins.

    Raises:
        UsageError: a case to animate is not evaluated, or the run has no history.
    """
    known = {job.id for job in jobs}
    for id in gifs:
        if id not in known:
            raise UsageError(
                f"--gif {id}: no such case is evaluated", expected=", ".join(sorted(known)[:8]),
                hint="name a labelled case of this split by its id",
            )  # fmt: skip
    return Wanted(worst, tuple(dict.fromkeys(gifs)), [] if run is None else read_history(run))


def scores_by_label(results: Sequence[CaseResult]) -> dict[str, dict[str, float | None]]:
    """Label name to case id to Dice."""
    table: dict[str, dict[str, float | None]] = {}
    for result in results:
        for measure in result.measures:
            table.setdefault(measure.name, {})[result.id] = measure.dice
    return table
