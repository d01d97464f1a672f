"""The model card ``docs/README.md``, for a reader who knows nothing of us."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.bundle.card_results import best_figure, results_section, training_section
from pipeline.bundle.card_use import checking_section, files_section, input_section, running_section
from pipeline.bundle.markdown import facts


def model_card(
    metadata: Mapping[str, Any], provenance: Mapping[str, Any], pictures: Collection[str] = ()
) -> str:
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
    warning = (
        "" if status == "finished" else f"\n\n**The training did not finish ({status or 'not recorded'}).**"
    )
    data, image = metadata["training_data"], metadata["network_data_format"]["inputs"]["image"]
    channels = ", ".join(image["channel_def"].values())
    glance = facts("in short", [
        ("reads", f"3D NIfTI volumes: {channels}"),
        ("gives", f"a label map on the same grid: {metadata['label_classes'].removeprefix('0 is background; ')}"),
        ("measured", best_figure(metadata) or "not on held-out cases"),
        ("trained on", f"{data['name']}, {data['training_cases'] or 'an unknown number of'} cases"),
        ("needs", "Python 3.10 or later and MONAI; no GPU"),
        ("licence of the weights", metadata["license"].removeprefix("see ")),
    ])  # fmt: skip
    return (
        f"# {metadata['name']} {metadata['version']}\n\n{metadata['description']}{_about(data)}\n\n"
        f"**{metadata['intended_use']}**{warning}\n\n{glance}\n\n"
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
    by = (
        ""
        if metadata["authors"] in (metadata["copyright"], "not stated")
        else f" Made by {metadata['authors']}."
    )
    data = metadata["training_data"]
    of_data = f" The training data is not part of this folder; it is that of {data['name']}"
    of_data += (
        f", licence {data['licence']} (`docs/data_license.txt`)."
        if data["licence"]
        else "; its licence is not stated."
    )
    cite = (
        f" Whoever publishes with it cites: {'; '.join(metadata['references'])}."
        if metadata["references"]
        else ""
    )
    weights = metadata["license"].removeprefix("see ")
    return f"## Licence\n\nWeights and configs: {weights} (`LICENSE`).{by}{of_data}{cite}"
