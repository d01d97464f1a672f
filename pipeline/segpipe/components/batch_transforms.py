"""Random transforms of a whole batch, on its device: only the cases that are drawn are computed, in few operations.

Each follows what nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) does to a case; ranges are arguments,
and the fragments of ``configs/augment`` name where theirs come from. Images are (B, C, X, Y, Z), label maps
(B, 1, X, Y, Z).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.utils import CommonKeys, convert_to_tensor
from torch.nn import functional

from segpipe.components.epoch_sampling import DRAW
from segpipe.errors import UsageError

Pair = Sequence[float]


class BatchAugmentation:
    """Transform each batch of a training after it was loaded, on the trainer's device.

    What is drawn for a patch depends on its seed in the batch (`EpochSampler`) and the run's, for a batch without
    seeds on seed and step alone; so a resumed run draws the same.

    Args:
        transforms: in their order; none leaves the batch as it is.
        seed: the run's seed.
    """

    def __init__(self, transforms: Sequence[BatchTransform] = (), seed: int = 0) -> None:
        if not isinstance(transforms, Sequence) or not all(isinstance(each, BatchTransform) for each in transforms):
            raise UsageError(
                "batch_transforms must be a list of transforms of a batch",
                found=str(transforms)[:200],
                expected="such as {_target_: segpipe.components.BatchMirror, axes: [0]}",
            )
        self.transforms = tuple(transforms)
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self.transforms:
            engine.add_event_handler(Events.ITERATION_STARTED, self._transform)

    def _transform(self, engine: Engine) -> None:
        engine.state.batch = self(engine.state.batch, engine.state.iteration, engine.state.device)

    def __call__(self, batch: dict[str, Any], step: int = 0, device: Any = "cpu") -> dict[str, Any]:
        """Return a batch with its images and label maps transformed, on the device, as plain tensors."""
        if not self.transforms:
            return batch
        keys = (CommonKeys.IMAGE, CommonKeys.LABEL)
        image, label = (convert_to_tensor(batch[key], device=device, track_meta=False) for key in keys)
        with torch.no_grad():
            if DRAW in batch:
                seeds = torch.as_tensor(batch[DRAW]).tolist()
                draws = [Draw.of(self.seed, seed, image.device) for seed in seeds]
                cases = [*map(self._transformed, image.split(1), label.split(1), draws)]
                image, label = (torch.cat(each) for each in zip(*cases, strict=True))
            else:
                image, label = self._transformed(image, label, Draw.of(self.seed, step, image.device))
        return {**batch, CommonKeys.IMAGE: image, CommonKeys.LABEL: label}

    def _transformed(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        for transform in self.transforms:
            image, label = transform(image, label, draw)
        return image, label


@dataclass(frozen=True)
class Draw:
    """Where what is random comes from: numbers on the CPU, the same for each device, and noise where it is used."""

    numbers: np.random.Generator
    noise: torch.Generator

    @classmethod
    def of(cls, seed: int, step: int, device: torch.device) -> Draw:
        """Return the one of a step, or of a patch."""
        numbers = np.random.default_rng([seed, step])
        return cls(numbers, torch.Generator(device).manual_seed(int(numbers.integers(2**62))))

    def chosen(self, count: int, prob: float) -> torch.Tensor:
        """Return the places of those that a transform is applied to."""
        return torch.from_numpy(np.flatnonzero(self.numbers.random(count) < prob))

    def uniform(self, bounds: Pair, size: int | tuple[int, ...]) -> torch.Tensor:
        """Return numbers between two bounds."""
        return torch.from_numpy(self.numbers.uniform(bounds[0], bounds[1], size)).float()

    def around_one(self, bounds: Pair, size: tuple[int, ...]) -> torch.Tensor:
        """Return factors between two bounds, as often below 1 as above it where 1 lies between them."""
        least, most = bounds
        if not least < 1 < most:
            return self.uniform(bounds, size)
        below = self.numbers.random(size) < 0.5
        low, high = self.numbers.uniform(least, 1.0, size), self.numbers.uniform(1.0, most, size)
        return torch.from_numpy(np.where(below, low, high)).float()


class BatchTransform(ABC):
    """What happens to some cases of a batch.

    Args:
        prob: share of the cases.
    """

    moves = False  # whether it moves voxels, so that it could swap sides

    def __init__(self, prob: float) -> None:
        self.prob = self._share("prob", prob)

    def _share(self, name: str, value: Any) -> float:
        """Return a number from 0 to 1, as which an argument was given."""
        return self._bounds(name, (value, value), 0, 1)[0]

    def _bounds(self, name: str, values: Any, low: float = 0.0, high: float = float("inf")) -> tuple[float, float]:
        """Return the two ends of a range, as which an argument was given.

        Raises:
            UsageError: they are no numbers, not in order or out of what makes sense.
        """
        pair = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
        if (
            len(pair) == 2
            and all(isinstance(each, (int, float)) for each in pair)
            and low <= pair[0] <= pair[1] <= high
        ):
            return float(pair[0]), float(pair[1])
        raise UsageError(
            f"{type(self).__name__} cannot use its {name}",
            found=repr(values if not pair or pair[0] is not pair[-1] else pair[0]),
            expected=f"numbers in order, from {low:g} to {high:g}",
        )

    def __call__(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and label map of all cases, those that were drawn transformed."""
        chosen = draw.chosen(len(image), self.prob).to(image.device)
        if not len(chosen):
            return image, label
        images, labels = self.apply(image[chosen], label[chosen], draw)
        image = image.index_copy(0, chosen, images)
        return image, label.index_copy(0, chosen, labels) if self.moves else label

    @abstractmethod
    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""


