"""DICOM registration objects: how two frames of reference lie to each other, where a rigid matrix says it.

Spatial Registration (PS3.3 A.39, C.20.2): each item of the Registration Sequence has a matrix that takes a place in the
frame of the images it is about to the frame of the object (equation C.20.2-1). Two frames that one object speaks of are
joined by the inverse of one matrix times the other (C.20.2-3). Nothing else is followed: no deformation (C.20.3), no
matrix that scales or shears, and no way over several objects. Objects that contradict each other join nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from segpipe.dicom.frames import items, numbers, text
from segpipe.dicom.geometry import LPS_TO_RAS
from segpipe.dicom.model import PassedOver, Registration, Series
from segpipe.dicom.privacy import no_header_text

RIGID, DEFORMABLE = "Spatial Registration Storage", "Deformable Spatial Registration Storage"
TURNED = 1e-4  # by which a rotation may miss its inverse: what decimals round, 0.05 mm over half a metre
SAME_MM = 0.1  # between two objects that say the same

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Link:
    """An item of an object: the frame of some images and its way to that of the object.

    Attributes:
        frame_uid: of the images; empty where the item names images alone.
        images: SOP instance UIDs that it names; none where it is about the whole frame.
        matrix_lps: (4, 4) LPS mm there to LPS mm in the object's frame; None where it is not rigid.
        fault: why there is no matrix, in words.
    """

    frame_uid: str
    images: frozenset[str]
    matrix_lps: Matrix | None
    fault: str = ""

    def is_of(self, series: Series) -> bool:
        """Return whether it is about a series: by frame of reference, and by image where it names some."""
        named = any(frame.sop_instance_uid in self.images for frame in series.frames)
        same_frame = bool(self.frame_uid) and self.frame_uid == series.frame_of_reference_uid
        return (same_frame or not self.frame_uid) and (named or not self.images)


@dataclass(frozen=True, eq=False)
class RegistrationObject:
    """A registration object.

    Attributes:
        path: the file.
        frame_uid: frame of reference that it registers to; empty where it could not be read.
        links: the frames that it registers.
    """

    path: Path
    frame_uid: str = ""
    links: tuple[Link, ...] = ()

    def way(self, series: Series) -> tuple[Matrix | None, str]:
        """Return the way from a series' frame to that of the object; or why there is none, empty: it says nothing."""
        links = [link for link in self.links if link.is_of(series)]
        if not links and self.frame_uid and series.frame_of_reference_uid == self.frame_uid:
            return np.eye(4), ""
        fault = next((link.fault for link in links if link.matrix_lps is None), "")
        matrices = [link.matrix_lps for link in links if link.matrix_lps is not None]
        if fault or not matrices:
            return None, fault
        if any(not np.allclose(matrix, matrices[0], atol=1e-6) for matrix in matrices):
            return None, "it has several matrices for one frame of reference"
        return matrices[0], ""


def open_registrations(files: Iterable[PassedOver]) -> list[RegistrationObject]:
    """Read the registration objects among the files that a scan passed over; one that cannot be read says nothing."""
    with no_header_text():
        return [_open(file) for file in files if file.file_class == "non_image" and file.detail in (RIGID, DEFORMABLE)]


def find_registration(
    objects: Sequence[RegistrationObject], series: Series, first: Series
) -> tuple[Registration | None, str]:
    """Return how a series comes into the frame of reference of another one.

    Args:
        objects: of the tree.
        series: what is to be moved.
        first: where to.

    Returns:
        The registration; or None and why there is none, in words: no object speaks of both, or one that does is not
        rigid, or two differ.
    """
    found: list[tuple[NDArray[np.floating[Any]], Path]] = []
    for each in objects:
        (source, why), (target, why_first) = each.way(series), each.way(first)
        if (source is None and not why) or (target is None and not why_first):
            continue  # it does not speak of both
        if source is None or target is None:
            return None, f"a registration object maps one to the other, but {why or why_first}"
        found.append((np.linalg.solve(target, source), each.path))
    if not found:
        lost = any(not each.links and not each.frame_uid for each in objects)
        return None, f"no registration object {'that can be read ' if lost else ''}maps one to the other"
    apart = max((_apart_mm(matrix, found[0][0], series) for matrix, _ in found))
    if apart > SAME_MM:
        return None, f"{len(found)} registration objects map one to the other, and differ by {apart:.3g} mm"
    matrix, path = found[0]
    return Registration(tuple(map(tuple, (LPS_TO_RAS @ matrix @ LPS_TO_RAS).tolist())), path), ""


