"""What a model card says of label maps: regions that overlap, voxels and labels that nobody decided on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


def output_in_short(metadata: Document) -> str:
    """Return what a bundle gives, in a few words."""
    several = len(metadata["training_data"].get("regions") or ()) > 1
    return "a mask for each region, which may overlap," if several else "a label map"


def result_files(regions: Document | None) -> str:
    """Return what the files of results are."""
    if regions and len(regions) > 1:
        return (
            "Results are uint8 NIfTI files on the grid of the input, with a fourth axis: a mask of 0 and 1 for each "
            "region, in this order, since a voxel may lie in several"
        )
    return "Label maps are uint8 NIfTI files on the grid of the input"


def label_map_words(data: Document) -> str | None:
    """Write what the label maps of the training said beside one label a voxel."""
    said = []
    if "regions" in data:
        names = data["labels"]
        joined = {name: ", ".join(names[str(value)] for value in values) for name, values in data["regions"].items()}
        said.append("; ".join(f"{name} joins {labels}" for name, labels in joined.items()))
    if "ignore_label" in data:
        said.append(f"voxels of value {data['ignore_label']}, which nobody annotated, were left out")
    if "partly_annotated_cases" in data:
        said.append(f"in {data['partly_annotated_cases']} training cases not every label was looked for")
    return "; ".join(said) or None