class BatchAffine(BatchTransform):
    """Rotate about each axis and scale, about the centre of the patch; what lies outside is as its border.

    Args:
        prob: share of the cases that are rotated, and, drawn anew, of those that are scaled.
        degrees: largest angle about each axis.
        scale: bounds of the edge of what is looked at, as a share of the patch, the same along all axes: above 1 organs
            become smaller.
        sliced_axis: 0 to 2: the axis about which alone patches are turned, and along which they are not scaled; None
            for all.
    """

    moves = True

    def __init__(
        self, prob: float = 0.2, degrees: float = 30.0, scale: Pair = (0.7, 1.4), sliced_axis: int | None = None
    ) -> None:
        super().__init__(prob)
        self.sliced_axis = sliced_axis
        self.degrees = self._bounds("degrees", (degrees, degrees), 0, 180)[0]
        self.scale = self._bounds("scale", scale, 0.1, 10)

    def __call__(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and label map of all cases, those that were drawn transformed."""
        count = len(image)
        turned, scaled = (draw.numbers.random(count) < self.prob for _ in range(2))
        angles = np.where(turned[:, None], draw.numbers.uniform(-self.degrees, self.degrees, (count, 3)), 0.0)
        scales = np.where(scaled, draw.numbers.uniform(self.scale[0], self.scale[1], count), 1.0)
        chosen = torch.from_numpy(np.flatnonzero(turned | scaled))
        if not len(chosen):
            return image, label
        edges = np.repeat(scales[:, None], 3, axis=1)
        if self.sliced_axis is not None:
            others = [axis for axis in range(3) if axis != self.sliced_axis]
            angles[:, others], edges[:, self.sliced_axis] = 0.0, 1.0
        matrices = torch.from_numpy(edges)[:, None, :] * rotations(torch.from_numpy(np.deg2rad(angles)))
        where = chosen.to(image.device)
        images, labels = resampled(image[where], label[where], matrices[chosen].float().to(image.device))
        return image.index_copy(0, where, images), label.index_copy(0, where, labels)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform all cases as if each were drawn."""
        return BatchAffine(1.0, self.degrees, self.scale, self.sliced_axis)(image, label, draw)


def rotations(angles: torch.Tensor) -> torch.Tensor:
    """Return the rotations about x, then y, then z by angles of shape (N, 3) in radians, as (N, 3, 3)."""
    product = torch.eye(3, dtype=angles.dtype).expand(len(angles), 3, 3)
    for axis in range(3):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn[:, one, one], turn[:, one, other], turn[:, other, one], turn[:, other, other] = cosine, -sine, sine, cosine
        product = turn @ product
    return product


def resampled(image: torch.Tensor, label: torch.Tensor, matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Look at each case through a matrix: image linear, label map nearest, both at the same places.

    Args:
        image: (B, C, X, Y, Z).
        label: (B, 1, X, Y, Z).
        matrices: (B, 3, 3), from voxels of the output to those of the input, about the centre.
    """
    edges = torch.tensor(image.shape[2:], dtype=matrices.dtype, device=matrices.device)
    within = matrices * edges[None, None, :] / edges[None, :, None]  # in halves of an edge, as grid_sample counts
    theta = functional.pad(within.flip(1, 2), (0, 1))  # which has the axes the other way round
    grid = functional.affine_grid(theta, [len(image), 1, *image.shape[2:]], align_corners=False)
    moved = functional.grid_sample(image, grid.to(image.dtype), "bilinear", "border", align_corners=False)
    labels = functional.grid_sample(label.float(), grid.float(), "nearest", "border", align_corners=False)
    return moved, labels.to(label.dtype)


class BatchMirror(BatchTransform):
    """Mirror along each of some axes, for labels that mean the same on both sides.

    Args:
        axes: of the patch, from 0.
        prob: share of the cases, for each axis anew.
    """

    moves = True

    def __init__(self, axes: Sequence[int] = (0, 1, 2), prob: float = 0.5) -> None:
        super().__init__(prob)
        if not isinstance(axes, Sequence) or not set(axes) <= {0, 1, 2}:
            raise UsageError("BatchMirror cannot use its axes", found=repr(axes), expected="a list of 0, 1 and 2")
        self.axes = tuple(axes)

    def __call__(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and label map of all cases, those that were drawn mirrored."""
        drawn = [set(draw.chosen(len(image), self.prob).tolist()) for _ in self.axes]
        of_cases = [
            [1 + axis for axis, cases in zip(self.axes, drawn, strict=True) if case in cases]
            for case in range(len(image))
        ]
        image, label = (
            torch.stack([case.flip(axes) if axes else case for case, axes in zip(part, of_cases, strict=True)])
            for part in (image, label)
        )
        return image, label

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Mirror all cases along all axes."""
        axes = [2 + axis for axis in self.axes]
        return image.flip(axes), label.flip(axes)


class BatchNoise(BatchTransform):
    """Add Gaussian noise, the same to all channels.

    Args:
        prob: share of the cases.
        std: bounds of its standard deviation.
    """

    def __init__(self, prob: float = 0.1, std: Pair = (0.0, 0.1)) -> None:
        super().__init__(prob)
        self.std = self._bounds("std", std)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        size = (len(image), 1, *image.shape[2:])
        noise = torch.randn(size, generator=draw.noise, device=image.device, dtype=image.dtype)
        return image + noise * _of_each(draw.uniform(self.std, (len(image), 1)), image), label


class BatchBlur(BatchTransform):
    """Blur by a Gaussian, channel by channel and axis by axis.

    Args:
        prob: share of the cases.
        sigma: bounds of its standard deviation, in voxels.
        channel_prob: share of the channels of a case that was drawn.
    """

    def __init__(self, prob: float = 0.2, sigma: Pair = (0.5, 1.0), channel_prob: float = 0.5) -> None:
        super().__init__(prob)
        self.sigma, self.channel_prob = self._bounds("sigma", sigma, 0.01), self._share("channel_prob", channel_prob)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        channels = image.flatten(0, 1).clone()
        for place in draw.chosen(len(channels), self.channel_prob).tolist():
            sigmas = draw.uniform(self.sigma, 3)
            kernels = [gaussian_1d(sigma, truncated=4.0).to(channels) for sigma in sigmas]
            channels[place] = separable_filtering(channels[place][None, None], kernels, mode="replicate")[0, 0]
        return channels.view_as(image), label


class BatchBrightness(BatchTransform):
    """Multiply the values of each channel by a factor.

    Args:
        prob: share of the cases.
        factor: bounds, around 1.
    """

    def __init__(self, prob: float = 0.15, factor: Pair = (0.75, 1.25)) -> None:
        super().__init__(prob)
        self.factor = self._bounds("factor", factor)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        return image * _of_each(draw.around_one(self.factor, tuple(image.shape[:2])), image), label


class BatchContrast(BatchTransform):
    """Stretch the values of each channel about their mean, within the values that it had.

    Args:
        prob: share of the cases.
        factor: bounds, around 1.
    """

    def __init__(self, prob: float = 0.15, factor: Pair = (0.75, 1.25)) -> None:
        super().__init__(prob)
        self.factor = self._bounds("factor", factor)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        mean = image.mean(SPATIAL, keepdim=True)
        factor = _of_each(draw.around_one(self.factor, tuple(image.shape[:2])), image)
        return ((image - mean) * factor + mean).clamp(image.amin(SPATIAL, True), image.amax(SPATIAL, True)), label


class BatchLowResolution(BatchTransform):
    """Take every so many-th voxel of a channel, and bring it back to its grid by linear interpolation.

    Args:
        prob: share of the cases.
        zoom: bounds of the share of voxels that is left along each axis.
        channel_prob: share of the channels of a case that was drawn.
    """

    def __init__(self, prob: float = 0.25, zoom: Pair = (0.5, 1.0), channel_prob: float = 0.5) -> None:
        super().__init__(prob)
        self.zoom, self.channel_prob = self._bounds("zoom", zoom, 0.01, 1), self._share("channel_prob", channel_prob)

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        channels = image.flatten(0, 1).clone()
        for place in draw.chosen(len(channels), self.channel_prob).tolist():
            zoom = float(draw.uniform(self.zoom, 1))
            size = [max(1, round(zoom * edge)) for edge in image.shape[2:]]
            small = functional.interpolate(channels[place][None, None], size, mode="nearest-exact")
            channels[place] = functional.interpolate(small, list(image.shape[2:]), mode="trilinear")[0, 0]
        return channels.view_as(image), label


class BatchGamma(BatchTransform):
    """Raise the values of each channel, brought to 0 to 1, to a power; mean and standard deviation stay.

    Args:
        prob: share of the cases.
        gamma: bounds of the power, around 1.
        invert: of the image turned upside down, so that bright values are spread instead of dark ones.
    """

    def __init__(self, prob: float = 0.3, gamma: Pair = (0.7, 1.5), invert: bool = False) -> None:
        super().__init__(prob)
        self.gamma, self.sign = self._bounds("gamma", gamma, 0.01), -1.0 if invert else 1.0

    def apply(self, image: torch.Tensor, label: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform the cases that were drawn."""
        x = self.sign * image
        low, high = x.amin(SPATIAL, True), x.amax(SPATIAL, True)
        gamma = _of_each(draw.around_one(self.gamma, tuple(image.shape[:2])), image)
        bent = ((x - low) / (high - low).clamp(min=TINY)) ** gamma
        std, mean = torch.std_mean(x, SPATIAL, keepdim=True)
        of_bent, middle = torch.std_mean(bent, SPATIAL, keepdim=True)
        return self.sign * ((bent - middle) / of_bent.clamp(min=TINY) * std + mean), label


SPATIAL = (2, 3, 4)
TINY = 1e-7


def _of_each(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return numbers of shape (B, C) or (B, 1) as they are broadcast over an image."""
    return values.to(image)[..., None, None, None]
