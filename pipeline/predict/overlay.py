"""From the slice that the worker left beside a case's results to a picture."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import write_whole
from pipeline.results import OVERLAY, SLICE


def draw_overlay(folder: Path) -> None:
    """Draw the case's slice, and remove what it was drawn from.

    Raises:
        UsageError: the picture cannot be written, or the disk is full.
    """
    path = folder / SLICE
    if not path.is_file():
        return
    import numpy as np

    from pipeline.report.overlay import Shown, overlay

    with np.load(path) as kept:
        x, y, z = (float(edge) for edge in kept["spacing_mm"])
        shown = Shown(kept["image"], kept["labels"], (x, y, z), int(kept["normal"]), int(kept["regions"]))
        picture = overlay(shown)
    with write_whole(folder / OVERLAY) as stream:
        stream.write(picture)
    path.unlink()
