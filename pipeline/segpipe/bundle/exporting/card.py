"""The model card ``docs/README.md``, for a reader who knows nothing of us: sections of Markdown in their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from segpipe.bundle.exporting.card_estimate import estimate_in_short
from segpipe.bundle.exporting.card_figures import CURVES, EXAMPLE
from segpipe.bundle.exporting.card_labels import label_map_words, output_in_short, result_files
from segpipe.bundle.exporting.card_results import best_figure, results_section
from segpipe.bundle.exporting.fine_tuned import initial_weights_in_words, parent_in_words
from segpipe.bundle.exporting.first_stage import first_stage_section
from segpipe.bundle.exporting.markdown import code, facts, picture, table
from segpipe.bundle.exporting.quality_model import quality_section
from segpipe.bundle.tensors import WEIGHTS

Document = Mapping[str, Any]
FILES = (
    ("docs/README.md", "this card; its pictures lie beside it"),
    ("configs/inference.json", "images in a folder to label maps, with MONAI alone"),
    ("configs/inference_fast.json", "the same labels in less time and memory, where segpipe is installed"),
    ("configs/evaluate.json", "Dice over labelled cases, with MONAI alone"),
    ("configs/train.json", "the training, as it was"),
    ("configs/metadata.json", "what this card says, for programs"),
    ("configs/manifest.json", "the cases of the data set, without the data; patients are numbers"),
    ("configs/quality.json", "what is known of usual cases, as plain numbers; MONAI ignores it"),
    ("first_stage/", "the first of two stages, a bundle of its own"),
    ("configs/first_stage.json", "images in a folder to the masks that the second stage reads, with MONAI alone"),
    (WEIGHTS, "the weights: a PyTorch state dict of plain tensors (`weights_only=True` loads it)"),
    ("golden/", "an input that may be passed on, with the expected output"),
    ("provenance.json", "data, split, settings, versions, machine and hashes of the training"),
    ("SHA256SUMS", "hash of every file"),
)


def model_card(metadata: Document, provenance: Document, pictures: Collection[str] = ()) -> str:
    """Return Markdown: what it is and for whom, results, how to run, input, training, limits, licence, checks.

    Args:
        metadata: ``configs/metadata.json``.
        provenance: ``provenance.json``.
        pictures: names of those that lie beside the card.
    """
    sections = [
        _head(metadata),
        _purpose(),
        results_section(metadata, provenance, pictures),
        *quality_section(metadata),
        _limits(metadata),
        _running(metadata),
        *first_stage_section(metadata),
        _input(metadata, pictures),
        _training(metadata, provenance, pictures),
        _checking(metadata),
        _licence(metadata),
        _files(metadata),
    ]
    return "\n\n".join(sections) + "\n"


def _head(metadata: Document) -> str:
    status = metadata["run"].get("status")
    warning = "" if status == "finished" else f"\n\n**The training did not finish ({status or 'not recorded'}).**"
    data, image = metadata["training_data"], metadata["network_data_format"]["inputs"]["image"]
    data_set = f"{data['name']} ({data['description'].rstrip('.')})" if data["description"] else data["name"]
    classes = metadata["label_classes"].removeprefix("0 is background; ")
    known = facts(
        "in short",
        reads=f"3D NIfTI volumes: {', '.join(image['channel_def'].values())}",
        gives=f"{output_in_short(metadata)} on the same grid: {classes}",
        measured=best_figure(metadata) or estimate_in_short(metadata) or "not on held-out cases",
        trained_on=f"{data['name']}, {data['training_cases'] or 'an unknown number of'} cases",
        needs="Python 3.10 or later and MONAI; no GPU",
        licence_of_the_weights=metadata["license"].removeprefix("see "),
    )
    return (
        f"# {metadata['name']} {metadata['version']}\n\n{metadata['description']} It was trained on the data set "
        f"{data_set}.\n\n**{metadata['intended_use']}**{warning}\n\n{known}\n\n"
        "This folder is a [MONAI bundle](https://docs.monai.io/en/stable/bundle_intro.html): a trained network, the "
        "configs that run it, and what is known of it. [MONAI](https://monai.io) alone runs it. The package segpipe, "
        "which wrote it, adds conveniences and checks."
    )


def _purpose() -> str:
    return (
        "## What it is for, and what not\n\nFor research and engineering: to study the method, to compare with, to "
        "pre-label data that a person then corrects, to build and test software with.\n\nNot for a diagnosis, a "
        "treatment or any other decision about a person: nobody has tested it for that, and no authority has "
        "cleared it."
    )


def _limits(metadata: Document) -> str:
    lines = [
        *metadata["limits"],
        "Scans unlike the training data (other scanner, protocol, field of view, anatomy, disease) were not measured: "
        "measure on labelled cases of your own before you rely on it.",
        "A label map is always returned, also for an image that does not show what it labels: look at each result.",
        "Left and right, and every distance, are believed as the file's header says them, in mm.",
        *(f"`{name}`: {reason}." for name, reason in metadata["exceptions"].items()),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _running(metadata: Document) -> str:
    """Write how to install, and the commands for MONAI and for segpipe."""
    name, commands = metadata["name"], metadata["commands"]
    packages = {"monai": metadata["monai_version"], **metadata["required_packages_version"]}
    install = " ".join(f"{package}=={version}" for package, version in packages.items())
    what, ending = ("case", "_0000") if _has_channels(metadata) else ("image", "")
    return (
        f"## How to run\n\nIn the folder that holds this one, which is called `{name}` here. `IMAGES` is a folder of "
        "NIfTI files, `OUT` one for the label maps, outside the bundle. With MONAI alone (whose "
        "command line needs the package `fire`):\n\n"
        f"{code(f'pip install {install}', commands['predict_stock'])}\n\n"
        f"Each {what} becomes `OUT/<name>{ending}_seg.nii.gz`. "
        "`--device cuda:0` runs on a GPU. An unreadable file ends the run, and an empty folder gives nothing but a "
        "warning.\n\n"
        "With segpipe, which goes on after a bad case, resumes, reads DICOM and measures volumes:\n\n"
        f"{code(commands['predict'])}\n\n"
        f"Made with PyTorch {metadata['pytorch_version']} and NumPy {metadata['numpy_version']}."
    )


def _input(metadata: Document, pictures: Collection[str]) -> str:
    """Write the channels, the labels with their codes, and how an image is prepared."""
    formats = metadata["network_data_format"]
    image, labels = formats["inputs"]["image"], formats["outputs"]["pred"]["channel_def"]
    units = metadata.get("units") or {}
    entries = [
        (index, name, *([units.get(index, "")] if units else [])) for index, name in image["channel_def"].items()
    ]
    channels = table(["channel", "image", *(["values in"] if units else [])], entries)
    regions = metadata["training_data"].get("regions")
    if regions:
        labels = {str(number): name for number, name in enumerate(labels.values(), 1)}
    labels = {"0": "background", "1": labels["0"]} if len(labels) == 1 and not regions else labels
    codes = {name: _code(entry) for name, entry in metadata["codes"].items()}
    rows = [(value, name, *([codes.get(name)] if codes else [])) for value, name in labels.items()]
    columns = [
        "number" if regions else "value",
        "region" if regions else "label",
        *(["meaning (SCT is SNOMED CT)"] if codes else []),
    ]
    ending = ", one file a channel, all on one grid, ending in `_0000.nii.gz`, `_0001.nii.gz` and so on"
    unit = ", in Hounsfield units" if image["format"] == "hounsfield" else ""
    size = " x ".join(map(str, image["spatial_shape"]))
    cleanup = "".join(f"Of {label}, {rule}.\n\n" for label, rule in metadata["postprocessing"].items())
    return (
        "## Input and output\n\n3D NIfTI volumes of any size, orientation and spacing "
        f"({image['modality']}{unit}){ending if _has_channels(metadata) else ''}:\n\n{channels}\n\n"
        f"{result_files(regions)}:\n\n{table(columns, rows)}\n\n{cleanup}"
        "Orientation, spacing and intensity are prepared as `deterministic_transforms` in `configs/inference.json` "
        f"says: nothing needs to be done before. The network sees windows of {size} voxels, put together with Gaussian "
        f"weights.{_example(metadata, pictures)}"
    )


def _has_channels(metadata: Document) -> bool:
    return bool(metadata["network_data_format"]["inputs"]["image"]["num_channels"] > 1)


def _code(entry: Document) -> str | None:
    """Return what a label means in DICOM, such as ``Liver (SCT 10200004)``."""
    modifiers = entry.get("modifier", [])
    several = modifiers if isinstance(modifiers, list) else [modifiers]
    terms = [*([entry["type"]] if "type" in entry else []), *several, *([entry["region"]] if "region" in entry else [])]
    return ", ".join(f"{term['meaning']} ({term['scheme']} {term['value']})" for term in terms) or None


def _example(metadata: Document, pictures: Collection[str]) -> str:
    """Show the golden case, and say why it is no picture of the model's quality."""
    if EXAMPLE not in pictures:
        return ""
    first = " Of its channels the first is drawn." if _has_channels(metadata) else ""
    words = "an image in three planes, and below it the same with the outlines of the labels"
    caption = (
        f"The case in `golden/`: input above, output below, the patient's right on the left.{first} Where the input "
        f"is from: {metadata['golden']['how']}. It shows the form of input and output, and nothing of the model's "
        "quality: it is there to see whether the bundle computes on another machine what it did on its author's."
    )
    return f"\n\n{picture(EXAMPLE, words, caption)}"


