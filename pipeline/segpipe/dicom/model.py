"""What a scan of a DICOM tree finds, as plain values.

Axes: a volume's array is (C, R, S), columns, rows and slices, so that voxel ``(i, j, k)`` is column ``i``, row ``j`` of
the slice ``k``. Slices are sorted by their position along the normal (row direction x column direction), rising.
`Series.affine_ras` takes such an index to RAS mm, as NIfTI does; positions of frames are in LPS mm, as in DICOM.

A judged series as plain values, to be handed to another process, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FileClass = Literal["image", "non_image", "unreadable", "not_dicom"]

Reason = Literal[
    "gap",
    "variable_spacing",
    "gantry_tilt",
    "in_plane_shift",
    "mixed_orientation",
    "mixed_matrix",
    "repeated_positions",
    "mosaic",
    "single_slice",
    "missing_tag",
    "truncated",
    "color",
    "transfer_syntax",
    "duplicate_conflict",
]


Element = tuple[int, str | None, bytes]


@dataclass(frozen=True)
class PixelStorage:
    """Pixels as stored.

    Attributes:
        transfer_syntax: UID.
        offset: of the first byte of the element's value in the file; -1 where that is not known.
        length: bytes from there on that belong to the value; -1 to the end of the file.
        missing: what was found where pixels are missing; empty where all are there.
        expected: what should have been there.
        decodable: by the libraries installed here.
        meaning: tag, VR and value of the elements that say what the pixels stand for; none where the whole header
            has to be read again for that.
        version: size and time of change of the file.
    """

    transfer_syntax: str
    offset: int = -1
    length: int = -1
    missing: str = ""
    expected: str = ""
    decodable: bool = True
    meaning: tuple[Element, ...] = ()
    version: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Frame:
    """One slice: where it is stored and where it lies.

    Attributes:
        path: the file.
        number: frame within the file, from 0; 0 for a file of one frame.
        sop_instance_uid: of the file.
        position_mm: ImagePositionPatient: centre of the first pixel, LPS.
        orientation: ImageOrientationPatient: direction of a row, then of a column, LPS.
        pixel_spacing_mm: PixelSpacing: from row to row, then from column to column.
        pixels: where the scan found them, so that the header need not be read again; None where it must be.
    """

    path: Path
    number: int
    sop_instance_uid: str
    position_mm: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing_mm: tuple[float, float]
    pixels: PixelStorage | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class PassedOver:
    """A file that is no slice of a series, and why (its class, and the SOP class's name for a non-image)."""

    path: Path
    file_class: FileClass
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Series:
    """One volume's worth of slices, judged.

    Attributes:
        case_id: pseudonym, ``dcm-`` and 12 hex digits; the same for the same series wherever it lies.
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        modality: e.g. ``CT``.
        files: every file of the group, sorted by path.
        frames: slices in the order of the volume's third axis (empty where the geometry could not be judged).
        state: ``loaded`` where it can be read as a volume, else ``refused``.
        reason: why it is refused; None where it is loaded.
        detail: one or two sentences: file, what was found, what was expected, what to do. Without header text.
        shape: columns, rows, slices.
        spacing_mm: edges of a voxel along these axes.
        affine_ras: (4, 4) index to RAS mm.
        notes: what was noticed and does not stop the reading (lossy compression, small shear, ...).
        sop_class_uid: of the first file; empty where the header has none.
        frame_of_reference_uid: empty where the header has none.
        description: SeriesDescription, to choose series by; free text, so never shown or written.
    """

    case_id: str
    series_uid: str
    study_uid: str
    modality: str
    files: tuple[Path, ...]
    frames: tuple[Frame, ...] = ()
    state: Literal["loaded", "refused"] = "loaded"
    reason: Reason | None = None
    detail: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine_ras: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    sop_class_uid: str = ""
    frame_of_reference_uid: str = ""
    description: str = field(default="", repr=False)


@dataclass(frozen=True)
class Scan:
    """A tree, whole: every file is in exactly one series or passed over."""

    root: Path
    series: tuple[Series, ...]
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, eq=False)
class Volume:
    """A series' voxels.

    Attributes:
        series: where they come from.
        array: (C, R, S) values after rescale; int16 where that is exact, else float32.
        affine_ras: (4, 4) index to RAS mm; differs from the series' after a repair.
        notes: of the series and of the reading.
        repaired: what was resampled away on request, ``tilt`` or ``spacing``; empty where voxels are as scanned.
    """

    series: Series
    array: NDArray[np.generic]
    affine_ras: NDArray[np.float64]
    notes: tuple[str, ...] = field(default=())
    repaired: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along the array's axes."""
        columns, rows, slices = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(columns), float(rows), float(slices)


TUPLES = ("shape", "spacing_mm", "notes")


def as_plain(series: Series) -> dict[str, Any]:
    """Values that JSON can hold; `Series.description` is left out, since nobody needs it to read the voxels."""
    plain = {each.name: getattr(series, each.name) for each in fields(series) if each.name != "description"}
    numbers = {path: index for index, path in enumerate(series.files)}
    return {
        **plain,
        "files": [str(path) for path in series.files],
        "frames": [_frame_as_plain(frame, numbers) for frame in series.frames],
        "affine_ras": None if series.affine_ras is None else series.affine_ras.tolist(),
    }


def from_plain(plain: Mapping[str, Any]) -> Series:
    """The series again."""
    values = dict(plain)
    files = tuple(Path(name) for name in values.pop("files"))
    frames = tuple(_frame(part, files) for part in values.pop("frames"))
    affine = values.pop("affine_ras")
    for name in TUPLES:
        values[name] = None if values[name] is None else tuple(values[name])
    return Series(files=files, frames=frames, affine_ras=None if affine is None else np.array(affine, float), **values)


def _frame_as_plain(frame: Frame, numbers: Mapping[Path, int]) -> list[Any]:
    return [
        numbers[frame.path],
        frame.number,
        frame.sop_instance_uid,
        frame.position_mm,
        frame.orientation,
        frame.pixel_spacing_mm,
    ]


def _frame(part: list[Any], files: tuple[Path, ...]) -> Frame:
    index, number, uid, position, orientation, spacing = part
    return Frame(files[index], number, uid, tuple(position), tuple(orientation), tuple(spacing))
