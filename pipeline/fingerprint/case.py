"""One case measured: geometry, intensities, labels; what cannot be used is refused with the case's id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, SegpipeError
from pipeline.fingerprint.model import (
    PERCENTILES,
    SAMPLES_PER_CASE,
    CaseFingerprint,
    Channel,
    Intensity,
    LabelSize,
)
from pipeline.manifest import Case
from pipeline.nifti import Header, grid_difference, read_header, read_volume, require_3d

Job = tuple[dict[str, str], int, str, Case]  # label names by value, number of channels, data folder, case
Samples = list[NDArray[np.float32]]


def measure_case(job: Job) -> tuple[CaseFingerprint, Samples]:
    """Measure one case; every error carries its id."""
    labels, n_channels, root, case = job
    try:
        return _measure(labels, n_channels, Path(root), case)
    except SegpipeError as error:
        error.case_id = case.id
        raise


def _measure(
    names: dict[str, str], n_channels: int, root: Path, case: Case
) -> tuple[CaseFingerprint, Samples]:
    grid = read_header(root / str(case.label))
    require_3d(grid)
    label = read_volume(grid)
    counts = _count_labels(label, len(names), grid.path)
    foreground = label != 0
    channels, samples = [], []
    for values, dtype in _read_channels(case, root, n_channels, grid):
        inside = values[foreground]
        step = -(-inside.size // SAMPLES_PER_CASE) or 1
        samples.append(inside[::step].astype(np.float32))
        channels.append(
            Channel(
                dtype=dtype,
                nonzero_fraction=float(np.count_nonzero(values) / values.size),
                overall=intensity_of(values),
                foreground=intensity_of(inside) if inside.size else None,
            )
        )
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    measured = CaseFingerprint(
        id=case.id,
        shape=(int(label.shape[0]), int(label.shape[1]), int(label.shape[2])),
        spacing_mm=grid.spacing_mm,
        orientation=grid.orientation,
        channels=channels,
        labels={
            names[str(value)]: LabelSize(voxels=count, volume_ml=count * voxel_ml)
            for value, count in enumerate(counts)
            if value
        },
        foreground_box_mm=_box_mm(foreground, grid.spacing_mm),
    )
    return measured, samples


def _read_channels(
    case: Case, root: Path, n_channels: int, grid: Header
) -> Iterator[tuple[NDArray[np.floating[Any]], str]]:
    """Each channel's voxels (X, Y, Z) and its type on disk, on the label's grid or refused."""
    for name in case.images:
        header = read_header(root / name)
        stacked = len(case.images) == 1 < n_channels and header.shape[3:] == (n_channels,)
        if not stacked:
            require_3d(header)
            if len(case.images) != n_channels:
                raise DataError(
                    "wrong number of channels", path=header.path, found=f"shape {header.shape}",
                    expected=f"{n_channels} channels on the fourth axis",
                )  # fmt: skip
        volume = read_volume(header)
        plane = Header(header.path, header.shape[:3], header.affine, header.spacing_mm, header.dtype)
        difference = grid_difference(plane, grid)
        if difference:
            raise DataError(
                "image and label lie on different grids", path=header.path, found=difference,
                hint="look at the whole dataset with `segpipe check`",
            )  # fmt: skip
        for values in np.moveaxis(volume, 3, 0) if stacked else [volume]:
            if not np.isfinite(values).all():
                raise DataError("the image has values that are not finite", path=header.path)
            yield values.astype(np.float64), header.dtype


def _count_labels(label: NDArray[Any], n_labels: int, path: Path) -> list[int]:
    values, counts = np.unique(label, return_counts=True)
    unknown = [value.item() for value in values if value not in range(n_labels)]
    if unknown:
        raise DataError(
            "the label map has values that the manifest does not know", path=path,
            found=", ".join(f"{value:g}" for value in unknown[:5]), expected=f"0 to {n_labels - 1}",
        )  # fmt: skip
    found = dict(zip((int(value) for value in values), (int(count) for count in counts), strict=True))
    return [found.get(value, 0) for value in range(n_labels)]


def intensity_of(values: NDArray[Any]) -> Intensity:
    """Mean, deviation and `PERCENTILES` of any values."""
    low, five, middle, ninety_five, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return Intensity(
        mean=float(values.mean()),
        std=float(values.std()),
        percentiles=(low, five, middle, ninety_five, high),
    )


def _box_mm(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float] | None:
    if not mask.any():
        return None
    sizes = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sizes.append(float(filled[-1] - filled[0] + 1) * spacing_mm[axis])
    return sizes[0], sizes[1], sizes[2]
