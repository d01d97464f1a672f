"""The model card ``docs/README.md``, written from a bundle's metadata alone, for a reader who knows nothing of us."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAMES = {"dice": "Dice", "nsd": "surface Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "surface distance (mm)"}
MEANING = (
    "Dice is the overlap of prediction and truth, 1 at best. Surface Dice is the share of both surfaces that lie "
    "within {tolerance} mm of each other, 1 at best. HD95 is the 95th percentile of the distances between the "
    "surfaces, surface distance their mean: 0 at best."
)


def model_card(metadata: Mapping[str, Any]) -> str:
    """Markdown: what it is and for whom, results with intervals, how to run, input, training, limits, licence."""
    sections = [
        _head(metadata),
        _results(metadata),
        _how_to_run(metadata),
        _input(metadata),
        _training(metadata),
        _limits(metadata),
        _repeat(metadata),
        _licence(metadata),
    ]
    return "\n\n".join(sections) + "\n"


def _head(metadata: Mapping[str, Any]) -> str:
    status = metadata["run"].get("status")
    data = metadata["training_data"]
    trained = f"{data['name']}: {data['description']}" if data["description"] else data["name"]
    warning = (
        "" if status == "finished" else f"\n\n**The training did not finish ({status or 'not recorded'}).**"
    )
    return (
        f"# {metadata['name']} {metadata['version']}\n\n{metadata['description']} Trained on {trained}. This is a "
        "[MONAI bundle](https://docs.monai.io/en/stable/bundle_intro.html): a folder with the trained network, the "
        f"configs that run it, and what is known of it.\n\n**{metadata['intended_use']}**{warning}"
    )


def _results(metadata: Mapping[str, Any]) -> str:
    results = metadata.get("results")
    best = metadata["eval_metrics"].get("val_mean_dice")
    chosen = (
        "" if best is None else "The weights are those of the epoch with the best mean Dice over the validation cases, "
        f"{best:.3f}; as a choice it is a little too good, and no result on new cases."
    )  # fmt: skip
    if not results:
        return f"## Results\n\nNot measured on held-out cases. {chosen}".rstrip()
    rows = [
        (NAMES.get(metric, metric), label, _figure(entry), entry.get("n"))
        for metric, labels in results["metrics"].items()
        for label, entry in labels.items()
    ]
    lost = results["missing"] + results["failed"]
    return (
        f"## Results\n\nMeasured on {results['cases']} cases of {results['patients']} patients ({_split(results)}). "
        f"{lost} failed and count as Dice 0. Means over cases; in brackets {results['interval']}.\n\n"
        f"{_table(['measure', 'label', 'mean', 'cases'], rows)}\n\n"
        f"{MEANING.format(tolerance=results['tolerance_mm'])}\n\n{chosen}".rstrip()
    )


def _split(results: Mapping[str, Any]) -> str:
    kinds = {
        "test": "held out of the training",
        "validation": "validation: they chose the weights, so the figures are a little too good",
        "training": "the training cases themselves: no measure of quality on new ones",
    }
    return kinds.get(str(results["split"]), str(results["split"]))


def _figure(entry: Mapping[str, Any]) -> str:
    if entry.get("value") is None:
        return "-"
    low, high = entry.get("low"), entry.get("high")
    bounds = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{entry['value']:.3f}{bounds}"


def _how_to_run(metadata: Mapping[str, Any]) -> str:
    name, commands = metadata["name"], metadata["commands"]
    packages = {"monai": metadata["monai_version"], **metadata["required_packages_version"]}
    install = " ".join(f"{package}=={version}" for package, version in packages.items())
    several = metadata["network_data_format"]["inputs"]["image"]["num_channels"] > 1
    return (
        f"## How to run\n\nIn the folder that holds this one, which is called `{name}` here. `IMAGES` is a folder of "
        "NIfTI files, `OUT` one for the label maps, outside the bundle. Stock MONAI is enough (with `fire`, as in "
        '`pip install "monai[fire]"`, without which `python -m monai.bundle` does not start):\n\n'
        f"```\npip install {install}\n{commands['predict_stock']}\n```\n\n"
        f"Each {'case' if several else 'image'} becomes `OUT/<name>{'_0000' if several else ''}_seg.nii.gz`. "
        "`--device cuda:0` runs on a GPU. "
        "An unreadable file ends the run, and an empty folder gives nothing but a warning.\n\n"
        "With the package segpipe, which goes on after a bad case, resumes, and measures volumes:\n\n"
        f"```\n{commands['predict']}\n```"
    )


def _input(metadata: Mapping[str, Any]) -> str:
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    channels = _table(["channel", "image"], image["channel_def"].items())
    labels = pred["channel_def"]
    labels = {"0": "background", "1": labels["0"]} if len(labels) == 1 else labels
    ending = ", one file a channel, ending in `_0000.nii.gz`, `_0001.nii.gz` and so on"
    size = " x ".join(map(str, image["spatial_shape"]))
    return (
        "## Input and output\n\n3D NIfTI volumes of any size, orientation and spacing "
        f"({image['modality']}, {image['format']}){ending if image['num_channels'] > 1 else ''}:\n\n{channels}\n\n"
        "Label maps are uint8 NIfTI files on the grid of the input:\n\n"
        f"{_table(['value', 'label'], labels.items())}\n\n{_cleanup(metadata)}"
        "Orientation, spacing and intensity are prepared as `deterministic_transforms` in `configs/inference.json` "
        f"says. The network sees windows of {size} voxels, put together with Gaussian weights."
    )


def _cleanup(metadata: Mapping[str, Any]) -> str:
    rules = metadata["postprocessing"]
    return "".join(f"Of {label}, {rule}.\n\n" for label, rule in rules.items())


def _training(metadata: Mapping[str, Any]) -> str:
    data, run = metadata["training_data"], metadata["run"]
    rows = [
        ("data", data["name"]), ("description", data["description"]), ("source", data["source"]),
        ("licence of the data", data["licence"]), ("split", data["split_rule"]), ("patients", data["patient_rule"]),
        ("cases", ", ".join(f"{data[f'{part}_cases']} {part}" for part in ("training", "validation", "test")
                            if data[f"{part}_cases"])),
        ("network", run["network"]), ("loss", run["loss"]), ("epochs", run["epochs"]), ("seed", run["seed"]),
        ("reference", "; ".join(metadata["references"])),
    ]  # fmt: skip
    return "## Training\n\n" + _table(["what", "value"], [row for row in rows if row[1] not in (None, "")])


def _limits(metadata: Mapping[str, Any]) -> str:
    lines = [
        *metadata["limits"],
        "Scans unlike the training data (other scanner, protocol, field of view, anatomy, disease) were not measured.",
        "A label map is always returned, also for an image that does not show the organ.",
        "Left and right, and every distance, are believed as the file's header says them, in mm.",
        *(f"`{name}`: {reason}." for name, reason in metadata["exceptions"].items()),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _repeat(metadata: Mapping[str, Any]) -> str:
    commands = metadata["commands"]
    needs = "; ".join(
        f"`{name}` needs {', '.join(packages)}"
        for name, packages in metadata["config_requirements"].items()
        if packages
    )
    ours = ""
    if metadata.get("results"):
        lines = f"{commands['predict_again']}\n{commands['evaluate']}"
        ours = f"The whole table of results, with segpipe:\n\n```\n{lines}\n```\n\n"
    return (
        "## Repeat and check\n\n`DATA` is the folder that the paths in `configs/manifest.json` start from. Measure "
        f"Dice over its {metadata['evaluate_section']} cases in stock MONAI:\n\n"
        f"```\n{commands['evaluate_stock']}\n```\n\n"
        f"{ours}Train again ({needs or 'MONAI is enough'}):\n\n```\n{commands['train']}\n```\n\n"
        f"Check that nothing was changed:\n\n```\n{commands['check']}\n```"
    )


def _licence(metadata: Mapping[str, Any]) -> str:
    by = "" if metadata["authors"] == metadata["copyright"] else f" {metadata['copyright']}."
    data = metadata["training_data"]["licence"]
    of_data = (
        f" The training data is not part of it; its licence is {data} (`docs/data_license.txt`)."
        if data
        else ""
    )
    return f"## Licence\n\nWeights and configs: {metadata['license'].removeprefix('see ')} (`LICENSE`).{by}{of_data}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
