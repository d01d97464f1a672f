"""A case's images: read once, judged strictly before anything is computed on them.

The one place where a case enters the engine; another kind of input needs only to give a `Source`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segpipe.common.channel_names import masks_in_file
from segpipe.common.grids import on_grid_of, registered_note, require_one_grid
from segpipe.common.nifti import Header, read_header, read_voxels, require_3d
from segpipe.common.outliers import refuse_outliers
from segpipe.dicom import Series, Volume, load_channels
from segpipe.errors import DataError, UsageError

if TYPE_CHECKING:
    from monai.data import MetaTensor

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLES = 1_000_000  # voxels, enough for percentiles
EVERYWHERE = "padding ("  # every CT of some scanners has it: no reason to look at a case
MOST_PIXELS = 256  # along a side of the slice that is shown


@dataclass(eq=False)
class Source:
    """The images of one case.

    Attributes:
        header: of the grid that they share, the first three sizes in ``shape``.
        array: (C, X, Y, Z), in few bytes a voxel; its values are those of the files.
        series: that the voxels are of; None where they are of no DICOM series.
        modality: of the DICOM series; None where there is none.
        notes: of who read the series.
        kept: whether somebody else holds the voxels as well, so that they stay in memory.
    """

    header: Header
    array: NDArray[Any]
    series: Series | None = None
    modality: str | None = None
    notes: tuple[str, ...] = ()
    kept: bool = False

    def tensor(self) -> MetaTensor:
        """Return what `LoadImaged` and `EnsureChannelFirstd` make of the case: float32, with its affine."""
        import torch
        from monai.data import MetaTensor
        from monai.utils import MetaKeys, SpaceKeys

        voxels = torch.from_numpy(np.ascontiguousarray(self.array, np.float32))
        meta = {
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(self.header.shape[:3]),
            MetaKeys.ORIGINAL_AFFINE: np.array(self.header.affine),
        }
        affine = torch.as_tensor(self.header.affine, dtype=torch.float64)
        return MetaTensor(voxels, affine=affine, meta=meta)

    def release(self) -> None:
        """Let the voxels go: what was made of them is all that is needed from here on."""
        self.array = np.empty((0, 0, 0, 0), self.array.dtype)


class RegisteredFiles(tuple[str, ...]):
    """Files of one case, one a channel, of which somebody says that they are registered: their grids may differ."""


# a case: its NIfTI files, a judged DICOM series with its further channels, or images that were read and judged
CaseInput: TypeAlias = Sequence[str | Path] | Series | Source


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case's images, judged: their headers, their voxels and a preview."""

    headers: list[Header]
    source: Source
    preview: Preview


def read_case(case: CaseInput, channels: int, headers: list[Header] | None = None, masks: int = 0) -> ReadCase:
    """Read and judge the images of one case; arguments and errors as in `read_source`."""
    headers = headers or read_headers(case, channels)
    source = read_source(case, channels, headers, masks)
    return ReadCase(headers, source, preview_of(source))


def read_source(case: CaseInput, channels: int, headers: list[Header] | None = None, masks: int = 0) -> Source:
    """Read and judge the images of one case.

    Args:
        case: one file per channel, or one file (3D for one channel, 4D with the channels last for several), or
            a series, or what was read before.
        channels: how many channels the bundle expects.
        headers: what `read_headers` gave, where it was asked before.
        masks: how many of the last channels are masks, which may be constant.

    Raises:
        UsageError: no such file.
        DataError: as `read_headers`, or voxels that are not finite or no measurements, or a constant image, or a
            series that cannot be read.
    """
    headers = headers or read_headers(case, channels)
    if isinstance(case, Source):
        return case
    if isinstance(case, Series):
        volumes = load_channels(case)
        for series, volume in zip(case.channels, volumes, strict=True):
            judge_voxels(volume.array, Path(series.case_id))
        arrays, notes = [volume.array for volume in volumes], _reading_notes(volumes)
        return Source(headers[0], np.stack(arrays) if len(arrays) > 1 else arrays[0][None], notes=notes)
    files = [read_header(path) for path in case] if isinstance(case, RegisteredFiles) else headers
    arrays = [
        on_grid_of(files[0], file, _read_judged(file, masks_in_file(index, len(files), masks)))
        for index, file in enumerate(files)
    ]
    if len(arrays) == 1:
        array = np.moveaxis(arrays[0], 3, 0) if arrays[0].ndim == 4 else arrays[0][None]
    else:
        array = np.stack(arrays)
    return Source(headers[0], array)


def _reading_notes(volumes: Sequence[Volume]) -> tuple[str, ...]:
    """Return what was noticed of the voxels of a case's channels, beside what the scan says of them."""
    notes = [
        f"channel {index}: {note}" if index else note
        for index, volume in enumerate(volumes)
        for note in volume.notes
        if note not in volume.series.notes and not note.startswith(EVERYWHERE)
    ]
    return tuple(dict.fromkeys(notes))


