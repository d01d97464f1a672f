"""The demo's page: pictures, figures, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib

from pipeline.demo.outcome import Outcome, canonical
from pipeline.demo.walk import Settings, Step
from pipeline.manifest import Case
from pipeline.report.figures import dice_bars, learning_curve, overlay_figure
from pipeline.report.html import Picture, Section, Table, write_page
from pipeline.results import find_segmentation

MEASURES = {"dice": "Dice", "nsd": "surface Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}


def write_demo_page(path: Path, settings: Settings, outcome: Outcome, steps: list[Step]) -> None:
    """Write OUT/index.html."""
    seconds = sum(step.seconds for step in steps)
    sections = [
        Section(
            "In short",
            paragraphs=[
                f"A U-Net learnt liver, kidneys and liver lesions from "
                f"{len(outcome.manifest.select('training', 0))} generated volumes, was exported as a MONAI bundle, "
                f"and segmented {len(outcome.manifest.test)} volumes that it had never seen.",
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
            paragraphs=["The best, the middle and the worst test case. Green: truth. Red: prediction."],
            pictures=[_overlay(settings.out, outcome, case, score) for case, score in _chosen(outcome)],
        ),
        Section(
            "Test cases",
            tables=[_metrics_table(outcome)],
            pictures=[Picture(dice_bars(outcome.case_dice), "bars of Dice per test case and label")],
        ),
        Section(
            "Learning",
            pictures=[
                Picture(learning_curve(outcome.history), "loss and validation Dice over the epochs"),
            ],
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


def _chosen(outcome: Outcome) -> list[tuple[Case, float | None]]:
    """Best, middle and worst test case by mean Dice."""
    scores = {case["id"]: case["mean_dice"] for case in outcome.metrics["cases"]}
    ranked = sorted(outcome.manifest.test, key=lambda case: scores.get(case.id) or 0.0, reverse=True)
    places = sorted({0, len(ranked) // 2, len(ranked) - 1})
    return [(ranked[place], scores.get(ranked[place].id)) for place in places]


def _overlay(out: Path, outcome: Outcome, case: Case, score: float | None) -> Picture:
    root = out / "data"
    image = nib.as_closest_canonical(nib.load(root / case.images[0]))  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    prediction = find_segmentation(out / "predictions", case.id)
    png = overlay_figure(
        canonical(root / case.images[0]),
        canonical(root / str(case.label)),
        None if prediction is None else canonical(prediction),
        [float(size) for size in image.header.get_zooms()[:3]],
        outcome.manifest.foreground,
        f"{case.id}, mean Dice {_figure(score)}",
    )
    return Picture(png, f"three slices of {case.id} with the outlines of truth and prediction")


def _metrics_table(outcome: Outcome) -> Table:
    summary = outcome.metrics["summary"]
    parts = [*summary["labels"].values(), {"name": "mean of labels", **summary["overall"]}]
    rows: list[list[Any]] = []
    for part in parts:
        means = [part["metrics"][name]["mean"] for name in MEASURES]
        interval = part["metrics"]["dice"]
        rows.append([part["name"], *means, f"{_figure(interval['low'])} to {_figure(interval['high'])}"])
    return Table(["label", *MEASURES.values(), "95 % interval of Dice"], rows, "Means over the test cases")


def _name(step: Step) -> str:
    words = step.command.split()
    return words[1] if words[0] == "segpipe" else "stock monai.bundle run"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
