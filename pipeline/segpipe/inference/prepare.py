"""From a source's voxels to the network's input: turned, resampled, cut, padded and scaled.

The result is that of MONAI's own transforms, in less time and memory. Where they lead is asked of MONAI itself, whose
transforms run lazily on a tensor without memory; turning and resampling are one step that reads the source where it
lies; cutting and padding are MONAI's; intensities change in place.

Interpolation is linear, as torch's `grid_sample` does it in MONAI's resampling: coordinates are voxel centres, computed
in float64 through the normalised coordinates of `affine_grid`, so that they round as there, and clamped to the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.networks.utils import to_norm_affine
from numpy.typing import NDArray

from segpipe.common.nifti import Header
from segpipe.inference.source import Source
from segpipe.inference.transforms import (
    CropForeground,
    DivisiblePad,
    Normalise,
    Orientation,
    Preprocessing,
    ScaleRange,
    Spacing,
    SpatialPad,
    build_step,
)

PARALLEL_TOLERANCE = 1e-12  # voxels, by which a far corner may leave the tables of grids with parallel axes
CHUNK = 1 << 22  # values that are interpolated at a time

Shape = tuple[int, int, int]
Matrix = NDArray[Any]
Corners = Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]  # per axis low and high voxel, each with its share


@dataclass(frozen=True, eq=False)
class GridTransform:
    """How the voxels of a source and those of a network's input belong together.

    Attributes:
        source_shape: of the source.
        axes: for each turned axis, the axis of the source that it is.
        flips: for each turned axis, whether it counts from the source's end.
        to_turned: (4, 4), resampled voxel to turned voxel; None where nothing is resampled.
        to_resampled: (4, 4), turned voxel to resampled voxel; None where nothing is resampled.
        resampled_shape: of the resampled grid; the turned one where nothing is resampled.
        crop: per axis the first resampled voxel that is not cut off, and the end; what was cut off has scores of 0.
        offset: the resampled voxel that is the first of the network's input; below 0 where that is padded.
        network_shape: of the network's input.
    """

    source_shape: Shape
    axes: Shape
    flips: tuple[bool, bool, bool]
    to_turned: Matrix | None
    to_resampled: Matrix | None
    resampled_shape: Shape
    crop: tuple[tuple[int, int], ...] = ()
    offset: Shape = (0, 0, 0)
    network_shape: Shape = (0, 0, 0)

    @property
    def turned_shape(self) -> Shape:
        """The source's shape with its axes in the network's order."""
        return _shape(self.source_shape[axis] for axis in self.axes)

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """Where the network's input has voxels of the image, and not of padding."""
        low, high = zip(*self.crop, strict=True)
        first, size = np.asarray(self.offset), np.asarray(self.network_shape)
        begin, end = np.maximum(low - first, 0), np.minimum(high - first, size)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(begin, end, strict=True))
        return x, y, z

    def source_planes(self, axis: int) -> tuple[int, NDArray[np.int64]]:
        """Return the axis of the source that an axis of the input is, and there the place of each plane inside."""
        part = self.inside[axis]
        planes = np.arange(part.start, part.stop) + self.offset[axis]
        if self.to_turned is not None:
            planes = planes * self.to_turned[axis, axis] + self.to_turned[axis, 3]
        size = self.turned_shape[axis]
        nearest = np.clip(np.rint(planes), 0, size - 1).astype(np.int64)
        return self.axes[axis], size - 1 - nearest if self.flips[axis] else nearest

    def turned(self, source: NDArray[Any]) -> NDArray[Any]:
        """Return a view of an array (X, Y, Z) on the source's grid with its axes as the network has them."""
        return source.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def prepare(source: Source, preprocessing: Preprocessing) -> tuple[torch.Tensor, GridTransform]:
    """Return the network's input (C, X, Y, Z) float32, and how it belongs to the source's voxels.

    The source's array is let go as soon as it is resampled, if nothing else holds it.
    """
    transform, affine = turned_and_spaced(source.header, preprocessing)
    image = _resampled(source, transform)
    source.release()
    image, transform = _cut_and_padded(image, affine, transform, preprocessing)
    for step in preprocessing.intensity:
        channels = preprocessing.channels_of(step)
        if channels is None:
            image = _changed(image, step)
        for channel in channels or ():
            image[channel : channel + 1] = _changed(image[channel : channel + 1], step)
    return image, transform


