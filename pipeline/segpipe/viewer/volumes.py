"""A case's volumes, read strictly and judged together, as plain NIfTI that a browser can be given.

Values are those of the files. Nothing is resampled but further channels that somebody says are registered; a layer on
another grid than the image is left out, and a grid that a browser would draw wrongly is not given to it at all. Each
time the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import sha256_of
from segpipe.common.grids import on_grid_of, registered_note
from segpipe.common.nifti import (
    Header,
    corners_apart_mm,
    forms_limit_mm,
    grid_difference,
    header_of_array,
    read_header,
    read_voxels,
    require_3d,
)
from segpipe.dicom import load_series, registration_note, series_as_taken
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.reporting import colour_of
from segpipe.viewer.cases import LayerFile, ViewedCase

MOST_VOXELS = 160_000_000  # 512 x 512 x 600: a browser takes some 10 bytes for each
PERCENTILES = (0.5, 99.5)  # drawn black and white at first, as in every picture
SAMPLES = 2_000_000
LARGEST_LABEL = 65535
LEAST_SHOWN = 0.05  # of a map, as a share of its largest value
HOUNSFIELD = "HU"
WINDOWS = {  # of CT, in HU; lower and upper end
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
}


@dataclass(frozen=True, eq=False)
class ShownVolume:
    """One volume on the grid of the case.

    Attributes:
        name: of a channel or a layer.
        kind: ``image``, ``labels`` or ``map`` (of numbers).
        values: (X, Y, Z), in the file's order of axes; uint8, int16, int32 or float32.
        affine: (4, 4), voxel index to RAS mm.
        unit: of the values; empty where nobody says it.
        names: of labels, by value.
    """

    name: str
    kind: str
    values: NDArray[Any]
    affine: NDArray[np.float64]
    unit: str = ""
    names: Mapping[int, str] = field(default_factory=dict)

    def nifti(self) -> bytes:
        """Return the volume as an uncompressed NIfTI-1 file with nothing but its grid in the header."""
        import nibabel as nib

        image = nib.Nifti1Image(self.values, self.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, code=1)
        image.set_qform(None, code=0)
        return bytes(image.to_bytes())

    def facts(self) -> dict[str, Any]:
        """Return what the page has to know of it beside its voxels."""
        about: dict[str, Any] = {"name": self.name, "kind": self.kind, "unit": self.unit}
        if self.kind == "labels":
            present = {int(value) for value in np.unique(self.values)} - {0}
            values = sorted(present | set(self.names))
            return about | {
                "labels": [
                    {
                        "value": value,
                        "name": self.names.get(value, f"label {value}"),
                        "colour": list(colour_of(value)),
                        "present": value in present,
                    }
                    for value in values
                ]
            }
        low, high = _window(self.values) if self.kind == "image" else _range_of_map(self.values)
        presets = [{"name": name, "low": ends[0], "high": ends[1]} for name, ends in WINDOWS.items()]
        return about | {"window": [low, high], "presets": presets if self.unit == HOUNSFIELD else []}


@dataclass(frozen=True, eq=False)
class ShownCase:
    """What is shown of a case.

    Attributes:
        id: of the case.
        volumes: the channels of the image, then the layers; empty where pictures have to do.
        notes: what a reader has to know, in words without paths.
        oriented: whether the file says which side is which.
        pictures_only: why there are no volumes; None where there are.
    """

    id: str
    volumes: tuple[ShownVolume, ...] = ()
    notes: tuple[str, ...] = ()
    oriented: bool = True
    pictures_only: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the case as the page's script takes it, without voxels."""
        return {
            "id": self.id,
            "notes": list(self.notes),
            "oriented": self.oriented,
            "pictures_only": self.pictures_only,
            "volumes": [volume.facts() for volume in self.volumes],
        }


