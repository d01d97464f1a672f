"""The pictures of an evaluation and report.html, the page that holds them and stands alone.

Dice bars, the worst cases, animations and learning curves are drawn first; the page embeds what was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_bytes
from segpipe.common.nifti import Header, grid_difference, read_header, read_volume
from segpipe.common.result_folder import find_segmentation
from segpipe.data import Case, Manifest
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.evaluation.case_evaluation import CaseResult, Job, targets_of
from segpipe.evaluation.measure import DEFINITIONS, Targets, painted
from segpipe.evaluation.summary import TABLE_COLUMNS, Summary, case_value
from segpipe.reporting import (
    Panel,
    Picture,
    Section,
    Table,
    dice_bars,
    gallery,
    gif,
    learning_curves,
    read_history,
    write_page,
)

BARS, LABEL_BARS, GALLERY, CURVES = "dice.png", "dice_labels.png", "gallery.png", "curves.png"
ALL = (BARS, LABEL_BARS, GALLERY, CURVES)
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


@dataclass(frozen=True)
class FigureOptions:
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


def figure_options(jobs: Sequence[Job], worst: int, gifs: Sequence[str], run: Path | None) -> FigureOptions:
    """Judge what is to be drawn before the work begins.

    Raises:
        UsageError: a case to animate is not evaluated, or the run has no history.
    """
    known = {job.id for job in jobs}
    for id in gifs:
        if id not in known:
            raise UsageError(
                f"--gif {id}: no such case is evaluated",
                expected=", ".join(sorted(known)[:8]),
                hint="name a labelled case of this split by its id",
            )
    return FigureOptions(worst, tuple(dict.fromkeys(gifs)), [] if run is None else read_history(run))


def draw_figures(
    folder: Path,
    results: Sequence[CaseResult],
    manifest: Manifest,
    data: Path,
    predictions: Path,
    options: FigureOptions,
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
    panels = scans.panels(worst_cases(results, options.worst))
    first = next(panels, None)
    if first is not None:
        write_bytes(folder / GALLERY, gallery(chain([first], panels)))
        figures.files.append(GALLERY)
    chosen = [result for id in options.gifs for result in results if result.id == id]
    for panel in scans.panels(chosen):
        write_bytes(folder / f"{panel.case_id}.gif", gif(panel))
        figures.files.append(f"{panel.case_id}.gif")
    if options.history:
        write_bytes(folder / CURVES, learning_curves({manifest.name: options.history}))
        figures.files.append(CURVES)
    if manifest.n_channels > 1 and scans.drawn:
        figures.notes.append(f"of {manifest.n_channels} channels the first is drawn: {manifest.channels[0]}")
    figures.notes += [f"{', '.join(ids)} not drawn: {reason}" for reason, ids in scans.left_out.items()]
    return figures


def _draw_bars(folder: Path, results: Sequence[CaseResult], figures: Figures) -> None:
    by_label = _scores_by_label(results)
    several = len(by_label) > 1
    title = "mean of labels" if several else next(iter(by_label), "")
    scores = {result.id: case_value(result, "dice") for result in results}
    write_bytes(folder / BARS, dice_bars({title: scores}))
    figures.files.append(BARS)
    if several:
        write_bytes(folder / LABEL_BARS, dice_bars(by_label))
        figures.files.append(LABEL_BARS)


def _scores_by_label(results: Sequence[CaseResult]) -> dict[str, dict[str, float | None]]:
    """Return label name to case id to Dice."""
    table: dict[str, dict[str, float | None]] = {}
    for result in results:
        for measure in result.measures:
            table.setdefault(measure.name, {})[result.id] = measure.dice
    return table


def worst_cases(results: Sequence[CaseResult], number: int) -> list[CaseResult]:
    """Return the measured cases of lowest mean Dice, the worst first; a failed one has no prediction to look at."""
    scores = {result.id: case_value(result, "dice") for result in results if result.failure is None}
    ranked = sorted((score, id) for id, score in scores.items() if score is not None)
    by_id = {result.id: result for result in results}
    return [by_id[id] for _, id in ranked[:number]]


class _Scans:
    """Reads one case after the other to be drawn, and remembers those that cannot be."""

    def __init__(self, manifest: Manifest, data: Path, predictions: Path) -> None:
        self.cases = {case.id: case for case in manifest.cases()}
        self.manifest = manifest
        self.data, self.predictions = data, predictions
        self.drawn = 0
        self.left_out: dict[str, dict[str, None]] = {}  # reason to case ids, each once

    def panels(self, results: Sequence[CaseResult]) -> Iterator[Panel]:
        for result in results:
            score = case_value(result, "dice")
            caption = "" if score is None else f"Dice {score:.3f}"
            try:
                case = self.cases[result.id]
                targets = targets_of(self.manifest, case)
                panel = read_panel(case, self.data, self.predictions, targets.names, caption, targets)
            except (SegpipeError, MemoryError) as error:
                self.left_out.setdefault(_reason(error), {})[result.id] = None
                continue
            self.drawn += 1
            yield panel


def _reason(error: Exception) -> str:
    """Return an error in one line; neither a path nor a name of a file stands in it."""
    if not isinstance(error, SegpipeError):
        return "not enough memory"
    message = "the image is not there" if isinstance(error, UsageError) else error.message
    return f"{message}, found {error.found}" if error.found is not None else message


def read_panel(
    case: Case, data: Path, predictions: Path, labels: Mapping[int, str], caption: str, targets: Targets | None = None
) -> Panel:
    """Return a case's image, truth and prediction, with axes towards the patient's right, front and head.

    Of several channels the first is taken. All three are turned in the same way, by the truth's affine, so that they
    cannot come apart.

    Of regions the last one in a voxel is shown. What the truth ignores is shown as background in both.

    Args:
        case: with a label.
        data: folder that the case's paths start from.
        predictions: folder of predictions.
        labels: value to name, without background.
        caption: what to write beside the case's id.
        targets: what of the truth is measured; None: each of the labels, everywhere.

    Raises:
        UsageError: the image is not there.
        DataError: there is no prediction, a file cannot be read, or their grids differ.
    """
    path = find_segmentation(predictions, case.id)
    if case.label is None or path is None:
        raise DataError("there is no prediction to draw", case_id=case.id)
    truth, prediction, image = (read_header(file) for file in (data / case.label, path, data / case.images[0]))
    targets = targets or Targets(labels)
    masks = bool(targets.regions) and prediction.shape[3:] == (len(targets.regions),)
    flat = replace(prediction, shape=prediction.shape[:3]) if masks else prediction
    for role, header in (("prediction", flat), ("image", replace(image, shape=image.shape[:3]))):
        difference = grid_difference(truth, header)
        if difference is not None:
            raise DataError(f"the {role} is not on the grid of the truth", found=difference, case_id=case.id)
    volumes = [_first_channel(header) for header in (image, truth, prediction)]
    if not targets.is_plain:
        true = volumes[1].astype(np.uint8)
        predicted = np.moveaxis(read_volume(prediction), 3, 0) if masks else volumes[2]
        both = [targets.masks(values.astype(np.uint8), targets.counted(true)) for values in (true, predicted)]
        volumes[1:] = [painted(values) if values.ndim == 4 else values for values in both]
    turned = [_turned(volume, truth) for volume in volumes]
    return Panel(case.id, caption, turned[0], turned[1], turned[2], _turned_spacing(truth), labels)


def _first_channel(header: Header) -> NDArray[np.generic]:
    values = read_volume(header)
    return values.reshape(*values.shape[:3], -1)[..., 0]


def _turned(volume: NDArray[np.generic], header: Header) -> NDArray[np.generic]:
    """Return the volume with each axis towards right, front or head, whichever of the header's affine is nearest."""
    from nibabel.orientations import apply_orientation, io_orientation

    turned: NDArray[np.generic] = apply_orientation(volume, io_orientation(header.affine))
    return turned


