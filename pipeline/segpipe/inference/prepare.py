"""The way from a source's voxels to the network's: turned, resampled, cut and padded.

The geometry is MONAI's own: its transforms are run lazily on a tensor without memory, and tell where they lead.

From a source to the network's input, with the result of MONAI's own transforms and less time and memory.

Turning and resampling are one step that reads the source where it lies; intensities change in place. Cutting and
padding are MONAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from numpy.typing import NDArray

from segpipe.common.nifti import Header
from segpipe.inference.interpolation import resample
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
    Step,
    build_step,
)

Shape = tuple[int, int, int]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GridTransform:
    """How the voxels of a source and those of a network's input belong together.

    Attributes:
        source_shape: of the source.
        axes: for each turned axis, the axis of the source that it is.
        flips: for each turned axis, whether it counts from the source's end.
        forward: (4, 4), resampled voxel to turned voxel; None where nothing is resampled.
        backward: (4, 4), turned voxel to resampled voxel; None where nothing is resampled.
        resampled_shape: of the resampled grid; the turned one where nothing is resampled.
        seen: per axis the first resampled voxel that is not cut off, and the end; what was cut off has scores of 0.
        offset: the resampled voxel that is the first of the network's input; below 0 where that is padded.
        network_shape: of the network's input.
    """

    source_shape: Shape
    axes: Shape
    flips: tuple[bool, bool, bool]
    forward: Matrix | None
    backward: Matrix | None
    resampled_shape: Shape
    seen: tuple[tuple[int, int], ...] = ()
    offset: Shape = (0, 0, 0)
    network_shape: Shape = (0, 0, 0)

    @property
    def turned_shape(self) -> Shape:
        """The source's shape with its axes in the network's order."""
        return triple(self.source_shape[axis] for axis in self.axes)

    def turned(self, source: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (X, Y, Z, ...) on the source's grid with its axes as the network has them."""
        rest = range(3, source.ndim)
        return source.transpose(*self.axes, *rest)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def turned_and_spaced(header: Header, preprocessing: Preprocessing) -> tuple[GridTransform, Matrix]:
    """The way from a source to the resampled grid, and that grid's affine; of the last grids it is remembered.

    Args:
        header: of the source.
        preprocessing: the transforms of the closed list.
    """
    affine = tuple(header.affine.ravel().tolist())
    return _turned_and_spaced(triple(header.shape[:3]), affine, preprocessing.orientation, preprocessing.spacing)


@lru_cache(maxsize=4)  # a case is foreseen, then prepared, and the next one is read beside it
def _turned_and_spaced(
    shape: Shape, values: tuple[float, ...], turn: Orientation | None, resample: Spacing | None
) -> tuple[GridTransform, Matrix]:
    affine = np.array(values).reshape(4, 4)
    turning, spacing = (None if step is None else build_step(step) for step in (turn, resample))
    carrier = MetaTensor(torch.empty(()).expand(1, *shape), affine=torch.as_tensor(affine, dtype=torch.float64))
    if turning is not None:
        carrier = turning({"image": carrier}, lazy=True)["image"]
    turned_affine, turned_shape = _pending(carrier)
    step = np.linalg.solve(affine, turned_affine)[:3, :3]
    axes = triple(int(np.abs(column).argmax()) for column in step.T)
    flips = tuple(bool(column[axis] < 0) for column, axis in zip(step.T, axes, strict=True))
    if spacing is not None:
        carrier = spacing({"image": carrier}, lazy=True)["image"]
    spaced_affine, spaced_shape = _pending(carrier)
    forward, backward = (np.linalg.solve(turned_affine, spaced_affine), np.linalg.solve(spaced_affine, turned_affine))
    if turned_shape == spaced_shape:  # MONAI leaves voxels and affine alone where a grid hardly changes
        same = np.allclose(turned_affine, spaced_affine, atol=AFFINE_TOL)
        if same or np.allclose(forward, np.eye(4), atol=AFFINE_TOL):
            return GridTransform(shape, axes, flips, None, None, turned_shape), turned_affine  # type: ignore[arg-type]
    way = GridTransform(shape, axes, flips, forward, backward, spaced_shape)  # type: ignore[arg-type]
    return way, spaced_affine