def read_case(case: ViewedCase) -> ShownCase:
    """Read what can be shown of a case; what cannot is said in the result, in words without paths."""
    try:
        header, images, notes = _read_images(case)
        _require_drawable(header)
    except (SegpipeError, OSError) as error:
        return ShownCase(case.id, notes=case.remarks, pictures_only=_words(error, brief=case.is_dicom))
    notes = [*case.remarks, *notes]
    volumes = list(images)
    for layer in case.layers:
        try:
            volumes += _read_layer(layer, header)
            if layer.sha256 is not None and sha256_of(layer.path) != layer.sha256:
                notes.append(f"{layer.name}: the file is not the one that was written with this result")
        except (SegpipeError, OSError) as error:
            notes.append(f"{layer.name} is left out: {_words(error)}")
    return ShownCase(case.id, tuple(volumes), tuple(dict.fromkeys(notes)), header.is_oriented)


def is_sheared(affine: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    """Return whether axes stand so far from right angles that a corner drawn at right angles would lie elsewhere.

    The nearest grid with right angles is that of the polar decomposition (Higham 1986) of the axes' directions.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / edges)
    square = affine.copy()
    square[:3, :3] = (left @ right) * edges
    return not corners_apart_mm(affine, square, shape) <= forms_limit_mm(affine)


def _require_drawable(header: Header) -> None:
    if is_sheared(header.affine, header.shape[:3]):
        raise DataError(
            "the grid is sheared: its axes do not stand at right angles, and a browser would draw it wrongly",
            hint="pictures are drawn instead",
        )
    if math.prod(header.shape[:3]) > MOST_VOXELS:
        raise DataError(
            "the volume is too large for a browser",
            found=f"{math.prod(header.shape[:3]):,} voxels",
            expected=f"at most {MOST_VOXELS:,}",
        )


def _read_images(case: ViewedCase) -> tuple[Header, list[ShownVolume], list[str]]:
    """Return the grid of a case, its channels on it, and notes.

    Raises:
        UsageError: the image is not known or not there.
        DataError: it cannot be read.
    """
    if not case.images:
        raise UsageError(
            "where the image lies is not known", expected="mapping.jsonl of the result folder, readable by you"
        )
    if not all(path.is_file() for path in case.images):
        raise UsageError("the image is not where it was", expected="the files that mapping.jsonl names")
    return _read_dicom(case) if case.is_dicom else _read_files(case)


def _read_files(case: ViewedCase) -> tuple[Header, list[ShownVolume], list[str]]:
    headers = [read_header(path) for path in case.images]
    grid = replace(headers[0], shape=headers[0].shape[:3])
    require_3d(grid)
    channels: list[NDArray[Any]] = []
    notes = []
    for index, header in enumerate(headers):
        values = read_voxels(header)
        if values.ndim == 4:
            channels += list(np.moveaxis(values, 3, 0))
            continue
        if index and not case.registered and (difference := grid_difference(headers[0], header)):
            raise DataError("the channels lie on different grids", found=difference)
        if index and (note := registered_note(headers[0], header, index)):
            notes.append(note)
        channels.append(on_grid_of(headers[0], header, values))
    hashes = case.image_sha256
    if len(hashes) == len(case.images) and [sha256_of(path) for path in case.images] != list(hashes):
        notes.append("the image has changed since it was segmented")
    if not grid.is_oriented:
        notes.append("the image does not say which side is which: no letters are shown")
    names = case.channels if len(case.channels) == len(channels) else _numbered(len(channels))
    shown = [
        ShownVolume(name, "image", _plain(values), grid.affine, case.units.get(index, _unit_of(name)))
        for index, (name, values) in enumerate(zip(names, channels, strict=True))
    ]
    return grid, shown, notes


def _numbered(count: int) -> tuple[str, ...]:
    return ("image",) if count == 1 else tuple(f"channel {index}" for index in range(count))


def _unit_of(modality: str) -> str:
    return HOUNSFIELD if modality.upper() == "CT" else ""


def _read_dicom(case: ViewedCase) -> tuple[Header, list[ShownVolume], list[str]]:
    """Read series from their files as they were for the prediction: resampled to a regular grid, and registered.

    A further channel of which nothing says how it lies to the first one is left out.
    """
    found = series_as_taken(case.images)
    if not found:
        raise DataError("no DICOM series is in the files")
    frame = found[0].frame_of_reference_uid
    placed = [series for series in found if series.registration or series.frame_of_reference_uid == frame]
    lost = [
        f"channel {series.modality} is left out: it lies in another frame of reference, and what registered it is gone"
        for series in found
        if series not in placed
    ]
    volumes = [load_series(series) for series in placed]
    headers = [
        header_of_array(volume.array.shape, volume.array.dtype, series.placed(volume.affine_ras), Path(case.id))
        for series, volume in zip(placed, volumes, strict=True)
    ]
    notes = [*lost, *(note for volume in volumes for note in volume.notes)]
    notes += [
        f"channel {series.modality} {registration_note(series.registration, series)}"
        for series in placed
        if series.registration
    ]
    notes += [f"resampled to a regular grid ({', '.join(volume.repaired)})" for volume in volumes if volume.repaired]
    notes += [
        note for index, header in enumerate(headers) if index and (note := registered_note(headers[0], header, index))
    ]
    shown = [
        ShownVolume(
            volume.modality,
            "image",
            _plain(on_grid_of(headers[0], header, volume.array)),
            headers[0].affine,
            case.units.get(index, _unit_of(volume.modality) or volume.series.units),
        )
        for index, (volume, header) in enumerate(zip(volumes, headers, strict=True))
    ]
    return headers[0], shown, notes


def _read_layer(layer: LayerFile, grid: Header) -> list[ShownVolume]:
    """Return a layer as one volume, or as one for each region.

    Raises:
        UsageError: the file is not there.
        DataError: it cannot be read, lies on another grid, or holds no label map.
    """
    header = read_header(layer.path)
    difference = grid_difference(grid, replace(header, shape=header.shape[:3]))
    if difference is not None:
        raise DataError("it lies on another grid than the image", found=difference)
    values = read_voxels(header)
    if layer.name == "entropy":
        return [ShownVolume(layer.name, "map", _plain(values), grid.affine, layer.unit)]
    if not (np.array_equal(values, np.round(values)) and values.min() >= 0 and values.max() <= LARGEST_LABEL):
        raise DataError("it is no label map", found="values that are negative, no whole numbers, or very large")
    labels = values.astype(np.uint8 if values.max() < 256 else np.int32)
    if labels.ndim == 3:
        return [ShownVolume(layer.name, "labels", labels, grid.affine, names=dict(layer.names))]
    regions = []
    for number in range(1, labels.shape[3] + 1):  # masks that may overlap: a layer each, in the colour of its number
        name = layer.names.get(number, f"region {number}")
        mask = np.where(labels[..., number - 1] != 0, number, 0).astype(np.uint8)
        regions.append(ShownVolume(f"{layer.name}: {name}", "labels", mask, grid.affine, names={number: name}))
    return regions


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return voxels in a type that a browser's reader has, of the same values (float32 for double precision)."""
    if values.dtype.name in ("uint8", "int16", "int32", "float32"):
        return values
    if values.dtype.name in ("int8", "bool"):
        return values.astype(np.int16)
    if values.dtype.name == "uint16":
        return values.astype(np.int32)
    return values.astype(np.float32)


def _window(values: NDArray[Any]) -> tuple[float, float]:
    flat = values.ravel(order="K")
    flat = flat[:: max(1, flat.size // SAMPLES)]
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(flat, PERCENTILES))
    return low, high if high > low else low + 1.0


def _range_of_map(values: NDArray[Any]) -> tuple[float, float]:
    """Return from which value a map is shown at first, and its largest."""
    largest = float(np.nan_to_num(values, posinf=0).max())
    return (LEAST_SHOWN * largest, largest) if largest > 0 else (0.0, 1.0)


def _words(error: SegpipeError | OSError, brief: bool = False) -> str:
    """Say what went wrong without a path; briefly without what was found, which may name files of a series."""
    if not isinstance(error, SegpipeError):
        return "a file cannot be read"
    parts = [] if brief else [f"{name} {value}" for name in ("found", "expected") if (value := getattr(error, name))]
    return "; ".join([error.message, *parts])