def _training(metadata: Document, provenance: Document, pictures: Collection[str]) -> str:
    """Write the data, network, cost, curves, and how much another seed changes."""
    data, run = metadata["training_data"], metadata["run"]
    hours = provenance["duration_seconds"] / 3600
    machine = (provenance.get("environment") or {}).get("hardware") or {}
    place = ", ".join(machine.get("gpus") or []) or machine.get("processor")
    members = len(metadata.get("members") or ())
    summed = f", the {members} trainings added up, also where they ran side by side" if members else ""
    net = str(provenance["config"]["network_def"]["_target_"]).rpartition(".")[2]
    cases = {part: data[f"{part}_cases"] for part in ("training", "validation", "test")}
    known = facts(
        "the training",
        data=data["name"],
        source=data["source"],
        licence_of_the_data=data["licence"],
        split=data["split_rule"],
        rule_for_patients=data["patient_rule"],
        cases=", ".join(f"{number} {part}" for part, number in cases.items() if number),
        voxels_seen=_voxels_seen(data),
        label_maps=label_map_words(data),
        network=f"{net} ({run['network']}), {provenance['weights']['parameters']:,} parameters{_each(metadata)}",
        members=_members(metadata),
        began_with=parent_in_words(metadata),
        loss=run["loss"],
        epochs=run["epochs"],
        seed=None if metadata.get("members") else run["seed"],
        threads=provenance["threads"],
        time=f"{hours:.1f} hours on {place}{summed}" if hours and place else None,
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


def _each(metadata: Document) -> str:
    return " in each member" if metadata.get("members") else ""


def _members(metadata: Document) -> str | None:
    """Name the members of an ensemble by what their trainings left out."""
    members = metadata.get("members")
    if not members:
        return None
    named = ", ".join(f"fold {member['fold']} left out (seed {member['seed']})" for member in members)
    return f"{len(members)}, whose probabilities are averaged: {named}"


def _voxels_seen(data: Document) -> str | None:
    """Return the edges of a voxel in the training cases."""
    seen = data.get("seen")
    if not seen:
        return None
    edges = [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in seen["spacing_ras_mm"]]
    return f"{' x '.join(edges)} mm"


def _spread(provenance: Document) -> str:
    seeds = provenance.get("seeds")
    if not seeds or seeds["val_mean_dice"]["sd"] is None:
        return ""
    dice = seeds["val_mean_dice"]
    epochs = {run["epochs"] for run in seeds["runs"] if run["status"] == "finished"}
    uneven = " The runs did not all have the same number of epochs." if len(epochs) > 1 else ""
    return (
        f"The same training with {dice['n']} seeds gave a best validation Dice of {dice['mean']:.3f} on average "
        f"(standard deviation {dice['sd']:.3f}, from {dice['min']:.3f} to {dice['max']:.3f}): a smaller difference "
        f"between two models may be chance.{uneven}"
    )


def _checking(metadata: Document) -> str:
    """Write how to check that the folder is intact and does what it did, to measure and to train again."""
    commands, members = metadata["commands"], metadata.get("members")
    needs = ", ".join(metadata["config_requirements"]["train.json"])
    replay = " and that it still gives for the case in `golden/` what it gave its author"
    again = code(commands["predict_again"], commands["evaluate"])
    parts = [
        "## Check and repeat",
        "Check that no file was changed, with what every system has:",
        code(commands["check"]),
        "With segpipe, before anything of the bundle runs, also that its configs run nothing else than they "
        f"should{replay if _has_golden(metadata) else ''}. Hashes show that nothing changed, never who made it:",
        code(commands["verify"]),
        "`DATA` is the folder that the paths in `configs/manifest.json` start from. Measure "
        f"Dice over its {metadata['evaluate_section']} cases with MONAI alone:",
        code(commands["evaluate_stock"]),
        *(["The whole table of results, with segpipe:", again] if metadata.get("results") else []),
        f"Train {'the first member ' if members else ''}again ({f'needs {needs}' if needs else 'MONAI is enough'}):",
        code(commands["train"]),
        "Train again with all that `provenance.json` records, and compare with these weights. On the same class of "
        "processor, with the same versions, they come out the same, bit for bit; elsewhere the difference is told:",
        code(commands["reproduce"]),
        *initial_weights_in_words(metadata),
    ]
    return "\n\n".join(parts)


def _has_golden(metadata: Document) -> bool:
    return bool((metadata.get("golden") or {}).get("voxels"))


def _licence(metadata: Document) -> str:
    by = "" if metadata["authors"] in (metadata["copyright"], "not stated") else f" Made by {metadata['authors']}."
    data = metadata["training_data"]
    of_data = f", licence {data['licence']} (`docs/data_license.txt`)" if data["licence"] else None
    cite = f" Whoever publishes with it cites: {'; '.join(metadata['references'])}." if metadata["references"] else ""
    weights = metadata["license"].removeprefix("see ")
    return (
        f"## Licence\n\nWeights and configs: {weights} (`LICENSE`).{by} The training data is not part of this folder; "
        f"it is that of {data['name']}{of_data or '; its licence is not stated'}.{cite}"
    )


def _files(metadata: Document) -> str:
    fast = "inference_fast.json" in metadata["config_requirements"]
    members = metadata.get("members") or []
    there = {"configs/inference_fast.json": fast, "golden/": _has_golden(metadata), WEIGHTS: not members}
    there |= dict.fromkeys(("first_stage/", "configs/first_stage.json"), bool(metadata.get("first_stage")))
    there["configs/quality.json"] = bool(metadata.get("quality"))
    rows = [(f"`{name}`", words) for name, words in FILES if there.get(name, True)]
    rows += [(f"`{each['file']}`", f"the weights of the member without fold {each['fold']}") for each in members]
    return "## What is in this folder\n\n" + table(["file", "what it is"], rows)
