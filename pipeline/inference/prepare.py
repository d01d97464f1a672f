"""From a source to the network's input, with the result of MONAI's own transforms and less time and memory.

Turning and resampling are one step that reads the source where it lies; intensities change in place. Cutting and
padding are MONAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from pipeline.inference.grids import Matrix, Way, triple, turned_and_spaced
from pipeline.inference.linear import resample
from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.source import Source
from pipeline.inference.steps import (
    CropForeground,
    DivisiblePad,
    Normalise,
    ScaleRange,
    SpatialPad,
    Step,
)


def prepare(source: Source, preprocessing: Preprocessing) -> tuple[torch.Tensor, Way]:
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
    image: torch.Tensor, affine: Matrix, way: Way, transforms: Mapping[type[Step], Any]
) -> tuple[torch.Tensor, Way]:
    offset, seen = (0, 0, 0), tuple((0, size) for size in way.resampled_shape)
    item = {"image": MetaTensor(image, affine=torch.tensor(affine))}
    for kind in (CropForeground, SpatialPad, DivisiblePad):
        if kind in transforms:
            item = transforms[kind](item)
            offset = triple(np.rint(np.linalg.solve(affine, np.asarray(item["image"].affine))[:3, 3]))
            if kind is CropForeground:
                seen = tuple(
                    (max(first, 0), min(first + size, whole))
                    for first, size, whole in zip(
                        offset, item["image"].shape[1:], way.resampled_shape, strict=True
                    )
                )
    image = item["image"].as_tensor().contiguous()
    return image, replace(way, offset=offset, seen=seen, network_shape=triple(image.shape[1:]))


def _resampled(source: Source, way: Way) -> torch.Tensor:
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
    return (
        image.clamp_(step.b_min, step.b_max)
        if step.clip and (step.b_min, step.b_max) != (None, None)
        else image
    )


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
