"""The grids of a case's files: which two of them differ is said once, in the same words wherever a case is read.

Files do not say whether they lie in one space. Where somebody says so, channels are resampled to the first one's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from segpipe.common.nifti import Header, grid_difference, require_3d
from segpipe.common.resampling import note_on, resample
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
                hint="where they are registered, `segpipe import --registered` and `segpipe predict --registered` put "
                "them on the grid of channel 0",
            )
    difference = None if label is None else grid_difference(first, label)
    if difference:
        raise DataError(
            "image and label lie on different grids",
            path=first.path,
            found=f"image against label: {difference}",
            hint="look at the whole dataset with `segpipe check`",
        )


def on_grid_of(first: Header, channel: Header, values: NDArray[Any]) -> NDArray[Any]:
    """Return a registered channel's voxels (X, Y, Z) on the grid of the first, resampled linearly where it differs."""
    if channel is first or grid_difference(first, channel) is None:
        return values
    x, y, z = first.shape
    return resample(values, channel.affine, (x, y, z), first.affine)


def registered_note(first: Header, channel: Header, index: int) -> str:
    """Say how a registered channel comes onto the grid of the first; empty where it lies on it.

    Raises:
        DataError: it covers none of it, does not say where the patient's sides are, or is no volume.
    """
    for header in (first, channel):
        require_3d(header)
    if channel is first or grid_difference(first, channel) is None:
        return ""
    unplaced = next((header for header in (first, channel) if not header.is_oriented), None)
    try:
        if unplaced is not None:
            raise DataError(
                "the file does not say where its voxels lie in mm",
                path=unplaced.path,
                found="qform_code 0 and sform_code 0",
                expected="a qform or an sform, to resample the channels to one grid",
                hint="write it again from the original scan",
            )
        x, y, z = first.shape
        note = note_on("it", channel.shape, channel.affine, (x, y, z), first.affine)
        words = f"channel {index} is said to be registered: resampled linearly to the grid of channel 0"
        return f"{words}; {note}" if note else words
    except DataError as error:
        error.path = error.path or str(channel.path)
        raise
