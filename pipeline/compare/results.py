"""What all runs say together: the table, from the state and the files that the runs left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from pipeline.compare.cells import Place
from pipeline.compare.state import State
from pipeline.compare.statistics import Comparison, compare, estimate, mean_by_case
from pipeline.compare.variants import Cell, Settings, Variant
from pipeline.evaluate import Estimate
from pipeline.files import read_json
from pipeline.manifest import Manifest


@dataclass(frozen=True)
class Measured:
    """A finished run's scores.

    Attributes:
        cell: which run.
        dice: case id to mean Dice over labels.
        by_label: label name to case id to Dice.
        failed: ids of the cases without a usable prediction.
    """

    cell: Cell
    dice: Mapping[str, float | None]
    by_label: Mapping[str, Mapping[str, float | None]]
    failed: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: which.
        runs: its finished runs.
        dice: case id to mean over the runs.
        estimate: mean over the cases.
        labels: label name to mean Dice over cases.
        comparison: against the reference; None for the reference itself, or where either has no run.
        facts: parameters, steps, seconds_per_step, minutes, peak_memory_mb, epochs, runs planned.
    """

    variant: Variant
    runs: list[Measured]
    dice: Mapping[str, float]
    estimate: Estimate
    labels: Mapping[str, float]
    comparison: Comparison | None
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.variant.name


def gather(state: State, settings: Settings, manifest: Manifest, place: Place) -> list[Row]:
    """A row for each variant, the reference first."""
    groups = {case.id: case.group for case in manifest.cases()}
    runs = {
        variant.name: [
            _read(cell, place)
            for cell in settings.cells()
            if cell.variant == variant and state.finished(cell.key)
        ]
        for variant in settings.variants()
    }
    dice = {name: mean_by_case([run.dice for run in found]) for name, found in runs.items()}
    reference, *others = dice
    tested = {name: dice[name] for name in others if dice[name] and dice[reference]}
    compared = compare(dice[reference], tested, groups)
    return [
        Row(
            variant, runs[variant.name], dice[variant.name], estimate(dice[variant.name], groups),
            _labels(runs[variant.name]), compared.get(variant.name), _facts(variant, state, settings),
        )
        for variant in settings.variants()
    ]  # fmt: skip


def best_row(rows: list[Row]) -> Row | None:
    """The variant of highest mean Dice; None where no run was finished."""
    scored = [row for row in rows if row.estimate.mean is not None]
    return max(scored, key=lambda row: row.estimate.mean or 0.0, default=None)


def plain_results(rows: list[Row], state: State, manifest: Manifest, place: Place) -> dict[str, Any]:
    """The results as plain values for compare.json."""
    cases = {case for row in rows for case in row.dice}
    runs = [run for row in rows for run in row.runs]
    best = best_row(rows)
    return {
        "reference": rows[0].name,
        "best": None if best is None else best.name,
        "cases": len(cases),
        "patients": len({case.group for case in manifest.cases() if case.id in cases}),
        "rows": [_plain(row) for row in rows],
        "failures": [
            {"run": key, "reason": facts["reason"]}
            for key, facts in state.cells.items()
            if facts["status"] == "failed"
        ],
        "environment": _environment(runs[0].cell, place) if runs else None,
    }


def _environment(cell: Cell, place: Place) -> Any:
    return read_json(place.cell(cell) / "run" / "run.json", "run record")["environment"]


def _plain(row: Row) -> dict[str, Any]:
    found = row.comparison
    return {
        "variant": row.name,
        "dice": asdict(row.estimate),
        "labels": dict(row.labels),
        "difference": None if found is None else asdict(found.difference),
        "patients": None if found is None else found.patients,
        "p": None if found is None else found.p,
        "p_holm": None if found is None else found.p_holm,
        **row.facts,
        "failed_cases": sorted(set().union(*(run.failed for run in row.runs))),
    }


def _read(cell: Cell, place: Place) -> Measured:
    cases = read_json(place.cell(cell) / "metrics" / "metrics.json", "evaluation")["cases"]
    by_label: dict[str, dict[str, float | None]] = {}
    for case in cases:
        for label in case["labels"]:
            by_label.setdefault(label["name"], {})[case["id"]] = label["dice"]
    failed = frozenset(case["id"] for case in cases if case["failure"] is not None)
    return Measured(cell, {case["id"]: case["mean_dice"] for case in cases}, by_label, failed)


def _labels(runs: list[Measured]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.by_label)
    means = {name: mean_by_case([run.by_label.get(name, {}) for run in runs]) for name in names}
    return {name: fmean(cases.values()) for name, cases in means.items() if cases}


def _facts(variant: Variant, state: State, settings: Settings) -> dict[str, Any]:
    about = state.variants[variant.name]
    cells = [cell for cell in settings.cells() if cell.variant == variant]
    done = [(cell, state.cells[cell.key]) for cell in cells if state.finished(cell.key)]
    per_epoch = about["steps_per_epoch"]
    timed = [
        facts["epoch_seconds"] / per_epoch[str(cell.fold)]
        for cell, facts in done
        if facts.get("epoch_seconds")
    ]
    memory = [facts["peak_memory_mb"] for _, facts in done if facts.get("peak_memory_mb")]
    return {
        "network": about["network"],
        "loss": about["loss"],
        "runs": {"planned": len(cells), "finished": len(done)},
        "steps": sorted({facts["epochs"] * per_epoch[str(cell.fold)] for cell, facts in done}),
        "epochs": sorted({facts["epochs"] for _, facts in done}),
        "seconds_per_step": round(fmean(timed), 4) if timed else None,
        "minutes": round(fmean(facts["seconds"] for _, facts in done) / 60, 2) if done else None,
        "parameters": about["parameters"],
        "patch_size": about["patch_size"],
        "peak_memory_mb": max(memory, default=None),
    }
