"""The pieces of Markdown that a model card is made of.

What an evaluation found, in the few figures that a model card shows.

The pictures of a model card: the golden case, Dice of every measured case, learning curves. None is of a patient.

The parts of a model card that say how good the model is, and what it was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle.golden import IMAGES, LABELS
from segpipe.common.files import read_json
from segpipe.errors import DataError
from segpipe.reporting import dice_bars, example, learning_curves, write_bytes

WIDTH = 100


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a cell that is None is a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def facts(head: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A table of what is known, without what is not."""
    return table([head, ""], [row for row in rows if row[1] not in (None, "", [], {})])


def code(*commands: str) -> str:
    """A block of commands, one a line; a long one goes on in the next lines, an option each."""
    lines = [each if len(each) <= WIDTH else each.replace(" --", " \\\n    --") for each in commands]
    return "\n".join(["```", *lines, "```"])


def picture(name: str, words: str, caption: str) -> str:
    """A picture beside the card, and the sentence below it."""
    return f"![{words}]({name})\n\n*{caption}*"


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
                metric: {name: _estimate(part["metrics"][metric]) for name, part in parts.items()} for metric in SHOWN
            },
        }
        return Evaluation(results, dice)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            "not an evaluation",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="the metrics.json that `segpipe evaluate` writes",
        ) from error


def _estimate(estimate: dict[str, Any]) -> dict[str, float | int | None]:
    def rounded(name: str) -> float | None:
        return None if estimate.get(name) is None else round(float(estimate[name]), 4)

    return {
        "value": rounded("mean"),
        "low": rounded("low"),
        "high": rounded("high"),
        "median": rounded("median"),
        "n": int(estimate["n"]),
    }


EXAMPLE, BARS, CURVES = "example.png", "dice.png", "training.png"


