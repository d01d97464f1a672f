"""Whether a case is far from the cases that a bundle was trained on, by its voxels' size and its intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

SPACING_FACTOR = 1.5  # beyond the range of the training cases
INTENSITY_MARGIN = 0.5  # of that range's width
COMPARED = (1, 2, 3)  # of the percentiles 0.5, 5, 50, 95 and 99.5: the extremes of an image are its outliers
Answer = Literal["yes", "no", "unknown"]


def far_from_training(
    metadata: Mapping[str, Any], spacing_ras_mm: Sequence[float] | None, intensity: Sequence[Any] | None
) -> dict[str, Answer]:
    """Return the flags of a case.

    Args:
        metadata: of the bundle.
        spacing_ras_mm: of the case, along the axes of RAS.
        intensity: of each channel, the values at the five percentiles.

    Returns:
        ``far_spacing``: an edge is more than 1.5 times the largest of the training cases, or less than the smallest
        divided by 1.5. ``far_intensity``: the 5th, 50th or 95th percentile of a channel lies beyond the range of the
        training cases by more than half of its width. ``unknown`` where the bundle does not say: one exported with a
        fingerprint has ``training_data.seen``.
    """
    training = metadata.get("training_data")
    seen = training.get("seen") if isinstance(training, Mapping) else None
    seen = seen if isinstance(seen, Mapping) else {}
    return {
        "far_spacing": _far_spacing(seen.get("spacing_ras_mm"), spacing_ras_mm),
        "far_intensity": _far_intensity(seen.get("intensity"), intensity),
    }


def _far_spacing(seen: Sequence[Sequence[float]] | None, spacing: Sequence[float] | None) -> Answer:
    if not seen or not spacing or len(seen) != len(spacing):
        return "unknown"
    near = (
        low / SPACING_FACTOR <= edge <= high * SPACING_FACTOR for (low, high), edge in zip(seen, spacing, strict=True)
    )
    return "no" if all(near) else "yes"


def _far_intensity(seen: Sequence[Any] | None, intensity: Sequence[Any] | None) -> Answer:
    if not seen or not intensity or len(seen) != len(intensity):
        return "unknown"
    for channel, values in zip(seen, intensity, strict=True):
        for index in COMPARED:
            low, high = channel[index]
            margin = INTENSITY_MARGIN * (high - low)
            if not low - margin <= values[index] <= high + margin:
                return "yes"
    return "no"
