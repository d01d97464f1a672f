"""A generated image in which a network finds every label: a soft phantom, bent towards the labels by gradient.

Nobody's scan is in it, so it may be passed on. The search begins with a phantom. Where the network sees too
little of a label in it, Adam (Kingma and Ba, 2015) raises a smooth field on a coarse grid, added to the image, until
enough voxels of each label win over the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.data import make_phantom
from segpipe.inference import (
    CropForeground,
    DivisiblePad,
    Normalise,
    Orientation,
    Preprocessing,
    ScaleRange,
    Spacing,
    SpatialPad,
)

if TYPE_CHECKING:
    import torch


HOW = "a phantom, shapes that a program drew and nobody's scan"
HOW_BENT = f"{HOW}, changed by a smooth field that gradient descent through the network found"
COARSE = 4  # voxels to a node of the field
RATE = 0.08  # of the range of intensities, a step
WORK = 8e6  # voxels times steps
MARGIN = 1.0  # of the wished logit over the next
THICKER = 1.25  # slices than the network's, so that resampling is replayed as well
SLICES = 5  # where a window is one
MR_RANGE = (0.0, 1000.0)


@dataclass(frozen=True, eq=False)
class FoundImage:
    """An image for a network.

    Attributes:
        voxels: (C, X, Y, Z) in units of the file, int16 where that is fine enough, else float32.
        affine: (4, 4) voxel index to RAS mm.
        steps: of the search.
        reached: whether every label has the wished number of voxels in the first window.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    steps: int
    reached: bool


@dataclass(frozen=True)
class Goal:
    """What to search for.

    Attributes:
        preprocessing: the deterministic transforms.
        roi: (X, Y, Z) window of the network.
        channels: of the input.
        exclusive: whether channel 0 is background and the largest score wins, or each channel is for itself.
        seen: range of intensities of each channel in training, where it is known.
        voxels: of each label, in one window.
        seed: of the phantom.
    """

    preprocessing: Preprocessing
    roi: tuple[int, int, int]
    channels: int
    exclusive: bool = True
    seen: tuple[tuple[float, float], ...] = ()
    voxels: int = 400
    seed: int = 0


