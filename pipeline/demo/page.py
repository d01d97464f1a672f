"""The demo's page: pictures, figures, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.demo.outcome import Outcome
from pipeline.demo.walk import Settings, Step
from pipeline.evaluate.panels import read_panel
from pipeline.report.bars import dice_bars
from pipeline.report.curves import learning_curves
from pipeline.report.gallery import gallery
from pipeline.report.html import Picture, Section, Table, write_page

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
            pictures=[
                Picture(
                    learning_curves({"demo": outcome.history}), "loss and validation Dice over the epochs"
                ),
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


def _pictures(out: Path, outcome: Outcome) -> Picture:
    """Best, middle and worst test case by mean Dice."""
    scores = {case["id"]: case["mean_dice"] for case in outcome.metrics["cases"]}
    ranked = sorted(outcome.manifest.test, key=lambda case: scores.get(case.id) or 0.0, reverse=True)
    places = sorted({0, len(ranked) // 2, len(ranked) - 1})
    panels = (
        read_panel(
            case,
            out / "data",
            out / "predictions",
            outcome.manifest.foreground,
            f"Dice {_figure(scores.get(case.id))}",
        )
        for case in (ranked[place] for place in places)
    )
    return Picture(gallery(panels), "slices of three test cases with the outlines of truth and prediction")


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
