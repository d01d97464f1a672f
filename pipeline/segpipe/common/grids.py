"""The grids of a case's files: which two of them differ is said once, in the same words wherever a case is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segpipe.common.nifti import Header, grid_difference
from segpipe.errors import DataError


def require_one_grid(channels: Sequence[Header], label: Header | None = None) -> None:
    """Require that all files of a case lie on one grid; channels along a fourth axis are on that of the first three.

    Args:
        channels: the image files, in their order.
        label: the label map, where there is one.

    Raises:
        DataError: two channels lie on different grids, or else the image and its label.
    """
    first, *others = [replace(header, shape=header.shape[:3]) for header in channels]
    for number, header in enumerate(others, 1):
        difference = grid_difference(first, header)
        if difference:
            raise DataError(
                "the channels lie on different grids",
                path=header.path,
                found=f"channel 0 against channel {number}: {difference}",
                hint="resample the channels of a case to one grid first",
            )
    difference = None if label is None else grid_difference(first, label)
    if difference:
        raise DataError(
            "image and label lie on different grids",
            path=first.path,
            found=f"image against label: {difference}",
            hint="look at the whole dataset with `segpipe check`",
        )
