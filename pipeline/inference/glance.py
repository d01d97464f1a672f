"""What is kept of an image once its voxels are let go: enough to show a slice of it and to compare its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.source import Source
from pipeline.nifti import Header

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLES = 1_000_000  # voxels, enough for percentiles
MOST_PIXELS = 256  # along a side of the slice that is shown


@dataclass(frozen=True, eq=False)
class Glance:
    """A look at one case.

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


def look_at(source: Source) -> Glance:
    """Look at a case before its voxels are let go."""
    intensity = [_percentiles(channel) for channel in source.array]
    normal = _normal(source.header)
    x, y, z = (
        1 if axis == normal else math.ceil(size / MOST_PIXELS)
        for axis, size in enumerate(source.header.shape[:3])
    )
    seen = source.array[0, ::x, ::y, ::z]
    low, high = intensity[0][0], intensity[0][-1]
    grey = np.empty(seen.shape, np.uint8)
    for index in range(
        seen.shape[2]
    ):  # a plane at a time, as it lies in most files: what is computed on is larger
        plane = (seen[..., index].astype(np.float32) - low) * (255 / (high - low or 1.0))
        grey[..., index] = np.clip(plane, 0, 255).astype(np.uint8)
    return Glance(intensity, grey, (x, y, z), normal)


def save_slice(
    path: str | Path, glance: Glance, labels: NDArray[np.uint8], grid: Header, regions: int = 0
) -> None:
    """Write the slice with most labelled voxels (without labels the middle one) as ``.npz``.

    Its arrays are ``image`` and ``labels``, (X, Y, Z) with one voxel along the normal and axes towards right, front and
    head; ``spacing_mm`` and ``normal`` of these axes; ``index`` and ``count`` of the slice in the image; ``regions``
    is 0, or how many bits of ``labels`` are regions.

    Raises:
        OSError: it cannot be written.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    others = tuple(axis for axis in range(3) if axis != glance.normal)
    areas = np.count_nonzero(labels, axis=others)
    index = int(areas.argmax()) if areas.any() else labels.shape[glance.normal] // 2
    cut: list[slice] = [slice(None, None, step) for step in glance.steps]
    cut[glance.normal] = slice(index, index + 1)
    thin: list[slice] = [slice(None)] * 3
    thin[glance.normal] = slice(index, index + 1)
    ways = io_orientation(grid.affine)
    pixel_mm = [edge * step for edge, step in zip(grid.spacing_mm, glance.steps, strict=True)]
    with Path(path).open("wb") as stream:
        np.savez(
            stream, image=apply_orientation(glance.grey[tuple(thin)], ways),
            labels=apply_orientation(labels[tuple(cut)], ways), spacing_mm=along_ras(pixel_mm, grid),
            normal=int(ways[glance.normal, 0]), index=index, count=labels.shape[glance.normal], regions=regions,
        )  # fmt: skip


def along_ras(edges: Sequence[float], grid: Header) -> list[float]:
    """Lengths along a grid's axes, in the order of the axes of RAS that these are nearest to."""
    from nibabel.orientations import io_orientation

    targets = io_orientation(grid.affine)[:, 0].astype(int)
    return [float(edges[int(axis)]) for axis in np.argsort(targets)]


def _percentiles(channel: NDArray[Any]) -> list[float]:
    step = math.ceil((channel.size / SAMPLES) ** (1 / 3))
    values = channel[::step, ::step, ::step]
    return [float(f"{value:.6g}") for value in np.percentile(values, PERCENTILES)]


def _normal(header: Header) -> int:
    longest = max(header.spacing_mm)
    candidates = [axis for axis, edge in enumerate(header.spacing_mm) if edge > 0.99 * longest]
    upward: Sequence[float] = np.abs(header.affine[2, :3]) / np.asarray(header.spacing_mm)
    return max(candidates, key=lambda axis: upward[axis])
