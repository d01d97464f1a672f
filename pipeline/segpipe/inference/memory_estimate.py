"""The memory that a case will take, estimated from its headers before its voxels are read.

What counts: the process as it is, the source's voxels, the network's input, the labels, the blocks of scores that are
open at one time, and what the network takes for one batch of windows, which is measured once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from segpipe.common.memory import memory_here, return_freed_memory
from segpipe.common.nifti import PLAIN_TYPES, Header
from segpipe.errors import DataError, RefusedError
from segpipe.inference.prepare import network_shape
from segpipe.inference.sliding_window import Runtime, Windowing
from segpipe.inference.transforms import CropForeground, Preprocessing, SpatialPad, root_cause

MOST_STRIPS = 4
SLACK = 1.1  # for what is not counted: fragments of the heap, small arrays
VOXEL_BYTES = 40  # of a source voxel in the block that is being restored: its label, cell and place
GIB = 2**30


@dataclass(frozen=True)
class Probe:
    """What one window costs.

    Attributes:
        classes: channels of the scores, of all networks together.
        window_bytes: what a network takes at most for a batch of one window, its scores included.
    """

    classes: int
    window_bytes: int

    @classmethod
    def measure(
        cls, runtime: Runtime, channels: int, roi_size: Sequence[int], device: torch.device, lanes: int = 1
    ) -> Probe:
        """Run an empty window twice, the first time to warm up, and look at the peak of the process.

        Where a runtime computes several at the same time, it is run once more on two, since each holds what is its own.

        Raises:
            DataError: the network fails on it, as where it takes another number of channels than the bundle names.
        """
        window = torch.zeros((1, channels, *roi_size), device=device)
        with torch.inference_mode():
            try:
                scores = runtime(window)
            except Exception as error:
                if isinstance(error, MemoryError) or "memory" in str(error).lower():
                    raise
                raise DataError(
                    "the bundle's network cannot compute a window of its images",
                    found=root_cause(error),
                    expected=f"{channels} channels of {' x '.join(map(str, roi_size))} voxels",
                    hint="its metadata, network and window do not fit together: ask who made the bundle",
                ) from error
            classes, least = scores.shape[1], scores.numel() * scores.element_size()
            del scores
            grown = [_grown_by(runtime, window)]
            if lanes > 1:
                grown.append(_grown_by(runtime, torch.cat([window, window])))
        return cls(classes, max(2 * least if by is None else max(least, by) for by in grown))


def plan(
    headers: Sequence[Header],
    preprocessing: Preprocessing,
    windowing: Windowing,
    probe: Probe,
    limit: int | None,
    held: int = 0,
) -> tuple[Windowing, int]:
    """Return the fastest windows with which a case fits, and the bytes that the process then takes at most.

    Args:
        headers: of the case's files.
        preprocessing: the transforms of the supported subset.
        windowing: as the bundle has it.
        probe: what one window costs.
        limit: bytes that the process may take; None for what the machine has.
        held: bytes of the source that were read already.

    Raises:
        RefusedError: not even one window at a time fits; with the numbers.
    """
    allowed = allowed_bytes(limit)
    peak = estimate_memory(headers, preprocessing, windowing, probe, held)
    if peak <= allowed:
        return windowing, peak
    return_freed_memory()  # of the cases before: it counts as if it were in use
    for candidate in _smaller(windowing):
        peak = estimate_memory(headers, preprocessing, candidate, probe, held)
        if peak <= allowed:
            return candidate, peak
    raise RefusedError(
        "the case needs more memory than it may take",
        found=f"about {peak / GIB:.2f} GiB, for {_counted(probe, windowing)} on "
        f"{' x '.join(str(size) for size in headers[0].shape[:3])} voxels",
        expected=f"at most {allowed / GIB:.2f} GiB ({'--max-memory' if limit == allowed else 'free here'})",
        hint="use a machine with more memory, or cut the image to what is of interest",
    )


def _counted(probe: Probe, windowing: Windowing) -> str:
    classes = f"{probe.classes // windowing.members} classes"
    return classes if windowing.members == 1 else f"{classes} of {windowing.members} networks"


def _smaller(windowing: Windowing) -> Iterator[Windowing]:
    """Yield windows with less and less memory: one thing after the other, fewer at a time, then in strips."""
    batch = windowing.batch
    yield windowing
    windowing = replace(windowing, overlapped=False)
    yield windowing
    while batch > 1:
        batch //= 2
        yield replace(windowing, batch=batch)
    for strips in range(2, MOST_STRIPS + 1):
        yield replace(windowing, batch=1, strips=strips)


def estimate_memory(
    headers: Sequence[Header], preprocessing: Preprocessing, windowing: Windowing, probe: Probe, held: int = 0
) -> int:
    """Estimate the bytes of the process with a case; where a crop depends on the voxels, as if nothing were cut."""
    shape, channels = headers[0].shape[:3], sum(math.prod(header.shape[3:]) for header in headers)
    voxels = source_bytes(headers)
    size = network_shape(headers[0], preprocessing)
    grid = windowing.grid(size)
    copies = 2 if preprocessing.find(CropForeground) or preprocessing.find(SpatialPad) else 1
    image = math.prod(size) * channels * 4 * copies
    padded = math.prod(grid.padded) * channels * 4 if grid.padded != tuple(size) else 0
    block, open_blocks = grid.block_voxels()
    scores = 4 * probe.classes * (open_blocks + 2 * math.prod(grid.padded) // grid.padded[grid.block_axes[0]])
    restored = VOXEL_BYTES * math.prod(shape) * block // math.prod(grid.padded)
    base = (_resident("VmRSS") or psutil.Process().memory_info().rss) - held
    windows = probe.window_bytes * windowing.batch
    if windowing.overlapped:
        waiting = 4 * probe.classes * math.prod(windowing.roi_size) * windowing.batch  # scores that are being summed
        working = windows + waiting + restored + 4 * probe.classes * block
    else:
        working = max(restored, windows)
    computing = image + padded + math.prod(shape) + scores + working
    return int(base + SLACK * max(voxels + image, computing))


def source_bytes(headers: Sequence[Header]) -> int:
    """Return what a case's voxels take while they are read; several files are stacked."""
    voxels = sum(math.prod(header.shape) * _bytes_a_voxel(header) for header in headers)
    return voxels * (2 if len(headers) > 1 else 1)


def allowed_bytes(limit: int | None) -> int:
    """Return the bytes that this process may take, by a limit and by what there is."""
    return available() if limit is None else min(limit, available())


def available() -> int:
    """Return the bytes that this process has, and those that are free on the machine and in its control group."""
    return memory_here().free + psutil.Process().memory_info().rss


def _bytes_a_voxel(header: Header) -> int:
    dtype = np.dtype(header.dtype)
    return dtype.itemsize if dtype.name in PLAIN_TYPES else max(4, dtype.itemsize)


def _grown_by(runtime: Runtime, windows: torch.Tensor) -> int | None:
    """Return by how many bytes the process grows at most while windows are computed; None where it cannot be told."""
    return_freed_memory()  # of the run before: what is taken again makes no process grow
    before = _peak_since_now()
    runtime(windows)
    after = _resident("VmHWM")
    return None if before is None or after is None else after - before


def _peak_since_now() -> int | None:
    """Start to measure the peak of the process anew (Linux), and return what it has now, or None."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
