"""What a training should know beside what is planned: labels it may lack or mirror, and what may be better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segpipe.common.label_sides import labels_with_side
from segpipe.data import Fingerprint, Manifest, labels_not_trained, not_trained_words
from segpipe.training.network_axes import is_anisotropic
from segpipe.training.planning_rules import target_spacing
from segpipe.training.slices import thick_slices


def notes_on_labels(manifest: Manifest, fingerprint: Fingerprint) -> Iterator[str]:
    """Yield which labels a fold lacks, and which have a side."""
    values = {name: value for value, name in manifest.foreground.items()}
    present = {
        case.id: {values[name] for name, size in case.labels.items() if size.voxels} for case in fingerprint.cases
    }
    for fold, name in labels_not_trained(manifest, present):
        yield not_trained_words(manifest, fold, name)
    sided = labels_with_side(dict.fromkeys([*manifest.foreground.values(), *manifest.targets.values()]))
    if sided:
        yield f"{', '.join(sided)} have a side: train with --augment light or none, which do not mirror"


def notes_on_voxels(
    fingerprint: Fingerprint, spacing_mm: Sequence[float], network: str, augment: str, follows: bool
) -> Iterator[str]:
    """Yield what a training on voxels that are coarser along one axis should know.

    Args:
        fingerprint: of the training cases.
        spacing_mm: voxel edges that are planned.
        network, augment: fragments, of a network of volumes.
        follows: whether the plan gives the network strides that follow the voxels.
    """
    if not is_anisotropic(spacing_mm):
        return
    edges = " x ".join(f"{edge:.3g}" for edge in spacing_mm)
    if not follows:
        yield f"voxels of {edges} mm: {network} halves all axes alike; --network unet and dynunet follow them"
    if augment == "light" and max(spacing_mm) == spacing_mm[2]:
        yield f"voxels of {edges} mm: --augment in_plane turns and scales patches within their slices alone"
    if has_thick_slices(fingerprint):
        yield (
            f"slices of {max(spacing_mm):.3g} mm: a network of single slices may be better; `segpipe auto` compares "
            "one on cases that it did not see, as does `segpipe compare --network unet,unet_2d --loss dice_ce`"
        )


def has_thick_slices(fingerprint: Fingerprint) -> bool:
    """Return whether the cases are so coarse along one axis that a network of slices is worth a try."""
    return thick_slices(target_spacing(fingerprint, by_slices=True).value)
