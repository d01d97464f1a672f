"""What an evaluation found, in the few figures that a model card shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json

SHOWN = ("dice", "nsd", "hd95_mm", "assd_mm")
OVERALL = "mean of labels"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: ``metrics`` (measure to label to ``value``, ``low``, ``high``, ``median`` and ``n``), ``dataset``,
            ``split``, ``cases``, ``patients``, ``missing`` and ``failed`` cases, ``interval`` in words,
            ``tolerance_mm`` of the surface Dice.
        dice: case id to its mean Dice over the labels; None where no label counts.
    """

    results: dict[str, Any]
    dice: Mapping[str, float | None]


def read_evaluation(folder: Path) -> Evaluation:
    """The few figures of a ``metrics.json`` that a model card shows.

    Raises:
        UsageError: no such file.
        DataError: not what `segpipe evaluate` writes.
    """
    path = folder / "metrics.json"
    document = read_json(path, "evaluation")
    try:
        summary = document["summary"]
        parts = {part["name"]: part for part in summary["labels"].values()} | {OVERALL: summary["overall"]}
        counts, bootstrap = summary["overall"]["counts"], document["bootstrap"]
        dice = {str(case["id"]): case["mean_dice"] for case in document.get("cases", ())}
        results = {
            "dataset": document.get("dataset"),
            "split": document["split"],
            "fold": document.get("fold"),
            "cases": counts["cases"],
            "patients": counts["patients"],
            "missing": counts["missing"],
            "failed": counts["failed"],
            "interval": f"the {bootstrap['level']:.0%} bootstrap interval over {bootstrap['unit']}s",
            "tolerance_mm": document["tolerance_mm"],
            "manifest_sha256": document["manifest_sha256"],
            "metrics": {
                metric: {name: _figure(part["metrics"][metric]) for name, part in parts.items()}
                for metric in SHOWN
            },
        }
        return Evaluation(results, dice)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            "not an evaluation", path=path, found=f"{type(error).__name__}: {error}",
            expected="the metrics.json that `segpipe evaluate` writes",
        ) from error  # fmt: skip


def _figure(estimate: dict[str, Any]) -> dict[str, float | int | None]:
    def rounded(name: str) -> float | None:
        return None if estimate.get(name) is None else round(float(estimate[name]), 4)

    return {
        "value": rounded("mean"), "low": rounded("low"), "high": rounded("high"), "median": rounded("median"),
        "n": int(estimate["n"]),
    }  # fmt: skip
