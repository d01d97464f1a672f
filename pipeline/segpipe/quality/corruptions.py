"""Images spoiled on purpose, each kind in four grades: what a quality model learns bad results from.

Each works on a case as it was read: channels (C, X, Y, Z), a truth (X, Y, Z) and the affine. Where the image is turned
or cut, so is its truth; where its header lies, both have the header that lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRADES = (1, 2, 3, 4)
Voxels = NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True, eq=False)
class Labelled:
    """An image with its truth.

    Attributes:
        image: (C, X, Y, Z).
        truth: (X, Y, Z).
        affine: (4, 4), voxel index to mm, RAS+.
    """

    image: Voxels
    truth: NDArray[np.uint8]
    affine: NDArray[np.float64]


def spoiled(case: Labelled, kind: str, grade: int, seed: str) -> Labelled:
    """Return a case spoiled; the same for the same words.

    Args:
        case: as it was read.
        kind: one of `KINDS_OF_CORRUPTION`.
        grade: 1 to 4, the worst.
        seed: words that what is random is drawn from.
    """
    digest = hashlib.sha256(f"{seed} {kind} {grade}".encode()).digest()
    return KINDS_OF_CORRUPTION[kind](case, grade - 1, np.random.default_rng(int.from_bytes(digest[:8], "big")))


def _each_channel(change: Callable[[Voxels, int, Random], Any]) -> Callable[[Labelled, int, Random], Labelled]:
    def apply(case: Labelled, grade: int, random: Random) -> Labelled:
        state = random.bit_generator.state
        channels = []
        for channel in case.image:  # what is random is the same in all of them
            random.bit_generator.state = state
            channels.append(np.asarray(change(channel, grade, random), np.float32))
        return replace(case, image=np.stack(channels))

    return apply


@_each_channel
def _noise(values: Voxels, grade: int, random: Random) -> Any:
    return values + random.normal(0, (0.3, 0.7, 1.5, 3.0)[grade] * float(values.std()), values.shape)


@_each_channel
def _blur(values: Voxels, grade: int, random: Random) -> Any:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(values, (1.0, 1.75, 2.5, 4.0)[grade])


@_each_channel
def _ghosts(values: Voxels, grade: int, random: Random) -> Any:
    """Weaken every few lines of k-space: copies of the image, shifted along the phase-encoding axis."""
    axis, every = int(random.integers(3)), int(random.integers(2, 5))
    lines = np.fft.fft(values, axis=axis)
    weak = [slice(None)] * 3
    weak[axis] = slice(every, None, every)
    lines[tuple(weak)] *= 1 - (0.3, 0.5, 0.75, 0.95)[grade]
    return np.fft.ifft(lines, axis=axis).real


@_each_channel
def _motion(values: Voxels, grade: int, random: Random) -> Any:
    """Take parts of k-space from the image in other places, as of somebody who moves between them."""
    axis, parts = int(random.integers(3)), 2 + grade
    moved = np.fft.fft(values, axis=axis)
    edges = np.sort(random.choice(np.arange(1, values.shape[axis]), min(parts, values.shape[axis] - 1), replace=False))
    most = (1.5, 3.0, 5.0, 9.0)[grade]
    for first, end in zip(edges, [*edges[1:], values.shape[axis]], strict=True):
        shift = np.rint(random.uniform(-most, most, 3)).astype(int)
        other = np.fft.fft(np.roll(values, shift, axis=(0, 1, 2)), axis=axis)
        part = [slice(None)] * 3
        part[axis] = slice(int(first), int(end))
        moved[tuple(part)] = other[tuple(part)]
    return np.abs(np.fft.ifft(moved, axis=axis)) * np.sign(values if values.min() < 0 else 1)


@_each_channel
def _shading(values: Voxels, grade: int, random: Random) -> Any:
    """Multiply by a field that rises across the image, as of a surface coil."""
    grids = np.meshgrid(*(np.linspace(-1, 1, size) for size in values.shape), indexing="ij", sparse=True)
    field = sum(weight * grid for weight, grid in zip(random.normal(0, 1, 3), grids, strict=True))
    field = np.asarray(field) / max(float(np.abs(field).max()), 1e-6)
    low = float(values.min())
    return (values - low) * np.exp((0.4, 0.8, 1.4, 2.2)[grade] * field) + low


@_each_channel
def _contrast(values: Voxels, grade: int, random: Random) -> Any:
    """Bend the scale of values: gently, strongly, folded about its middle, upside down."""
    low, middle, high = np.percentile(values, (1, 50, 99))
    share = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    if grade < 2:
        exponent = (2.0, 4.0)[grade] if random.random() < 0.5 else (0.5, 0.25)[grade]
        return low + (high - low) * share**exponent
    return np.abs(values - middle) if grade == 2 else low + high - values


@_each_channel
def _void(values: Voxels, grade: int, random: Random) -> Any:
    """Empty a ball, with a bright rim, as an implant leaves in MRI."""
    radius = (0.15, 0.22, 0.3, 0.4)[grade] * min(values.shape)
    centre = [random.uniform(0.3, 0.7) * size for size in values.shape]
    grids = np.meshgrid(*(np.arange(size) for size in values.shape), indexing="ij", sparse=True)
    distance = np.sqrt(sum((grid - middle) ** 2 for grid, middle in zip(grids, centre, strict=True)))
    emptied = np.where(distance < radius, values.min(), values)
    return np.where((distance >= radius) & (distance < 1.15 * radius), values.max(), emptied)


def _crop(case: Labelled, grade: int, random: Random) -> Labelled:
    """Cut off a part of the image, from one of its sides."""
    axis, lower = int(random.integers(3)), bool(random.random() < 0.5)
    size = case.truth.shape[axis]
    cut = min(round((0.2, 0.35, 0.5, 0.65)[grade] * size), size - 4)
    part = slice(cut, None) if lower else slice(0, size - cut)
    box = [slice(None)] * 3
    box[axis] = part
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (cut if lower else 0)
    return Labelled(case.image[(slice(None), *box)], case.truth[tuple(box)], affine)


def _spacing(case: Labelled, grade: int, random: Random) -> Labelled:
    """State other voxel sizes than there are."""
    factor = (1.2, 1.4, 1.7, 2.2)[grade]
    factor = factor if random.random() < 0.5 else 1 / factor
    factors = np.ones(3) if grade % 2 else np.full(3, factor)
    if grade % 2:
        factors[int(random.integers(3))] = factor
    return replace(case, affine=case.affine @ np.diag([*factors, 1.0]))


def _orientation(case: Labelled, grade: int, random: Random) -> Labelled:
    """Turn the voxels under a header that stays: upside down, back to front, both, axes exchanged."""
    nearest = np.abs(case.affine[:3, :3]).argmax(axis=0)  # the axis of RAS that each axis of the array is nearest to
    axes = [int(np.flatnonzero(nearest == ras)[0]) if ras in nearest else ras for ras in range(3)]
    _, front, head = axes

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        if grade == 3:
            return np.ascontiguousarray(np.swapaxes(array, front, head))
        return np.ascontiguousarray(np.flip(array, ((head,), (front,), (front, head))[grade]))

    return replace(case, image=np.stack([turned(channel) for channel in case.image]), truth=turned(case.truth))


KINDS_OF_CORRUPTION: dict[str, Callable[[Labelled, int, Random], Labelled]] = {
    "noise": _noise,
    "blur": _blur,
    "ghosts": _ghosts,
    "motion": _motion,
    "shading": _shading,
    "contrast": _contrast,
    "void": _void,
    "crop": _crop,
    "spacing": _spacing,
    "orientation": _orientation,
}
