"""The parts of a model card that say how to run the model, what goes in and out, and how to check and repeat it.

The model card ``docs/README.md``, for a reader who knows nothing of us.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from segpipe.bundle.exporting.card_results import (
    EXAMPLE,
    best_figure,
    code,
    facts,
    picture,
    results_section,
    table,
    training_section,
)

FILES = (
    ("docs/README.md", "this card; its pictures lie beside it"),
    ("configs/inference.json", "images in a folder to label maps, with MONAI alone"),
    ("configs/inference_fast.json", "the same labels in less time and memory, where segpipe is installed"),
    ("configs/evaluate.json", "Dice over labelled cases, with MONAI alone"),
    ("configs/train.json", "the training, as it was"),
    ("configs/metadata.json", "what this card says, for programs"),
    ("configs/manifest.json", "the cases of the data set, without the data; patients are numbers"),
    ("models/model.pt", "the weights: a PyTorch state dict of plain tensors (`weights_only=True` loads it)"),
    ("golden/", "an input that may be passed on, with the expected output"),
    ("provenance.json", "data, split, settings, versions, machine and hashes of the training"),
    ("SHA256SUMS", "hash of every file"),
)


def running_section(metadata: Mapping[str, Any]) -> str:
    """Installation and the commands for MONAI and for segpipe."""
    name, commands = metadata["name"], metadata["commands"]
    packages = {"monai": metadata["monai_version"], **metadata["required_packages_version"]}
    install = " ".join(f"{package}=={version}" for package, version in packages.items())
    several = metadata["network_data_format"]["inputs"]["image"]["num_channels"] > 1
    return (
        f"## How to run\n\nIn the folder that holds this one, which is called `{name}` here. `IMAGES` is a folder of "
        "NIfTI files, `OUT` one for the label maps, outside the bundle. With MONAI alone (whose "
        "command line needs the package `fire`):\n\n"
        f"{code(f'pip install {install}', commands['predict_stock'])}\n\n"
        f"Each {'case' if several else 'image'} becomes `OUT/<name>{'_0000' if several else ''}_seg.nii.gz`. "
        "`--device cuda:0` runs on a GPU. An unreadable file ends the run, and an empty folder gives nothing but a "
        "warning.\n\n"
        "With segpipe, which goes on after a bad case, resumes, reads DICOM and measures volumes:\n\n"
        f"{code(commands['predict'])}\n\n"
        f"Made with PyTorch {metadata['pytorch_version']} and NumPy {metadata['numpy_version']}."
    )


def input_section(metadata: Mapping[str, Any], pictures: Collection[str]) -> str:
    """Channels, labels with their codes, and how an image is prepared."""
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    channels = table(["channel", "image"], image["channel_def"].items())
    labels = pred["channel_def"]
    labels = {"0": "background", "1": labels["0"]} if len(labels) == 1 else labels
    codes = {name: _code(entry) for name, entry in metadata["codes"].items()}
    rows = [(value, name, *([codes.get(name)] if codes else [])) for value, name in labels.items()]
    columns = ["value", "label", "meaning (SCT is SNOMED CT)"] if codes else ["value", "label"]
    ending = ", one file a channel, ending in `_0000.nii.gz`, `_0001.nii.gz` and so on"
    unit = ", in Hounsfield units" if image["format"] == "hounsfield" else ""
    size = " x ".join(map(str, image["spatial_shape"]))
    return (
        "## Input and output\n\n3D NIfTI volumes of any size, orientation and spacing "
        f"({image['modality']}{unit}){ending if image['num_channels'] > 1 else ''}:\n\n{channels}\n\n"
        "Label maps are uint8 NIfTI files on the grid of the input:\n\n"
        f"{table(columns, rows)}\n\n{_cleanup(metadata)}"
        "Orientation, spacing and intensity are prepared as `deterministic_transforms` in `configs/inference.json` "
        f"says: nothing needs to be done before. The network sees windows of {size} voxels, put together with Gaussian "
        f"weights.{_example(metadata, pictures)}"
    )


def _example(metadata: Mapping[str, Any], pictures: Collection[str]) -> str:
    """The golden case, and why it is no picture of the model's quality."""
    if EXAMPLE not in pictures:
        return ""
    several = metadata["network_data_format"]["inputs"]["image"]["num_channels"] > 1
    shown = " Of its channels the first is drawn." if several else ""
    words = "an image in three planes, and below it the same with the outlines of the labels"
    caption = (
        f"The case in `golden/`: input above, output below, the patient's right on the left.{shown} Where the input "
        f"is from: {metadata['golden']['how']}. It shows the form of input and output, and nothing of the model's "
        "quality: it is there to see whether the bundle computes on another machine what it did on its author's."
    )
    return f"\n\n{picture(EXAMPLE, words, caption)}"


def checking_section(metadata: Mapping[str, Any]) -> str:
    """Whether the folder is intact and does what it did; how to measure and to train again."""
    commands = metadata["commands"]
    needs = ", ".join(metadata["config_requirements"]["train.json"])
    golden = (metadata.get("golden") or {}).get("voxels")
    replay = " and that it still gives for the case in `golden/` what it gave its author" if golden else ""
    parts = [
        "## Check and repeat",
        "Check that no file was changed, with what every system has:",
        code(commands["check"]),
        "With segpipe, before anything of the bundle runs, also that its configs run nothing else than they "
        f"should{replay}. Hashes show that nothing changed, never who made it:",
        code(commands["verify"]),
        "`DATA` is the folder that the paths in `configs/manifest.json` start from. Measure "
        f"Dice over its {metadata['evaluate_section']} cases with MONAI alone:",
        code(commands["evaluate_stock"]),
    ]
    if metadata.get("results"):
        parts += ["The whole table of results, with segpipe:", code(commands["predict_again"], commands["evaluate"])]
    parts += [
        f"Train again ({f'needs {needs}' if needs else 'MONAI is enough'}):",
        code(commands["train"]),
        "Train again with all that `provenance.json` records, and compare with these weights. On the same class of "
        "processor, with the same versions, they come out the same, bit for bit; elsewhere the difference is told:",
        code(commands["reproduce"]),
    ]
    return "\n\n".join(parts)


