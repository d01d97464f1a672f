"""What is found in a tree of DICOM files, and what is read from it, as plain values.

Axes: a volume's array is (C, R, S), columns, rows and slices, so that voxel ``(i, j, k)`` is column ``i``, row ``j`` of
the slice ``k``. Slices are sorted by their position along the normal (row direction x column direction), rising.
`Series.affine_ras` takes such an index to RAS mm, as NIfTI does; positions of frames are in LPS mm, as in DICOM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DataError

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
    "pixel_layout",
    "mixed_attributes",
    "incomplete",
    "secondary_capture",
]


@dataclass(frozen=True)
class Problem:
    """Why a file's slices cannot be part of a volume."""

    reason: Reason
    found: str
    expected: str
    hint: str

    def words(self, file: str, bad: int, of: int) -> str:
        """Return what a person should read about ``bad`` of ``of`` files, of which ``file`` is the first."""
        return f"{file}: found {self.found}, expected {self.expected} ({bad} of {of} files). Advice: {self.hint}."

    def error(self, path: Path | None = None) -> DataError:
        """Return it as the error of a file whose pixels are asked for all the same."""
        return DataError(
            "pixel data cannot be read",
            path=path,
            reason=self.reason,
            found=self.found,
            expected=self.expected,
            hint=self.hint,
        )


Derived = Literal["localizer", "subtraction", "projection", "reformatted", "map", "spectral", "computed"]
Element = tuple[int, str | None, bytes]


@dataclass(frozen=True)
class PixelStorage:
    """Pixels as stored.

    Attributes:
        transfer_syntax: UID.
        offset: of the first byte of the element's value in the file; -1 where that is not known.
        length: bytes from there on that belong to the value; -1 to the end of the file.
        problem: why they cannot be read; None where nothing speaks against it.
        attributes: tag, VR and value of the elements that say what the pixels stand for; none where the whole header
            has to be read again for that.
        version: size and time of change of the file.
    """

    transfer_syntax: str
    offset: int = -1
    length: int = -1
    problem: Problem | None = None
    attributes: tuple[Element, ...] = ()
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


# Secondary Capture Image Storage, multi-frame grayscale byte, multi-frame grayscale word
CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3")
LABEL_CLASSES = ("Segmentation Storage", "Label Map Segmentation Storage", "RT Structure Set Storage")


@dataclass(frozen=True)
class PassedOver:
    """A file that is no slice of a series, and why (its class, and the SOP class's name for a non-image)."""

    path: Path
    file_class: FileClass
    detail: str = ""

    @property
    def kind(self) -> str:
        """The name of its SOP class, or the class of a file that has none."""
        return self.detail if self.file_class == "non_image" else self.file_class

    @property
    def is_label_file(self) -> bool:
        """Whether it was passed over because it is a SEG or an RTSTRUCT."""
        return self.file_class == "non_image" and self.detail in LABEL_CLASSES


