"""The model card ``docs/README.md``, written from a bundle's metadata alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAMES = {"dice": "Dice", "nsd": "surface Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "surface distance (mm)"}


def model_card(metadata: Mapping[str, Any]) -> str:
    """Markdown: what it does, input, labels, results with intervals, data, how to run, limits."""
    sections = [
        f"# {metadata['name']} {metadata['version']}\n\n{metadata['task']}. {metadata['description']}\n\n"
        f"**{metadata['intended_use']}**",
        _input(metadata),
        _results(metadata),
        _training(metadata),
        _commands(metadata["commands"], metadata["config_requirements"]),
        _limits(metadata),
        _licence(metadata),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _input(metadata: Mapping[str, Any]) -> str:
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    channels = _table(["channel", "image"], image["channel_def"].items())
    labels = pred["channel_def"]
    labels = {"0": "background", "1": labels["0"]} if len(labels) == 1 else labels
    ending = ", ending in `_0000.nii.gz`, `_0001.nii.gz` and so on" if image["num_channels"] > 1 else ""
    size = " x ".join(map(str, image["spatial_shape"]))
    return (
        f"## Input and output\n\nNIfTI volumes of any size and orientation ({image['modality']}, {image['format']}), "
        f"one file a channel{ending}:\n\n{channels}\n\n"
        "Label maps are uint8 NIfTI files on the grid of the input:\n\n"
        f"{_table(['value', 'label'], labels.items())}\n\n"
        f"Windows of {size} voxels are put together with Gaussian weights; orientation, spacing and intensity are "
        "prepared as `deterministic_transforms` in `configs/inference.json` says."
    )


def _results(metadata: Mapping[str, Any]) -> str:
    results = metadata.get("results")
    if not results:
        value = metadata["eval_metrics"].get("val_mean_dice")
        known = (
            f" The best mean Dice over its validation cases while it trained was {value:.3f}."
            if value
            else ""
        )
        return f"## Results\n\nNot measured on held-out cases.{known}"
    rows = [
        (NAMES.get(metric, metric), label, _figure(entry), entry.get("n"))
        for metric, labels in results["metrics"].items()
        for label, entry in labels.items()
    ]
    lost = results["missing"] + results["failed"]
    return (
        f"## Results\n\nMeasured with `segpipe evaluate` on {results['cases']} cases of {results['patients']} patients "
        f"({results['split']}), of which {lost} failed and count as Dice 0. Means over cases; in brackets "
        f"{results['interval']}. Surface Dice at {results['tolerance_mm']} mm.\n\n"
        + _table(["measure", "label", "mean", "cases"], rows)
    )


def _figure(entry: Mapping[str, Any]) -> str:
    if entry.get("value") is None:
        return "-"
    low, high = entry.get("low"), entry.get("high")
    bounds = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{entry['value']:.3f}{bounds}"


def _training(metadata: Mapping[str, Any]) -> str:
    data, run = metadata["training_data"], metadata["run"]
    rows = [
        ("data", data["name"]), ("description", data["description"]), ("source", data["source"]),
        ("licence of the data", data["licence"]), ("split", data["split_rule"]), ("patients", data["patient_rule"]),
        ("cases", ", ".join(f"{data[f'{part}_cases']} {part}" for part in ("training", "validation", "test")
                            if data[f"{part}_cases"])),
        ("network, loss", f"{run['network']}, {run['loss']}"), ("epochs, seed", f"{run['epochs']}, {run['seed']}"),
        ("reference", "; ".join(metadata["references"])),
    ]  # fmt: skip
    return "## Training\n\n" + _table(["what", "value"], [row for row in rows if row[1]])


def _commands(commands: Mapping[str, str], requirements: Mapping[str, list[str]]) -> str:
    needs = "; ".join(
        f"`{name}` needs {', '.join(packages)}" for name, packages in requirements.items() if packages
    )
    return (
        "## How to run\n\nFrom the folder that holds this bundle, with stock MONAI (`--device cuda:0` for a GPU):\n\n"
        f"```\n{commands['predict_stock']}\n```\n\nWith segpipe, which goes on after a bad case and resumes:\n\n"
        f"```\n{commands['predict']}\n```\n\nMeasure Dice again, train again, and check that nothing was changed:\n\n"
        f"```\n{commands['evaluate_stock']}\n{commands['train']}\n{commands['check']}\n```\n\n"
        + (f"{needs}. The others need MONAI alone." if needs else "")
    )


def _limits(metadata: Mapping[str, Any]) -> str:
    lines = [
        "Scans unlike the training data (other scanner, protocol, anatomy or disease) were not measured.",
        "A label map is always returned, also for an image that does not show the organ.",
        *(f"`{name}`: {reason}." for name, reason in metadata["exceptions"].items()),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(metadata: Mapping[str, Any]) -> str:
    by = "" if metadata["authors"] == metadata["copyright"] else f" {metadata['copyright']}."
    return f"## Licence\n\nWeights and configs: {metadata['license'].removeprefix('see ')} (`LICENSE`).{by}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