def network_shape(header: Header, preprocessing: Preprocessing) -> Shape:
    """Return the voxels of the network's input, from the header alone: nothing cut, everything padded."""
    transform, _ = turned_and_spaced(header, preprocessing)
    size = np.asarray(transform.resampled_shape)
    if pad := preprocessing.find(SpatialPad):
        size = np.maximum(size, pad.spatial_size)
    if divisible := preprocessing.find(DivisiblePad):
        step = np.maximum(1, np.broadcast_to(divisible.k, 3))
        size = -(-size // step) * step
    return _shape(size)


def turned_and_spaced(header: Header, preprocessing: Preprocessing) -> tuple[GridTransform, Matrix]:
    """Return the way from a source to the resampled grid, and that grid's affine; the last few are remembered."""
    affine = tuple(header.affine.ravel().tolist())
    steps = preprocessing.find(Orientation), preprocessing.find(Spacing)
    return _turned_and_spaced(_shape(header.shape[:3]), affine, *steps)


@lru_cache(maxsize=4)  # a case's memory is estimated, then it is prepared, and the next one is read beside it
def _turned_and_spaced(
    shape: Shape, values: tuple[float, ...], orientation: Orientation | None, resampling: Spacing | None
) -> tuple[GridTransform, Matrix]:
    affine = np.array(values).reshape(4, 4)
    turning, spacing = (None if step is None else build_step(step) for step in (orientation, resampling))
    carrier = MetaTensor(torch.empty(()).expand(1, *shape), affine=torch.as_tensor(affine, dtype=torch.float64))
    if turning is not None:
        carrier = turning({"image": carrier}, lazy=True)["image"]
    turned_affine, turned_shape = _pending(carrier)
    step = np.linalg.solve(affine, turned_affine)[:3, :3]
    axes = _shape(int(np.abs(column).argmax()) for column in step.T)
    first, second, third = (bool(column[axis] < 0) for column, axis in zip(step.T, axes, strict=True))
    flips = (first, second, third)
    if spacing is not None:
        carrier = spacing({"image": carrier}, lazy=True)["image"]
    spaced_affine, spaced_shape = _pending(carrier)
    forward = np.linalg.solve(turned_affine, spaced_affine)
    backward = np.linalg.solve(spaced_affine, turned_affine)
    if turned_shape == spaced_shape:  # MONAI leaves voxels and affine alone where a grid hardly changes
        same = np.allclose(turned_affine, spaced_affine, atol=AFFINE_TOL)
        if same or np.allclose(forward, np.eye(4), atol=AFFINE_TOL):
            return GridTransform(shape, axes, flips, None, None, turned_shape), turned_affine
    return GridTransform(shape, axes, flips, forward, backward, spaced_shape), spaced_affine


def _pending(carrier: MetaTensor) -> tuple[Matrix, Shape]:
    affine = np.asarray(carrier.peek_pending_affine(), dtype=np.float64)
    return affine, _shape(carrier.peek_pending_shape())


def _shape(values: Iterable[Any]) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _resampled(source: Source, transform: GridTransform) -> torch.Tensor:
    turned = torch.from_numpy(source.array).permute(0, *(axis + 1 for axis in transform.axes))
    if transform.to_turned is not None:
        return resample(turned, transform.to_turned, transform.resampled_shape, transform.flips)
    flipped = [axis + 1 for axis, flip in enumerate(transform.flips) if flip]
    return (turned.flip(flipped) if flipped else turned).to(torch.float32, copy=True).contiguous()


def resample(volume: torch.Tensor, matrix: Matrix, shape: tuple[int, ...], flips: tuple[bool, ...]) -> torch.Tensor:
    """Return a volume on another grid, computed in float64 as MONAI's `Spacing` does by default.

    Args:
        volume: (C, X, Y, Z) of any plain type, not copied as a whole.
        matrix: (4, 4), voxel of the result to voxel of the volume with the ``flips`` applied.
        shape: of the result.
        flips: axes of the volume that count from their end.

    Returns:
        (C, *shape) float32.
    """
    size = tuple(volume.shape[1:])
    tables = parallel_tables(matrix, shape, size)
    if tables is None:
        return _resample_tilted(volume, matrix, shape, flips)
    order = sorted(range(3), key=lambda axis: -volume.stride(axis + 1))  # as it lies in memory
    if order != [0, 1, 2]:
        back = [1 + order.index(axis) for axis in range(3)]
        permutation = np.eye(4)[[*order, 3]]
        sizes = tuple(shape[axis] for axis in order)
        mirrors = tuple(flips[axis] for axis in order)
        moved = volume.permute(0, *(1 + axis for axis in order))
        return resample(moved, permutation @ matrix @ permutation.T, sizes, mirrors).permute(0, *back)
    tables = [table.flipped(size[axis]) if flips[axis] else table for axis, table in enumerate(tables)]
    result = torch.empty((len(volume), *shape), dtype=torch.float32)
    rows = max(1, CHUNK // (size[1] * size[2]))
    for channel, first in itertools.product(range(len(volume)), range(0, shape[0], rows)):
        part = slice(first, first + rows)
        value = volume[channel]
        for axis, table in enumerate(tables):
            picked = part if axis == 0 else slice(None)
            weight = torch.from_numpy(table.weight[picked]).reshape([-1 if a == axis else 1 for a in range(3)])
            low = value.index_select(axis, torch.from_numpy(table.low[picked])).double()
            if weight.any():
                high = value.index_select(axis, torch.from_numpy(table.high[picked])).double()
                low.mul_(1 - weight).add_(high.mul_(weight))
            value = low
        result[channel, part] = value
    return result


def _resample_tilted(
    volume: torch.Tensor, matrix: Matrix, shape: tuple[int, ...], flips: tuple[bool, ...]
) -> torch.Tensor:
    size = tuple(volume.shape[1:])
    volume = volume.contiguous()
    result = torch.empty((len(volume), *shape), dtype=torch.float32)
    rows = max(1, CHUNK // 8 // (shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        box = (slice(first, min(first + rows, shape[0])), slice(0, shape[1]), slice(0, shape[2]))
        corners = []
        for axis, place in enumerate(places_of(matrix, box, size)):
            table = AxisTable.of(place.ravel())
            table = table.flipped(size[axis]) if flips[axis] else table
            low, high, weight = (torch.from_numpy(column) for column in (table.low, table.high, table.weight))
            corners.append([(low, 1 - weight), (high, weight)])
        result[:, box[0]] = interpolate(volume, corners).reshape(len(volume), -1, *shape[1:]).float()
    return result


def _cut_and_padded(
    image: torch.Tensor, affine: Matrix, transform: GridTransform, preprocessing: Preprocessing
) -> tuple[torch.Tensor, GridTransform]:
    offset, crop = (0, 0, 0), tuple((0, size) for size in transform.resampled_shape)
    item = {"image": MetaTensor(image, affine=torch.tensor(affine))}
    for step in preprocessing.steps:
        if isinstance(step, (CropForeground, SpatialPad, DivisiblePad)):
            item = build_step(step)(item)
            offset = _shape(np.rint(np.linalg.solve(affine, np.asarray(item["image"].affine))[:3, 3]))
            if isinstance(step, CropForeground):
                crop = tuple(
                    (max(first, 0), min(first + size, whole))
                    for first, size, (_, whole) in zip(offset, item["image"].shape[1:], crop, strict=True)
                )
    image = item["image"].as_tensor().contiguous()
    return image, replace(transform, offset=offset, crop=crop, network_shape=_shape(image.shape[1:]))


def _changed(image: torch.Tensor, step: ScaleRange | Normalise) -> torch.Tensor:
    return _scaled(image, step) if isinstance(step, ScaleRange) else _normalised(image, step)


def _scaled(image: torch.Tensor, step: ScaleRange) -> torch.Tensor:
    """Apply `ScaleIntensityRange` in place."""
    if step.a_max == step.a_min:
        return image.sub_(step.a_min) if step.b_min is None else image.sub_(step.a_min).add_(step.b_min)
    image.sub_(step.a_min).div_(step.a_max - step.a_min)
    if step.b_min is not None and step.b_max is not None:
        image.mul_(step.b_max - step.b_min).add_(step.b_min)
    return image.clamp_(step.b_min, step.b_max) if step.clip and (step.b_min, step.b_max) != (None, None) else image


def _normalised(image: torch.Tensor, step: Normalise) -> torch.Tensor:
    """Apply `NormalizeIntensity`, in place where all voxels count alike."""
    if step.nonzero or isinstance(step.subtrahend, tuple) or isinstance(step.divisor, tuple):
        of_image = build_step(step.model_copy(update={"keys": "image"}))  # whatever the channel is called
        changed: torch.Tensor = of_image({"image": image})["image"]
        return changed.as_tensor() if isinstance(changed, MetaTensor) else changed
    for part in image if step.channel_wise else [image]:
        mean = part.mean().item() if step.subtrahend is None else step.subtrahend
        deviation = part.std(unbiased=False).item() if step.divisor is None else step.divisor
        part.sub_(mean).div_(deviation or 1.0)
    return image


@dataclass(frozen=True)
class AxisTable:
    """For voxels of one grid, the two voxels along an axis of another grid between which they lie.

    Attributes:
        low, high: (n,) int64, equal where it lies on a voxel.
        weight: (n,) float64, the share of ``high``.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, coordinates: NDArray[np.float64]) -> AxisTable:
        """Return the table of coordinates, which are not below 0."""
        low = np.floor(coordinates)
        weight = coordinates - low
        first = low.astype(np.int64)
        return cls(first, first + (weight > 0), weight)

    def flipped(self, size: int) -> AxisTable:
        """Return the table with voxels counted from the other end of an axis."""
        return AxisTable(size - 1 - self.low, size - 1 - self.high, self.weight)


def parallel_tables(matrix: Matrix, shape: tuple[int, ...], onto: tuple[int, ...]) -> list[AxisTable] | None:
    """Return one table an axis, or None where the grids' axes are not parallel.

    Args:
        matrix: (4, 4), voxel of the grid that is computed to voxel of the grid that is read.
        shape: of the grid that is computed.
        onto: of the grid that is read.
    """
    tilt = np.abs(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) @ np.asarray(shape, float)
    if tilt.max() > PARALLEL_TOLERANCE:
        return None
    theta = to_norm_affine(torch.from_numpy(matrix)[None], onto, shape, align_corners=False)
    theta = theta[:, [2, 1, 0]][:, :, [2, 1, 0, 3]]  # torch counts axes from the last
    tables = []
    for axis in range(3):
        line = [1, 1, 1]
        line[axis] = shape[axis]
        grid = torch.nn.functional.affine_grid(theta, [1, 1, *line], align_corners=False)
        places = ((grid[..., 2 - axis].flatten() + 1) * onto[axis] - 1) / 2
        tables.append(AxisTable.of(places.clamp(0, onto[axis] - 1).numpy()))
    return tables


def places_of(matrix: Matrix, box: tuple[slice, ...], onto: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Return coordinates of a box of voxels on the grid that is read, clamped to it; one array (x, y, z) an axis."""
    steps = [np.arange(part.start, part.stop, dtype=np.float64) for part in box]
    i, j, k = steps[0][:, None, None], steps[1][None, :, None], steps[2][None, None, :]
    return [
        np.clip(row[0] * i + row[1] * j + row[2] * k + row[3], 0, size - 1)
        for row, size in zip(matrix[:3], onto, strict=True)
    ]


def interpolate(volume: torch.Tensor, corners: Corners) -> torch.Tensor:
    """Interpolate trilinearly at n points.

    Args:
        volume: (C, X, Y, Z).
        corners: per axis the low and the high voxel around each point, (n,) int64, and their shares, (n,); a corner
            whose share is 0 counts nothing.

    Returns:
        (C, n), in the type of the shares.
    """
    flat = volume.reshape(len(volume), -1)
    steps = (volume.shape[2] * volume.shape[3], volume.shape[3], 1)
    placed = [[(index * step, share) for index, share in pair] for pair, step in zip(corners, steps, strict=True)]
    first, share = corners[0][0]
    total = torch.zeros((len(flat), len(first)), dtype=share.dtype, device=volume.device)
    for (x, x_share), (y, y_share), (z, z_share) in itertools.product(*placed):
        total += flat.index_select(1, x + y + z).to(total.dtype) * (x_share * y_share * z_share)
    return total