def draw_pictures(
    root: Path,
    names: Mapping[int, str],
    dice: Mapping[str, float | None],
    histories: Mapping[str, Sequence[Mapping[str, str]]],
) -> list[str]:
    """Draw what there is into ``docs/`` of a bundle; the same content gives the same bytes.

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
        pictures[EXAMPLE] = _golden(root, names)
    if any(value is not None for value in dice.values()):
        pictures[BARS] = dice_bars({"Dice of each measured case": dice})
    if any(histories.values()):
        pictures[CURVES] = learning_curves(histories)
    for name, content in pictures.items():
        write_bytes(root / "docs" / name, content)
    return list(pictures)


def _golden(root: Path, names: Mapping[int, str]) -> bytes:
    """The first channel of the golden case, with what the bundle made of it."""
    import numpy as np

    image, spacing_mm = _towards_ras(min((root / IMAGES).glob("*.nii*")))
    labels, _ = _towards_ras(root / LABELS)
    channels = image.reshape(*image.shape[:3], -1)
    return example(channels[..., 0], np.asarray(labels), spacing_mm, names)


def _towards_ras(path: Path) -> tuple[Any, Sequence[float]]:
    """Voxels with axes towards right, front and head, and the edges of a voxel in mm."""
    import nibabel as nib
    import numpy as np

    turned = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined, unused-ignore]
    spacing_mm = nib.affines.voxel_sizes(turned.affine)  # type: ignore[attr-defined, unused-ignore]
    return np.asarray(turned.dataobj), [float(edge) for edge in spacing_mm]


NAMES = {"dice": "Dice", "nsd": "surface Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "surface distance (mm)"}
DIGITS = {"dice": 3, "nsd": 3, "hd95_mm": 2, "assd_mm": 2}
MEANING = (
    "Dice is the overlap of prediction and truth, 1 at best. Surface Dice is the share of both surfaces that lie "
    "within {tolerance} mm of each other, 1 at best. HD95 is the 95th percentile of the distances between the "
    "surfaces, surface distance their mean: 0 at best."
)
KINDS = {
    "test": "held out of the training",
    "validation": "validation: they chose the weights, so the figures are a little too good",
    "training": "the training cases themselves: no measure of quality on new ones",
}


def best_figure(metadata: Mapping[str, Any]) -> str | None:
    """The mean Dice with its interval and cases, in a few words; None where nothing was measured."""
    results = metadata.get("results")
    if not results:
        return None
    entry = results["metrics"].get("dice", {}).get(OVERALL, {})
    return f"Dice (overlap, 1 at best) {_figure(entry)} on {results['cases']} cases ({_split(metadata, short=True)})"


def results_section(metadata: Mapping[str, Any], pictures: Collection[str]) -> str:
    """Figures with intervals, on which data, and each case as a bar."""
    results = metadata.get("results")
    best = metadata["eval_metrics"].get("val_mean_dice")
    chosen = (
        ""
        if best is None
        else "The weights are those of the epoch with the best mean Dice over the validation cases, "
        f"{best:.3f}; as a choice it is a little too good, and no result on new cases."
    )
    if not results:
        return f"## Results\n\nNot measured on held-out cases. {chosen}".rstrip()
    rows = [
        (NAMES[metric], label, _figure(entry, DIGITS[metric]), _number(entry["median"], DIGITS[metric]), entry["n"])
        for metric, labels in results["metrics"].items()
        for label, entry in labels.items()
    ]
    lost = results["missing"] + results["failed"]
    failed = f"{lost} failed and count as Dice 0" if lost else "None of them failed"
    parts = [
        f"Measured on {results['cases']} cases of {results['patients']} patients ({_split(metadata)}). "
        f"{failed}. Means over cases; in brackets {results['interval']}.",
        table(["measure", "label", "mean", "median", "cases"], rows),
        MEANING.format(tolerance=results["tolerance_mm"]),
    ]
    if BARS in pictures:
        words = "Dice of every measured case as a bar, with the mean in red and the median in green"
        caption = "Each bar is a case, from the worst to the best; mean over its labels. Red: mean, green: median."
        parts.append(picture(BARS, words, caption))
    return "\n\n".join(["## Results", *parts, chosen]).rstrip()


def training_section(metadata: Mapping[str, Any], provenance: Mapping[str, Any], pictures: Collection[str]) -> str:
    """Data, network, cost, curves, and how much another seed changes."""
    data, run = metadata["training_data"], metadata["run"]
    hours = provenance["duration_seconds"] / 3600
    machine = (provenance.get("environment") or {}).get("hardware") or {}
    place = ", ".join(machine.get("gpus") or []) or machine.get("processor")
    net = str(provenance["config"]["network_def"]["_target_"]).rpartition(".")[2]
    known = facts(
        "the training",
        [
            ("data", data["name"]),
            ("source", data["source"]),
            ("licence of the data", data["licence"]),
            ("split", data["split_rule"]),
            ("rule for patients", data["patient_rule"]),
            (
                "cases",
                ", ".join(
                    f"{data[f'{part}_cases']} {part}"
                    for part in ("training", "validation", "test")
                    if data[f"{part}_cases"]
                ),
            ),
            ("voxels seen", _seen(data)),
            ("network", f"{net} ({run['network']}), {provenance['weights']['parameters']:,} parameters"),
            ("loss", run["loss"]),
            ("epochs", run["epochs"]),
            ("seed", run["seed"]),
            ("threads", provenance["threads"]),
            ("time", f"{hours:.1f} hours on {place}" if hours and place else None),
        ],
    )
    parts = ["## Training", known]
    if CURVES in pictures:
        words = "learning curves: loss and validation Dice over the epochs"
        caption = (
            "Loss on the training cases and Dice on the validation cases over the epochs; the dot is the epoch "
            "whose weights are here."
        )
        parts.append(picture(CURVES, words, caption))
    return "\n\n".join([*parts, _spread(provenance)]).rstrip()


def _spread(provenance: Mapping[str, Any]) -> str:
    seeds = provenance.get("seeds")
    if not seeds or seeds["val_mean_dice"]["sd"] is None:
        return ""
    found = seeds["val_mean_dice"]
    epochs = {run["epochs"] for run in seeds["runs"] if run["status"] == "finished"}
    uneven = " The runs did not all have the same number of epochs." if len(epochs) > 1 else ""
    return (
        f"The same training with {found['n']} seeds gave a best validation Dice of {found['mean']:.3f} on average "
        f"(standard deviation {found['sd']:.3f}, from {found['min']:.3f} to {found['max']:.3f}): a smaller difference "
        f"between two models may be chance.{uneven}"
    )


def _seen(data: Mapping[str, Any]) -> str | None:
    """Edges of a voxel in the training cases."""
    seen = data.get("seen")
    if not seen:
        return None
    edges = [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in seen["spacing_ras_mm"]]
    return f"{' x '.join(edges)} mm"


def _split(metadata: Mapping[str, Any], short: bool = False) -> str:
    results = metadata["results"]
    trained = metadata["run"].get("manifest_sha256")
    words = KINDS.get(str(results["split"]), str(results["split"]))
    if trained and results["manifest_sha256"] != trained:
        name = results.get("dataset")
        return f"{results['split']} cases of another manifest than that of the training: {name or 'unnamed'}"
    return words.partition(":")[0] if short else words


def _figure(entry: Mapping[str, Any], digits: int = 3) -> str:
    low, high = (_number(entry.get(name), digits) for name in ("low", "high"))
    bounds = "" if low is None or high is None else f" [{low}, {high}]"
    return f"{_number(entry.get('value'), digits) or '-'}{bounds}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