def _pending(carrier: MetaTensor) -> tuple[Matrix, Shape]:
    affine = np.asarray(carrier.peek_pending_affine(), dtype=np.float64)
    return affine, triple(carrier.peek_pending_shape())


def triple(values: Any) -> Shape:
    """Three values as whole numbers."""
    x, y, z = (int(value) for value in values)
    return x, y, z


def prepare(source: Source, preprocessing: Preprocessing) -> tuple[torch.Tensor, GridTransform]:
    """The network's input (C, X, Y, Z) float32, and how it belongs to the source's voxels.

    The source's array is let go as soon as it is resampled, if nothing else holds it.
    """
    transforms = preprocessing.build_by_kind()
    way, affine = turned_and_spaced(source.header, preprocessing)
    image = _resampled(source, way)
    source.forget()
    image, way = _cut_and_padded(image, affine, way, transforms)
    for step in preprocessing.intensity:
        image = _scaled(image, step) if isinstance(step, ScaleRange) else _normalised(image, step, transforms)
    return image, way


def _cut_and_padded(
    image: torch.Tensor, affine: Matrix, way: GridTransform, transforms: Mapping[type[Step], Any]
) -> tuple[torch.Tensor, GridTransform]:
    offset, seen = (0, 0, 0), tuple((0, size) for size in way.resampled_shape)
    item = {"image": MetaTensor(image, affine=torch.tensor(affine))}
    for kind in (CropForeground, SpatialPad, DivisiblePad):
        if kind in transforms:
            item = transforms[kind](item)
            offset = triple(np.rint(np.linalg.solve(affine, np.asarray(item["image"].affine))[:3, 3]))
            if kind is CropForeground:
                seen = tuple(
                    (max(first, 0), min(first + size, whole))
                    for first, size, whole in zip(offset, item["image"].shape[1:], way.resampled_shape, strict=True)
                )
    image = item["image"].as_tensor().contiguous()
    return image, replace(way, offset=offset, seen=seen, network_shape=triple(image.shape[1:]))


def _resampled(source: Source, way: GridTransform) -> torch.Tensor:
    turned = torch.from_numpy(source.array).permute(0, *(axis + 1 for axis in way.axes))
    if way.forward is not None:
        return resample(turned, way.forward, way.resampled_shape, way.flips)
    flipped = [axis + 1 for axis, flip in enumerate(way.flips) if flip]
    return (turned.flip(flipped) if flipped else turned).to(torch.float32, copy=True).contiguous()


def _scaled(image: torch.Tensor, step: ScaleRange) -> torch.Tensor:
    """`ScaleIntensityRange` in place."""
    if step.a_max == step.a_min:
        return image.sub_(step.a_min) if step.b_min is None else image.sub_(step.a_min).add_(step.b_min)
    image.sub_(step.a_min).div_(step.a_max - step.a_min)
    if step.b_min is not None and step.b_max is not None:
        image.mul_(step.b_max - step.b_min).add_(step.b_min)
    return image.clamp_(step.b_min, step.b_max) if step.clip and (step.b_min, step.b_max) != (None, None) else image


def _normalised(image: torch.Tensor, step: Normalise, transforms: Mapping[type[Step], Any]) -> torch.Tensor:
    """`NormalizeIntensity`, in place where all voxels count alike."""
    if step.nonzero or isinstance(step.subtrahend, tuple) or isinstance(step.divisor, tuple):
        changed: torch.Tensor = transforms[Normalise]({"image": image})["image"]
        return changed.as_tensor() if isinstance(changed, MetaTensor) else changed
    for part in image if step.channel_wise else [image]:
        mean = part.mean().item() if step.subtrahend is None else step.subtrahend
        deviation = part.std(unbiased=False).item() if step.divisor is None else step.divisor
        part.sub_(mean).div_(deviation or 1.0)
    return image
