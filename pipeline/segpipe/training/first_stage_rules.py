"""Whether a patch sees enough of what is labelled, and the grid of a first stage on which it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.data import Fingerprint, Manifest, require_one_stage
from segpipe.errors import UsageError
from segpipe.training.planning_rules import Rule
from segpipe.training.slices import takes_slices

SEEN_SHARE = 0.25  # of the labelled region that a patch holds at least, else a first stage is proposed; ours
COARSER = 1.1  # voxel edges of a grid by those of the one before
MOST_COARSER = 16.0  # than the data set's own
OURS = "our choice; two stages as in nnU-Net, Isensee 2021"


def foreground_box(fingerprint: Fingerprint) -> list[float]:
    """Return the median box around all labels, in mm along the axes of RAS."""
    boxes = [case.foreground_box_ras_mm for case in fingerprint.cases if case.foreground_box_ras_mm is not None]
    return [float(value) for value in np.median(boxes, axis=0)] if boxes else [0.0, 0.0, 0.0]


def seen_share(fingerprint: Fingerprint, spacing_mm: Sequence[float], patch: Sequence[int]) -> float:
    """Return the largest share of the box around all labels that one patch holds, 1 where nothing is labelled.

    Args:
        fingerprint: of the training cases.
        spacing_mm: voxel edges.
        patch: its size in voxels.
    """
    box = foreground_box(fingerprint)
    sides = [size * edge / mm for size, edge, mm in zip(patch, spacing_mm, box, strict=True) if mm]
    return math.prod(min(1.0, side) for side in sides)


def note_on_stages(
    fingerprint: Fingerprint, dataset: Manifest, spacing_mm: Sequence[float], patch: Sequence[int]
) -> str | None:
    """Return a word on two stages where a patch sees little of what is labelled; None where they would not help.

    Args:
        fingerprint: of the training cases.
        dataset: that is planned for.
        spacing_mm: voxel edges.
        patch: its size in voxels.
    """
    share = seen_share(fingerprint, spacing_mm, patch)
    if share >= SEEN_SHARE or 1 in patch or dataset.first_stage is not None or dataset.regions is not None:
        return None
    return (
        f"a patch sees {share:.0%} of the region that is labelled: a first stage on a coarser grid may help, which "
        "`segpipe plan --first-stage` plans (docs/howto/two_stages.md)"
    )


def first_stage_spacing(fingerprint: Fingerprint, own: Rule, patch_at: Callable[[list[float]], Sequence[int]]) -> Rule:
    """Return the finest spacing at which one patch holds the box around all labels.

    The finest edges grow first, so that voxels become as long as they are wide.

    Args:
        fingerprint: of the training cases.
        own: the spacing of the data set.
        patch_at: gives the patch at a spacing.

    Raises:
        UsageError: there is none up to 16 times as coarse.
    """
    spacing, coarser = [float(edge) for edge in own.value], 1.0
    while seen_share(fingerprint, spacing, patch_at(spacing)) < 1 and coarser < MOST_COARSER:
        coarser *= COARSER
        spacing = [round(max(edge, coarser * min(own.value)), 4) for edge in own.value]
    if (share := seen_share(fingerprint, spacing, patch_at(spacing))) < 1:
        raise UsageError(
            "no grid shows one patch all that is labelled",
            found=f"{share:.0%} of the box around all labels in a patch of {patch_at(spacing)} at {spacing} mm",
            hint="give more --memory, or plan one stage",
        )
    if spacing == list(own.value):
        return Rule("spacing_mm", spacing, "the data set's own: a patch sees all that is labelled there", OURS)
    times = math.prod(spacing) / math.prod(own.value)
    why = f"a first stage: voxels {times:.3g} times as large, the finest at which one patch sees all that is labelled"
    return Rule("spacing_mm", spacing, why, OURS)


def require_first_stage(dataset: Manifest, path: str | Path | None, network: str, content: Mapping[str, Any]) -> None:
    """Refuse what no first stage can be trained with, before any case is read.

    Raises:
        UsageError: a network of slices.
        RefusedError: the manifest.
    """
    require_one_stage(dataset, path)
    if takes_slices(content["network_def"]):
        raise UsageError(
            "a network of slices sees no organ whole, however coarse the grid",
            found=f"--network {network}",
            expected="a network of volumes for a first stage",
            hint="plan it with --network unet",
        )