def files_section(metadata: Mapping[str, Any]) -> str:
    """What lies where."""
    absent = set() if "inference_fast.json" in metadata["config_requirements"] else {"configs/inference_fast.json"}
    if not (metadata.get("golden") or {}).get("voxels"):
        absent.add("golden/")
    return "## What is in this folder\n\n" + table(
        ["file", "what it is"], [(f"`{name}`", words) for name, words in FILES if name not in absent]
    )


def _code(entry: Mapping[str, Any]) -> str | None:
    """What a label means in DICOM, such as ``Liver (SCT 10200004)``."""
    terms = [entry[key] for key in ("type", "modifier", "region") if key in entry]
    return ", ".join(f"{term['meaning']} ({term['scheme']} {term['value']})" for term in terms) or None


def _cleanup(metadata: Mapping[str, Any]) -> str:
    rules = metadata["postprocessing"]
    return "".join(f"Of {label}, {rule}.\n\n" for label, rule in rules.items())


def model_card(metadata: Mapping[str, Any], provenance: Mapping[str, Any], pictures: Collection[str] = ()) -> str:
    """Markdown: what it is and for whom, results, how to run, input, training, limits, licence, how to check it.

    Args:
        metadata: ``configs/metadata.json``.
        provenance: ``provenance.json``.
        pictures: names of those that lie beside the card.
    """
    sections = [
        _head(metadata),
        _purpose(),
        results_section(metadata, pictures),
        _limits(metadata),
        running_section(metadata),
        input_section(metadata, pictures),
        training_section(metadata, provenance, pictures),
        checking_section(metadata),
        _licence(metadata),
        files_section(metadata),
    ]
    return "\n\n".join(sections) + "\n"


def _head(metadata: Mapping[str, Any]) -> str:
    status = metadata["run"].get("status")
    warning = "" if status == "finished" else f"\n\n**The training did not finish ({status or 'not recorded'}).**"
    data, image = metadata["training_data"], metadata["network_data_format"]["inputs"]["image"]
    channels = ", ".join(image["channel_def"].values())
    key_facts = facts(
        "in short",
        [
            ("reads", f"3D NIfTI volumes: {channels}"),
            ("gives", f"a label map on the same grid: {metadata['label_classes'].removeprefix('0 is background; ')}"),
            ("measured", best_figure(metadata) or "not on held-out cases"),
            ("trained on", f"{data['name']}, {data['training_cases'] or 'an unknown number of'} cases"),
            ("needs", "Python 3.10 or later and MONAI; no GPU"),
            ("licence of the weights", metadata["license"].removeprefix("see ")),
        ],
    )
    return (
        f"# {metadata['name']} {metadata['version']}\n\n{metadata['description']}{_about(data)}\n\n"
        f"**{metadata['intended_use']}**{warning}\n\n{key_facts}\n\n"
        "This folder is a [MONAI bundle](https://docs.monai.io/en/stable/bundle_intro.html): a trained network, the "
        "configs that run it, and what is known of it. [MONAI](https://monai.io) alone runs it. The package segpipe, "
        "which wrote it, adds conveniences and checks."
    )


def _about(data: Mapping[str, Any]) -> str:
    what = f"{data['name']} ({data['description'].rstrip('.')})" if data["description"] else data["name"]
    return f" It was trained on the data set {what}."


def _purpose() -> str:
    return (
        "## What it is for, and what not\n\nFor research and engineering: to study the method, to compare with, to "
        "pre-label data that a person then corrects, to build and test software with.\n\nNot for a diagnosis, a "
        "treatment or any other decision about a person: nobody has tested it for that, and no authority has "
        "cleared it."
    )


def _limits(metadata: Mapping[str, Any]) -> str:
    lines = [
        *metadata["limits"],
        "Scans unlike the training data (other scanner, protocol, field of view, anatomy, disease) were not measured: "
        "measure on labelled cases of your own before you rely on it.",
        "A label map is always returned, also for an image that does not show what it labels: look at each result.",
        "Left and right, and every distance, are believed as the file's header says them, in mm.",
        *(f"`{name}`: {reason}." for name, reason in metadata["exceptions"].items()),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(metadata: Mapping[str, Any]) -> str:
    by = "" if metadata["authors"] in (metadata["copyright"], "not stated") else f" Made by {metadata['authors']}."
    data = metadata["training_data"]
    of_data = f" The training data is not part of this folder; it is that of {data['name']}"
    of_data += (
        f", licence {data['licence']} (`docs/data_license.txt`)." if data["licence"] else "; its licence is not stated."
    )
    cite = f" Whoever publishes with it cites: {'; '.join(metadata['references'])}." if metadata["references"] else ""
    weights = metadata["license"].removeprefix("see ")
    return f"## Licence\n\nWeights and configs: {weights} (`LICENSE`).{by}{of_data}{cite}"
