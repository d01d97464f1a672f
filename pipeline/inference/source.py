"""Reading a case's images strictly before anything is computed on them.

The one place where a case enters the worker; another kind of input needs only to give a `Header` of its grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import DataError, UsageError
from pipeline.nifti import Header, grid_difference, read_header, read_volume, require_3d


def read_grid(paths: Sequence[str | Path], channels: int) -> Header:
    """Judge the images of one case and return the header of the grid that they share.

    Args:
        paths: one file per channel, or one file (3D for one channel, 4D with the channels last for several).
        channels: how many channels the bundle expects.

    Raises:
        UsageError: no such file.
        DataError: unreadable, not a volume, a wrong number of channels, channels on different grids, voxels that
            are not finite, or a constant image.
    """
    missing = [index for index, path in enumerate(paths) if not Path(path).is_file()]
    if missing and len(paths) > 1:
        raise UsageError(
            "a channel's file is missing", path=paths[missing[0]], found=f"nothing for channel {missing[0]}",
            expected=f"{channels} files a case",
        )  # fmt: skip
    headers = [read_header(path) for path in paths]
    first = headers[0]
    stacked = len(headers) == 1 and channels > 1 and len(first.shape) == 4
    found = first.shape[3] if stacked else len(headers)
    if found != channels:
        raise DataError(
            "wrong number of channels", path=first.path, found=found, expected=channels,
            hint="one file a channel, named ..._0000.nii.gz, ..._0001.nii.gz and so on",
        )  # fmt: skip
    for header in headers:
        if not stacked:
            require_3d(header)
        difference = grid_difference(first, header)
        if difference:
            raise DataError(
                "the channels lie on different grids", path=header.path, found=difference,
                hint="resample the channels of a case to one grid first",
            )  # fmt: skip
        _require_usable_voxels(header)
    return first


def _require_usable_voxels(header: Header) -> None:
    values = read_volume(header)
    if values.dtype.kind not in "iuf":
        raise DataError("the voxels are not plain numbers", path=header.path, found=values.dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise DataError(
            "the image has voxels that are not finite", path=header.path, found=f"{bad} NaN or infinite voxels",
            hint="export it again, or set them to the background's intensity",
        )  # fmt: skip
    for channel in np.moveaxis(values, 3, 0) if values.ndim == 4 else [values]:
        if channel.min() == channel.max():
            raise DataError(
                "the image is constant", path=header.path, found=f"every voxel is {channel.flat[0]}"
            )
