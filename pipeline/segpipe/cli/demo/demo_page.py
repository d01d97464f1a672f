"""The demo's page: figures read back from the files that the steps left, pictures, and the commands."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.cli.demo.demo_steps import Settings, Step
from segpipe.common.files import read_json
from segpipe.common.result_folder import find_segmentation
from segpipe.data import Case, Manifest
from segpipe.errors import DataError
from segpipe.evaluation import dice, read_panel
from segpipe.reporting import Picture, Section, Table, dice_bars, gallery, learning_curves, write_page

COMMON_GRID = (48, 48, 32)
MEASURES = {"dice": "Dice", "nsd": "surface Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}


@dataclass(frozen=True)
class Outcome:
    """The demo's figures.

    Attributes:
        manifest: of the generated data.
        metrics: metrics.json of the evaluation.
        history: rows of history.csv.
        guess_dice: mean test Dice of a guess that looks at no image.
        agreement: share of voxels on which stock MONAI's label maps equal ours.
    """

    manifest: Manifest
    metrics: dict[str, Any]
    history: list[dict[str, str]]
    guess_dice: float
    agreement: float

    @property
    def mean_dice(self) -> float | None:
        """Return the mean over the test cases of the mean over labels."""
        mean: float | None = self.metrics["summary"]["overall"]["metrics"]["dice"]["mean"]
        return mean

    @property
    def case_dice(self) -> dict[str, dict[str, float | None]]:
        """Return label name to case id to Dice."""
        table: dict[str, dict[str, float | None]] = {name: {} for name in self.manifest.foreground.values()}
        for case in self.metrics["cases"]:
            for label in case["labels"]:
                table[label["name"]][case["id"]] = label["dice"]
        return table


def read_outcome(out: Path, manifest: Manifest) -> Outcome:
    """Read the figures of a finished demo.

    Raises:
        DataError: a step left something out.
    """
    with (out / "run" / "history.csv").open(newline="", encoding="utf-8") as stream:
        history = list(csv.DictReader(stream))
    return Outcome(
        manifest,
        read_json(out / "evaluation" / "metrics.json", "evaluation"),
        history,
        guess_dice(out / "data", manifest),
        agreement(out / "predictions", out / "stock", manifest.test),
    )


def agreement(predictions: Path, stock: Path, cases: list[Case]) -> float:
    """Return the share of equal voxels in two folders of label maps.

    Raises:
        DataError: a case is missing in one, or its grids differ.
    """
    equal = total = 0
    for case in cases:
        paths = [find_segmentation(folder, case.id) for folder in (predictions, stock)]
        if paths[0] is None or paths[1] is None:
            raise DataError("a label map is missing", case_id=case.id)
        image, stock_image = (nib.load(path) for path in paths)  # type: ignore[attr-defined, unused-ignore]
        if image.shape != stock_image.shape or not np.allclose(image.affine, stock_image.affine, atol=1e-4):
            raise DataError("our label map and stock MONAI's are on different grids", case_id=case.id)
        equal += int((np.asarray(image.dataobj) == np.asarray(stock_image.dataobj)).sum())
        total += int(np.prod(image.shape))
    return equal / total


def guess_dice(root: Path, manifest: Manifest) -> float:
    """Return the mean test Dice of laying the training cases' most frequent label map over every test case.

    It needs no image, so it is what a network has to beat to have learnt to look.
    """
    votes = np.zeros((len(manifest.labels), *COMMON_GRID), np.uint16)
    for case in manifest.training:
        labelmap = _resize(canonical(root / str(case.label)), COMMON_GRID)
        for value in range(len(votes)):
            votes[value] += labelmap == value
    frequent = votes.argmax(axis=0).astype(np.uint8)
    scores = []
    for case in manifest.test:
        truth = canonical(root / str(case.label))
        guess = _resize(frequent, truth.shape)
        by_label = [dice(truth == value, guess == value) for value in manifest.foreground]
        scores.append(np.mean([score for score in by_label if score is not None]))
    return float(np.mean(scores))


def canonical(path: Path) -> NDArray[Any]:
    """Return the voxels of a file with its axes turned towards right, front and head."""
    turned = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    return np.asarray(turned.dataobj)


def _resize(labelmap: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    factors = [new / old for new, old in zip(shape, labelmap.shape, strict=True)]
    resized: NDArray[Any] = ndimage.zoom(labelmap, factors, order=0)
    return resized


def write_demo_page(path: Path, settings: Settings, outcome: Outcome, steps: list[Step]) -> None:
    """Write OUT/index.html."""
    seconds = sum(step.seconds for step in steps)
    sections = [
        Section(
            "In short",
            paragraphs=[
                f"A U-Net learnt liver, kidneys and liver lesions from "
                f"{len(outcome.manifest.select('training', 0))} generated volumes, was exported as a MONAI bundle, "
                f"and segmented {len(outcome.manifest.test)} volumes that it had never seen."
            ],
            figures=[
                (_figure(outcome.mean_dice), "mean Dice on the test cases"),
                (_figure(outcome.guess_dice), "of a guess that looks at no image"),
                (f"{outcome.agreement:.3%}", "of voxels equal in stock MONAI and segpipe"),
                (f"{seconds / 60:.1f} min", f"for all steps, {settings.threads} CPU threads"),
            ],
        ),
        Section(
            "Pictures",
            paragraphs=[
                "The best, the middle and the worst test case, each where it is worst. Green: truth. Red: prediction."
            ],
            pictures=[_pictures(settings.out, outcome)],
        ),
        Section(
            "Test cases",
            tables=[_metrics_table(outcome)],
            pictures=[Picture(dice_bars(outcome.case_dice), "bars of Dice per test case and label")],
        ),
        Section(
            "Learning",
            pictures=[Picture(learning_curves({"demo": outcome.history}), "loss and validation Dice over the epochs")],
        ),
        Section(
            "Commands",
            paragraphs=["OUT is the demo's folder. Each line can be run again by hand."],
            commands=[step.command for step in steps],
            tables=[Table(["step", "seconds"], [[_name(step), round(step.seconds)] for step in steps])],
        ),
    ]
    lead = (
        f"From {settings.cases} generated scans to a bundle that stock MONAI runs. The anatomies are made up "
        f"(seed {settings.seed}); no patient was involved."
    )
    write_page(path, "segpipe demo", sections, lead)


def _pictures(out: Path, outcome: Outcome) -> Picture:
    """Draw the best, middle and worst test case by mean Dice."""
    scores = {case["id"]: case["mean_dice"] for case in outcome.metrics["cases"]}
    ranked = sorted(outcome.manifest.test, key=lambda case: scores.get(case.id) or 0.0, reverse=True)
    places = sorted({0, len(ranked) // 2, len(ranked) - 1})
    panels = (
        read_panel(
            case, out / "data", out / "predictions", outcome.manifest.foreground, f"Dice {_figure(scores.get(case.id))}"
        )
        for case in (ranked[place] for place in places)
    )
    return Picture(gallery(panels), "slices of three test cases with the outlines of truth and prediction")


def _metrics_table(outcome: Outcome) -> Table:
    summary = outcome.metrics["summary"]
    rows: list[list[Any]] = []
    for group in [*summary["labels"].values(), {"name": "mean of labels", **summary["overall"]}]:
        means = [group["metrics"][name]["mean"] for name in MEASURES]
        interval = group["metrics"]["dice"]
        rows.append([group["name"], *means, f"{_figure(interval['low'])} to {_figure(interval['high'])}"])
    return Table(["label", *MEASURES.values(), "95 % interval of Dice"], rows, "Means over the test cases")


def _name(step: Step) -> str:
    words = step.command.split()
    return words[1] if words[0] == "segpipe" else "stock monai.bundle run"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