def search_image(goal: Goal, network: Callable[[torch.Tensor], Any]) -> FoundImage:
    """Search for an image; the same goal, network and machine give the same bits.

    Args:
        goal: what to search for.
        network: (1, C, X, Y, Z) float32 to logits, in evaluation mode, without gradients of its own.
    """
    import torch
    from torch.nn import functional

    inner, outer = grids(goal)
    low, high = _ranges(goal)
    begun = torch.from_numpy(_phantom(goal, outer))
    field = torch.zeros(1, goal.channels, *(-(-size // COARSE) + 1 for size in outer), requires_grad=True)
    first = [SLICES // 2 if size == 1 else 0 for size in goal.roi]
    window = (..., *(slice(start, start + size) for start, size in zip(first, goal.roi, strict=True)))

    def look() -> tuple[torch.Tensor, torch.Tensor]:
        grown = functional.interpolate(field, outer, mode="trilinear", align_corners=True)
        image = low + (begun + grown).clamp(0, 1) * (high - low)
        seen = functional.interpolate(image, inner, mode="trilinear", align_corners=True)
        answer = network(_scaled(seen, goal.preprocessing)[window])
        logits = answer[0] if isinstance(answer, (list, tuple)) else answer
        return image, _margins(logits[0].flatten(1), goal.exclusive)

    with torch.no_grad():  # gradients take much more memory, and often none are needed
        image, margins = look()
    adam, steps = torch.optim.Adam([field], RATE), 0
    most = min(100, max(25, int(WORK // np.prod(inner))))
    while not (reached := bool((margins > 0).sum(1).min() >= goal.voxels)) and steps < most:
        image, margins = look() if steps == 0 else (image, margins)
        best = margins.topk(min(2 * goal.voxels, margins.shape[1]), dim=1).values
        adam.zero_grad()
        functional.softplus(MARGIN - best).mean().backward()
        adam.step()
        steps += 1
        image, margins = look()
    return FoundImage(*_as_file(image.detach()[0].numpy(), goal, inner), steps, reached)


def grids(goal: Goal) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the sizes of the network's grid, two windows where they overlap, and of the file's, oriented alike."""
    find = goal.preprocessing.find
    inner = np.array([size if size > 1 else SLICES for size in goal.roi])
    inner[0] += inner[0] // 4
    if pad := find(SpatialPad):
        inner = np.maximum(inner, pad.spatial_size)
    divisible = find(DivisiblePad)
    divisor = np.array(divisible.k if divisible else 1)
    inner = -(-inner // divisor) * divisor
    outer = inner.copy()
    if find(Spacing):
        outer[2] = max(2, round(inner[2] / THICKER))
    return _triple(inner), _triple(outer)


def _triple(sizes: NDArray[np.int64]) -> tuple[int, int, int]:
    x, y, z = (int(size) for size in sizes)
    return x, y, z


def _ranges(goal: Goal) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the darkest and the brightest value of a file, (1, C, 1, 1, 1) each."""
    import torch

    steps = goal.preprocessing.intensity
    first = steps[0] if steps and goal.preprocessing.channels_of(steps[0]) is None else None
    if isinstance(first, ScaleRange):
        pairs: Any = [(first.a_min, first.a_max)] * goal.channels
    elif len(goal.seen) == goal.channels and all(low < high for low, high in goal.seen):
        pairs = goal.seen
    elif isinstance(first, Normalise) and first.subtrahend is not None and first.divisor is not None:
        middle, width = (np.broadcast_to(each, goal.channels) for each in (first.subtrahend, first.divisor))
        pairs = [*zip(middle - 2 * width, middle + 4 * width, strict=True)]
    else:
        pairs = [MR_RANGE] * goal.channels
    low, high = torch.tensor(pairs, dtype=torch.float32).T.reshape(2, 1, -1, 1, 1, 1)
    return low, high


def _phantom(goal: Goal, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Draw (1, C, X, Y, Z) in 0 to 1: one patient, scanned once for each channel."""
    scans = [
        make_phantom(goal.seed + channel, shape, tilt_deg=0, noise=8, patient_seed=goal.seed).image
        for channel in range(goal.channels)
    ]
    return np.stack([scan.astype(np.float32) / max(1, scan.max()) for scan in scans])[None]


def _margins(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Return how far each label's logit (C, voxels) is above the best of the others, or above 0 where not exclusive."""
    import torch

    if not exclusive:
        return logits
    best, second = logits.topk(2, dim=0).values
    return (logits - torch.where(logits == best, second, best))[1:]


def _scaled(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Apply the intensity transforms of MONAI in a form that gradients pass through."""
    import torch

    for step in preprocessing.intensity:
        channels = preprocessing.channels_of(step)
        parts = [
            _changed(part, step) if channels is None or channel in channels else part
            for channel, part in enumerate([image] if channels is None else image.split(1, dim=1))
        ]
        image = torch.cat(parts, dim=1)
    return image


def _changed(image: torch.Tensor, step: ScaleRange | Normalise) -> torch.Tensor:
    return _ranged(image, step) if isinstance(step, ScaleRange) else _normalised(image, step)


def _ranged(image: torch.Tensor, step: ScaleRange) -> torch.Tensor:
    image = (image - step.a_min) / (step.a_max - step.a_min)
    if step.b_min is not None and step.b_max is not None:
        image = image * (step.b_max - step.b_min) + step.b_min
    return image.clamp(step.b_min, step.b_max) if step.clip else image


def _normalised(image: torch.Tensor, step: Normalise) -> torch.Tensor:
    import torch

    mask = (image != 0) if step.nonzero else torch.ones_like(image, dtype=torch.bool)
    axes = (2, 3, 4) if step.channel_wise else (1, 2, 3, 4)
    count = mask.sum(axes, keepdim=True).clamp(min=1)
    mean = (image * mask).sum(axes, keepdim=True) / count
    deviation = (((image - mean) * mask).square().sum(axes, keepdim=True) / count).sqrt()
    if step.subtrahend is not None:
        mean = torch.tensor(step.subtrahend).reshape(1, -1, 1, 1, 1)
    if step.divisor is not None:
        deviation = torch.tensor(step.divisor).reshape(1, -1, 1, 1, 1)
    return torch.where(mask, (image - mean) / torch.where(deviation == 0, 1.0, deviation), image)


def _as_file(
    image: NDArray[np.float32], goal: Goal, inner: tuple[int, int, int]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn it over two axes where the model turns it back, on a grid whose corners are those of the network's."""
    import nibabel as nib

    resampling, orientation = goal.preprocessing.find(Spacing), goal.preprocessing.find(Orientation)
    outer = np.array(image.shape[1:])
    spacing = np.array(resampling.pixdim) if resampling else np.ones(3)
    codes = orientation.axcodes or "RAS" if orientation else "RAS"
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        turned = -1 if axis < 2 and orientation else 1
        edge = spacing[axis] * (inner[axis] - 1) / (outer[axis] - 1)
        affine[int(world), axis] = turned * sign * edge
        image = np.flip(image, axis + 1) if turned < 0 else image
    affine[:3, 3] = -affine[:3, :3] @ ((outer - 1) / 2)
    affine[3, 3] = 1
    low, high = (each.numpy().ravel() for each in _ranges(goal))
    if min(high - low) >= 200 and max(abs(low).max(), abs(high).max()) <= 32767:
        image = np.round(image).astype(np.int16)
    image = np.ascontiguousarray(image)
    if goal.preprocessing.find(CropForeground):  # all of it is foreground if two corners are
        for corner in ((0, 0, 0), (-1, -1, -1)):
            image[(0, *corner)] = max(image[(0, *corner)], 1)
    return image, affine.astype(np.float32).astype(np.float64)  # as a header keeps it
