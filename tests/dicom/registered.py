"""DICOM registration objects for tests, and grids for what they move."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from dicom import make

SPATIAL, DEFORMABLE = "1.2.840.10008.5.1.4.1.1.66.1", "1.2.840.10008.5.1.4.1.1.66.3"
STUDY = generate_uid()


def rigid(degrees: float = 12.0, move: tuple[float, float, float] = (4.0, -6.0, 8.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.36, 0.48, 0.8])).as_matrix()
    matrix[:3, 3] = move
    return matrix


def item(frame: str, *matrices: np.ndarray, kind: str = "RIGID", images: tuple[str, ...] = ()) -> Dataset:
    link, registration = Dataset(), Dataset()
    if frame:
        link.FrameOfReferenceUID = frame
    if images:
        link.ReferencedImageSequence = [Dataset() for _ in images]
        for image, uid in zip(link.ReferencedImageSequence, images, strict=True):
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = make.SOP_CLASSES["PT"], uid
    registration.MatrixSequence = [Dataset() for _ in matrices]
    for one, matrix in zip(registration.MatrixSequence, matrices, strict=True):
        one.FrameOfReferenceTransformationMatrix = make.decimal(matrix.ravel())
        one.FrameOfReferenceTransformationMatrixType = kind
    link.MatrixRegistrationSequence = [registration]
    return link


def reg(frame: str, *links: Dataset, sop_class: str = SPATIAL) -> Dataset:
    """A registration object to a frame of reference."""
    made = make.blank("REG", sop_class, STUDY, generate_uid(), frame)
    for name in ("RescaleSlope", "RescaleIntercept", "BitsAllocated", "SamplesPerPixel", "ImageType"):
        delattr(made, name)
    made.ContentDate, made.ContentTime, made.ContentLabel = "20200102", "101112", "REGISTRATION"
    if sop_class == DEFORMABLE:
        made.DeformableRegistrationSequence = links
        for link in links:
            link.SourceFrameOfReferenceUID = link.FrameOfReferenceUID
            del link.FrameOfReferenceUID
    else:
        made.RegistrationSequence = list(links)
    return made


def around(centre: np.ndarray, edge_mm: float = 3.0, size: int = 16) -> make.Grid:
    """An oblique grid about a place."""
    grid = make.Grid(make.OBLIQUE, size, size - 1, size - 2, (edge_mm, edge_mm), edge_mm)
    axes = np.array([grid.orientation[:3], grid.orientation[3:], grid.normal])
    x, y, z = centre - edge_mm * np.array([size - 2, size - 1, size - 3]) / 2 @ axes
    return make.Grid(make.OBLIQUE, size, size - 1, size - 2, (edge_mm, edge_mm), edge_mm, (x, y, z))