def registration_note(registration: Registration, series: Series) -> str:
    """Say how far a series is turned, and moved in its middle."""
    matrix = np.array(registration.matrix_ras)
    angle = math.degrees(math.acos(float(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))
    words = "lies in another frame of reference: moved by the rigid matrix of a registration object"
    if series.affine_ras is None or series.shape is None:
        return words
    middle = series.affine_ras @ [*((np.array(series.shape) - 1) / 2), 1.0]
    moved = float(np.linalg.norm((matrix @ middle - middle)[:3]))
    return f"{words}, turned by {angle:.3g} degrees, its middle by {moved:.3g} mm"


def _open(file: PassedOver) -> RegistrationObject:
    try:
        dataset = pydicom.dcmread(file.path, force=True)
        frame_uid = text(dataset, "FrameOfReferenceUID")
        if file.detail == DEFORMABLE:
            sequence, uid_name = items(dataset, "DeformableRegistrationSequence"), "SourceFrameOfReferenceUID"
            links = [Link(text(item, uid_name), _images(item), None, "it is deformable") for item in sequence]
        else:
            links = [_link(item) for item in items(dataset, "RegistrationSequence")]
    except Exception:  # noqa: BLE001 - pydicom raises what it likes
        return RegistrationObject(file.path)
    return RegistrationObject(file.path, frame_uid, tuple(links))


def _link(item: Dataset) -> Link:
    matrices, fault = [], ""
    for part in items(item, "MatrixRegistrationSequence"):
        for one in items(part, "MatrixSequence"):
            values = numbers(one.get("FrameOfReferenceTransformationMatrix"))
            kind = text(one, "FrameOfReferenceTransformationMatrixType")
            matrix = np.reshape(values, (4, 4)) if len(values) == 16 else None
            fault = fault or _not_rigid(matrix, kind)
            matrices.append(np.eye(4) if matrix is None else matrix)
    if not matrices and not fault:
        fault = "it has no matrix"
    product, reverse = (reduce(np.matmul, order, np.eye(4)) for order in (matrices, matrices[::-1]))
    if not fault and not np.allclose(product, reverse, atol=1e-6):
        fault = f"it has {len(matrices)} matrices, whose order readers take differently"
    return Link(text(item, "FrameOfReferenceUID"), _images(item), None if fault else product, fault)


def _images(item: Dataset) -> frozenset[str]:
    return frozenset(text(image, "ReferencedSOPInstanceUID") for image in items(item, "ReferencedImageSequence"))


def _not_rigid(matrix: Matrix | None, kind: str) -> str:
    """Return why a matrix does not turn and move alone; empty where it does."""
    if matrix is None:
        return "its matrix has not 16 numbers"
    if kind != "RIGID":
        return f"its matrix is {kind if kind in ('RIGID_SCALE', 'AFFINE') else 'of no known type'}, expected RIGID"
    turn = matrix[:3, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > TURNED or np.abs(matrix[3] - [0, 0, 0, 1]).max() > TURNED:
        return "its matrix says that it is rigid, and scales or shears"
    return "" if np.linalg.det(turn) > 0 else "its matrix mirrors"


def _apart_mm(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]], series: Series) -> float:
    """Return how far two matrices move a corner of a series apart."""
    if series.affine_ras is None or series.shape is None:
        return float(np.abs(one - other).max())
    ends = [(0, size - 1) for size in series.shape]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)], float).T
    places = LPS_TO_RAS @ series.affine_ras @ corners
    return float(np.linalg.norm(((one - other) @ places)[:3], axis=0).max())