def _turned_spacing(header: Header) -> tuple[float, float, float]:
    from nibabel.orientations import io_orientation

    axes = io_orientation(header.affine)[:, 0].astype(int)  # where each stored axis goes
    x, y, z = (header.spacing_mm[int(stored)] for stored in np.argsort(axes))
    return x, y, z


def write_evaluation_page(
    folder: Path, results: Sequence[CaseResult], summary: Summary, settings: Mapping[str, Any], figures: Figures
) -> None:
    """Write the page beside the pictures that it embeds.

    Raises:
        UsageError: it cannot be written.
    """
    rows = summary.rows()
    measures = dict.fromkeys(row[1] for row in rows)
    failed = [[result.id, result.failure] for result in results if result.failure is not None]
    sections = [
        Section("In short", figures=_short(summary, settings, len(failed))),
        Section("Measures", tables=[Table(TABLE_COLUMNS, rows, _basis(settings))]),
        *([Section("Cases that failed", tables=[Table(["case", "reason"], failed)])] if failed else []),
        Section("Dice by case", pictures=_pictures(folder, figures, (BARS, LABEL_BARS))),
        *_scans(folder, figures),
        *_training(folder, figures),
        Section(
            "Definitions", tables=[Table(["measure", "definition"], [[name, DEFINITIONS[name]] for name in measures])]
        ),
    ]
    write_page(folder / PAGE, f"{settings['dataset']}: {settings['split']} cases", sections)


def _short(summary: Summary, settings: Mapping[str, Any], failed: int) -> list[tuple[str, str]]:
    dice, counts = summary.overall["metrics"]["dice"], summary.overall["counts"]
    patients = f"{counts['patients']} patients" if settings["bootstrap"]["unit"] == "patient" else "unknown patients"
    return [
        (_number(dice.mean), "mean Dice over cases"),
        (f"{_number(dice.low)} to {_number(dice.high)}", "95 % interval of the mean"),
        (_number(dice.median), "median Dice"),
        (str(counts["cases"]), f"cases of {patients}, {failed} failed"),
    ]


def _basis(settings: Mapping[str, Any]) -> str:
    seen = settings.get("seen_in_training")
    good = f" Figures are too good: the model had seen {len(seen)} of the cases in training." if seen else ""
    return (
        f"Means over cases; intervals from {settings['bootstrap']['draws']} draws of "
        f"{settings['bootstrap']['unit']}s; distances in mm, "
        f"volumes in mL; tolerance of NSD {settings['tolerance_mm']:g} mm. metrics.csv holds every case and "
        f"measure.{good}"
    )


def _scans(folder: Path, figures: Figures) -> list[Section]:
    gifs = [name for name in figures.files if name.endswith(".gif")]
    pictures = _pictures(folder, figures, (GALLERY, *gifs))
    if not (pictures or figures.notes):
        return []
    return [Section("Scans", paragraphs=[*([ORIENTATION] if pictures else []), *figures.notes], pictures=pictures)]


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
