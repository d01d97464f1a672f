"""What a model card shows of an evaluation: the few figures, and the pictures. None of these is of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle.golden import IMAGES, LABELS
from segpipe.common.files import read_json, write_bytes
from segpipe.errors import DataError
from segpipe.reporting import dice_bars, example_figure, learning_curves

METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
OVERALL = "mean of labels"
EXAMPLE, BARS, CURVES = "example.png", "dice.png", "training.png"


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
    """Read the few figures of a ``metrics.json`` that a model card shows.

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
        results = {
            "dataset": document.get("dataset"),
            "split": document["split"],
            "fold": document.get("fold"),
            **{name: counts[name] for name in ("cases", "patients", "missing", "failed")},
            "interval": f"the {bootstrap['level']:.0%} bootstrap interval over {bootstrap['unit']}s",
            "tolerance_mm": document["tolerance_mm"],
            "manifest_sha256": document["manifest_sha256"],
            "metrics": {
                metric: {name: _estimate(part["metrics"][metric]) for name, part in parts.items()} for metric in METRICS
            },
        }
        return Evaluation(results, {str(case["id"]): case["mean_dice"] for case in document.get("cases", ())})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            "not an evaluation",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="the metrics.json that `segpipe evaluate` writes",
        ) from error


def _estimate(estimate: Mapping[str, Any]) -> dict[str, float | int | None]:
    named = {"value": "mean", "low": "low", "high": "high", "median": "median"}
    figures = {to: None if estimate.get(name) is None else float(estimate[name]) for to, name in named.items()}
    rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
    return {**rounded, "n": int(estimate["n"])}


def draw_pictures(
    root: Path,
    names: Mapping[int, str],
    dice: Mapping[str, float | None],
    histories: Mapping[str, Sequence[Mapping[str, str]]],
) -> list[str]:
    """Draw the golden case, Dice of every measured case, and learning curves into ``docs/`` of a bundle.

    The same content gives the same bytes.

    Args:
        root: the bundle, with its golden case where it has one.
        names: value to name of each label, without background.
        dice: case id to mean Dice of an evaluation; empty where nothing was measured.
        histories: name of a run to the rows of its history.csv.

    Returns:
        Names of the pictures.

    Raises:
        UsageError: they cannot be written.
    """
    pictures: dict[str, bytes] = {}
    if (root / LABELS).is_file():
        pictures[EXAMPLE] = _draw_golden(root, names)
    if any(value is not None for value in dice.values()):
        pictures[BARS] = dice_bars({"Dice of each measured case": dice})
    if any(histories.values()):
        pictures[CURVES] = learning_curves(histories)
    for name, content in pictures.items():
        write_bytes(root / "docs" / name, content)
    return list(pictures)


def _draw_golden(root: Path, names: Mapping[int, str]) -> bytes:
    """Draw the first channel of the golden case, with what the bundle made of it."""
    import numpy as np

    image, spacing_mm = _read_towards_ras(min((root / IMAGES).glob("*.nii*")))
    labels, _ = _read_towards_ras(root / LABELS)
    channels = image.reshape(*image.shape[:3], -1)
    return example_figure(channels[..., 0], np.asarray(labels), spacing_mm, names)


def _read_towards_ras(path: Path) -> tuple[Any, Sequence[float]]:
    """Read voxels with axes towards right, front and head, and the edges of a voxel in mm."""
    import nibabel as nib
    import numpy as np

    turned = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined, unused-ignore]
    spacing_mm = nib.affines.voxel_sizes(turned.affine)  # type: ignore[attr-defined, unused-ignore]
    return np.asarray(turned.dataobj), [float(edge) for edge in spacing_mm]