@dataclass(frozen=True)
class Registration:
    """How a series comes into the frame of reference of the first channel of its case, by a DICOM registration object.

    Attributes:
        matrix_ras: four rows of four: RAS mm of the series to RAS mm of the first channel; rigid.
        file: the object.
    """

    matrix_ras: tuple[tuple[float, ...], ...]
    file: Path


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
        reason: why it is refused, ``channels`` where others of its case are missing, ``pet_unit`` where it is a PET in
            another unit; None where it is loaded.
        detail: one or two sentences: file, what was found, what was expected, what to do. Without header text.
        shape: columns, rows, slices.
        slice_count: how many slices its headers count, also where they cannot be read; 0 where nobody knows.
        spacing_mm: edges of a voxel along these axes.
        affine_ras: (4, 4) index to RAS mm.
        notes: what was noticed and does not stop the reading (lossy compression, small shear, ...).
        repaired: what its slices are resampled for when they are read, ``tilt`` or ``spacing``: then shape, spacing and
            affine are those of the regular grid, and ``frames`` the slices as scanned.
        derived: what its slices were computed as, of other images (``map``, ``projection``, ...).
        sop_class_uid: of the first file; empty where the header has none.
        frame_of_reference_uid: empty where the header has none.
        units: of a PET as stored: ``BQML``, ``CNTS`` or ``GML``; empty where the header has another or none.
        converted_to: ``SUVbw`` where a PET is converted to it when it is read; empty for values as stored.
        further: the further channels of a case that this is the first channel of; they are resampled to its grid when
            they are read (`segpipe.dicom.load_channels`), and are not in ``files``.
        registration: how it comes into the frame of reference of the first channel; None where it lies there.
        description: SeriesDescription, to choose series by; free text, so never shown or written.
    """

    case_id: str
    series_uid: str
    study_uid: str
    modality: str
    files: tuple[Path, ...]
    frames: tuple[Frame, ...] = ()
    state: Literal["loaded", "refused"] = "loaded"
    reason: Reason | Literal["channels", "pet_unit"] | None = None
    detail: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine_ras: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    derived: tuple[Derived, ...] = ()
    sop_class_uid: str = ""
    frame_of_reference_uid: str = ""
    units: str = ""
    converted_to: str = ""
    further: tuple[Series, ...] = ()
    registration: Registration | None = None
    description: str = field(default="", repr=False)
    slice_count: int = 0

    @property
    def is_capture(self) -> bool:
        """Whether it is stored as Secondary Capture."""
        return self.sop_class_uid in CAPTURES

    @property
    def channels(self) -> tuple[Series, ...]:
        """The series of each channel of its case: itself and the further ones."""
        return self, *self.further

    @property
    def all_files(self) -> tuple[Path, ...]:
        """The files of all channels, and of what registers them."""
        registered = dict.fromkeys(series.registration.file for series in self.channels if series.registration)
        return (*(path for series in self.channels for path in series.files), *registered)

    def placed(self, affine_ras: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return an affine of its voxels in the frame of reference of the first channel of its case."""
        return affine_ras if self.registration is None else np.array(self.registration.matrix_ras) @ affine_ras

    @property
    def is_offered(self) -> bool:
        """Whether it is a Secondary Capture that can be loaded where the user names it."""
        return self.reason == "secondary_capture" and self.affine_ras is not None

    @property
    def is_picture(self) -> bool:
        """Whether it is a Secondary Capture that cannot be a volume: it is passed over where nobody names it."""
        return self.is_capture and self.state == "refused" and not self.is_offered

    @property
    def caveats(self) -> tuple[str, ...]:
        """The notes that have to stand wherever its voxels go."""
        notes = []
        if self.repaired and self.spacing_mm is not None:
            repairs = ", ".join(self.repaired)
            notes.append(f"repaired: {repairs}; resampled linearly to slices {self.spacing_mm[2]:.4g} mm apart")
        if self.is_capture:
            notes.append("Secondary Capture: values may have been windowed")
        kinds = [kind for kind in self.derived if kind != "localizer"]
        if kinds:
            notes.append(f"derived ({', '.join(kinds)}): computed from other images, not as the scanner measured it")
        if "localizer" in self.derived:
            notes.append("localizer: made to plan other images")
        return tuple(notes)

    def as_dict(self) -> dict[str, Any]:
        """Return the series as values that JSON can hold, to hand it to another process.

        Left out is what nobody needs to read the voxels: `description` and `Frame.pixels`.
        """
        number_of = {path: number for number, path in enumerate(self.files)}
        values = {member.name: getattr(self, member.name) for member in fields(self) if member.name != "description"}
        frames = [
            [
                number_of[frame.path],
                frame.number,
                frame.sop_instance_uid,
                frame.position_mm,
                frame.orientation,
                frame.pixel_spacing_mm,
            ]
            for frame in self.frames
        ]
        affine = None if self.affine_ras is None else self.affine_ras.tolist()
        further = [series.as_dict() for series in self.further]
        files = [str(path) for path in self.files]
        moved = self.registration and [self.registration.matrix_ras, str(self.registration.file)]
        values |= {"files": files, "frames": frames, "affine_ras": affine, "further": further, "registration": moved}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Series:
        """Return the series that `as_dict` made the values of."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        files = plain["files"] = tuple(Path(name) for name in values["files"])
        plain["frames"] = tuple(
            Frame(files[number], frame, uid, tuple(position), tuple(orientation), tuple(spacing))
            for number, frame, uid, position, orientation, spacing in values["frames"]
        )
        plain["further"] = tuple(cls.from_dict(series) for series in values["further"])
        if values["registration"] is not None:
            matrix, file = values["registration"]
            plain["registration"] = Registration(tuple(tuple(row) for row in matrix), Path(file))
        if values["affine_ras"] is not None:
            plain["affine_ras"] = np.array(values["affine_ras"], float)
        return cls(**plain)


@dataclass(frozen=True)
class Scan:
    """A tree, whole: every file is in exactly one series or passed over."""

    root: Path
    series: tuple[Series, ...]
    passed_over: tuple[PassedOver, ...]

    @property
    def others(self) -> str:
        """What is passed over, in words: how many files of which kind."""
        counts = Counter(file.kind for file in self.passed_over)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "no file"


@dataclass(frozen=True, eq=False)
class Volume:
    """The voxels of a series.

    Attributes:
        series: where they come from.
        array: (C, R, S) values after rescale; int16 where that is exact, else float32.
        affine_ras: (4, 4) index to mm, RAS+.
        notes: of the series and of the reading.
    """

    series: Series
    array: NDArray[np.generic]
    affine_ras: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:  # no array, and nothing of a header
        return f"Volume({self.series.case_id}, {self.modality}, shape={self.array.shape}, spacing_mm={self.spacing_mm})"

    @property
    def modality(self) -> str:
        """Modality of the series, e.g. ``CT``."""
        return self.series.modality

    @property
    def repaired(self) -> tuple[str, ...]:
        """What was resampled away on request, ``tilt`` or ``spacing``; empty where voxels are as scanned."""
        return self.series.repaired

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along the array's axes."""
        columns, rows, slices = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(columns), float(rows), float(slices)