def read_headers(case: CaseInput, channels: int) -> list[Header]:
    """Judge the headers of one case's images, one a file; a series was judged by the scan.

    Raises:
        UsageError: no such file.
        DataError: unreadable, not a volume, a wrong number of channels, or channels on different grids.
    """
    if isinstance(case, Source):
        return [replace(case.header, shape=(*case.header.shape[:3], len(case.array)))]
    if isinstance(case, Series):
        return [_header_of(case, channels)] * channels
    missing = [index for index, path in enumerate(case) if not Path(path).is_file()]
    if missing and len(case) > 1:
        raise UsageError(
            "a channel's file is missing",
            path=case[missing[0]],
            found=f"nothing for channel {missing[0]}",
            expected=f"{channels} files a case",
        )
    headers = [read_header(path) for path in case]
    if isinstance(case, RegisteredFiles) and len(headers) == channels:
        notes = [registered_note(headers[0], header, index) for index, header in enumerate(headers)]
        on_grid = replace(headers[0], dtype="float32")
        headers = [
            replace(on_grid, path=header.path) if note else header for header, note in zip(headers, notes, strict=True)
        ]
    require_channels(headers, channels)
    return headers


def held_bytes(case: CaseInput) -> int:
    """Return the bytes of a case's voxels that are in memory now, and let go once they are used."""
    return case.array.nbytes if isinstance(case, Source) and not case.kept else 0


def require_channels(headers: Sequence[Header], channels: int) -> None:
    """Judge the grids of a case's images together.

    Raises:
        DataError: not a volume, a wrong number of channels, or channels on different grids.
    """
    first = headers[0]
    stacked = len(headers) == 1 and channels > 1 and len(first.shape) == 4
    found = first.shape[3] if stacked else len(headers)
    if found != channels:
        raise DataError(
            "wrong number of channels",
            path=first.path,
            found=found,
            expected=channels,
            hint="one file a channel, named ..._0000.nii.gz, ..._0001.nii.gz and so on",
        )
    for header in headers:
        if not stacked:
            require_3d(header)
    require_one_grid(headers)


def _header_of(series: Series, channels: int) -> Header:
    """Return the grid of a series; only reading tells whether voxels are int16 or float32: the larger is counted on."""
    if channels != len(series.channels):
        found = "one series" if not series.further else f"{len(series.channels)} series"
        raise DataError("wrong number of channels", found=found, expected=channels)
    if series.affine_ras is None or series.shape is None or series.spacing_mm is None:
        raise DataError("the series is refused", found=series.reason)
    header = Header(Path(series.case_id), series.shape, series.affine_ras, series.spacing_mm, "float32")
    require_3d(header)
    return header


def _read_judged(header: Header, masks: int) -> NDArray[Any]:
    values = read_voxels(header)
    judge_voxels(values, header.path, masks)
    return values


def judge_voxels(values: NDArray[Any], path: Path, masks: int = 0) -> None:
    """Refuse an image (X, Y, Z) or (X, Y, Z, C) that nothing can be found in; the last ``masks`` channels may be empty.

    Raises:
        DataError: voxels that are not finite or no measurements, or a channel that is constant.
    """
    channels = np.moveaxis(values, 3, 0) if values.ndim == 4 else [values]
    for index, channel in enumerate(channels):
        least, most = channel.min(), channel.max()  # NaN if there is one
        if not (np.isfinite(least) and np.isfinite(most)):
            bad = values.size - np.count_nonzero(np.isfinite(values))
            raise DataError(
                "the image has voxels that are not finite",
                path=path,
                found=f"{bad} NaN or infinite voxels",
                hint="export it again, or set them to the background's intensity",
            )
        if least == most and index < len(channels) - masks:
            raise DataError("the image is constant", path=path, found=f"every voxel is {least}")
        refuse_outliers(channel, path)


@dataclass(frozen=True, eq=False)
class Preview:
    """What is kept of an image once its voxels are let go: enough to show a slice and to compare its values.

    Attributes:
        intensity: of each channel, the values at `PERCENTILES` of all voxels.
        grey: first channel, uint8 from black to white; all slices along ``normal``, within them every n-th pixel.
        steps: that n, for each axis.
        normal: axis across the slices: along which voxels are longest, of equals the one nearest to head and foot.
    """

    intensity: list[list[float]]
    grey: NDArray[np.uint8]
    steps: tuple[int, int, int]
    normal: int


def preview_of(source: Source) -> Preview:
    """Return the preview of a case, before its voxels are let go."""
    intensity = [_percentiles(channel) for channel in source.array]
    normal = _normal(source.header)
    x, y, z = (
        1 if axis == normal else math.ceil(size / MOST_PIXELS) for axis, size in enumerate(source.header.shape[:3])
    )
    seen = source.array[0, ::x, ::y, ::z]
    low, high = intensity[0][0], intensity[0][-1]
    grey = np.empty(seen.shape, np.uint8)
    for index in range(seen.shape[2]):  # a plane at a time, as it lies in most files: what is computed on is larger
        plane = (seen[..., index].astype(np.float32) - low) * (255 / (high - low or 1.0))
        grey[..., index] = np.clip(plane, 0, 255).astype(np.uint8)
    return Preview(intensity, grey, (x, y, z), normal)


def _percentiles(channel: NDArray[Any]) -> list[float]:
    step = math.ceil((channel.size / SAMPLES) ** (1 / 3))
    values = channel[::step, ::step, ::step]
    return [float(f"{value:.6g}") for value in np.percentile(values, PERCENTILES)]


def _normal(header: Header) -> int:
    longest = max(header.spacing_mm)
    candidates = [axis for axis, edge in enumerate(header.spacing_mm) if edge > 0.99 * longest]
    upward: Sequence[float] = np.abs(header.affine[2, :3]) / np.asarray(header.spacing_mm)
    return max(candidates, key=lambda axis: upward[axis])
