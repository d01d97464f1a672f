"""DICOM RT Structure Set (PS3.3 section A.19) of a label map: contours along pixel edges on each slice's own plane.

A polygon through pixel edges has exactly the area of its pixels, and every reader that asks whether a pixel's centre
lies inside gets the mask back. DICOM knows no holes: PS3.3 section C.8.8.6.3 joins an inner contour to the outer one by
a channel of no width (a keyhole), which every reader understands, whether it unites the contours of a plane or counts
them even and odd.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.base import SOPClass
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from scipy.ndimage import find_objects

from segpipe.dicom.codes import LabelInfo
from segpipe.dicom.model import Frame, Series
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.sources import Sources, read_sources
from segpipe.dicom.write.stored_object import (
    LONG_STRING,
    NOT_FOR_DIAGNOSIS,
    RTSTRUCT,
    AlgorithmInfo,
    check_labels,
    code_item,
    content_uid,
    encoded,
    instance_attributes,
    use_utf8,
    write_derived,
)

Point = tuple[int, int]
RIGHT_OF = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}
EDGES = (  # direction of walking, the neighbour that is outside, the corner where the edge of pixel (0, 0) starts
    ((1, 0), (0, -1), (0, 0)),
    ((0, 1), (1, 0), (1, 0)),
    ((-1, 0), (0, 1), (1, 1)),
    ((0, -1), (-1, 0), (0, 1)),
)


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Trace closed polygons around a mask's pixels, one for each part that hangs together by edges.

    Args:
        mask: (C, R).

    Returns:
        Each (N, 2) corners, the first not repeated, on the grid of pixel corners: pixel ``(i, j)`` covers ``i`` to
        ``i + 1`` and ``j`` to ``j + 1``.
    """
    loops = _loops(mask)
    corners = {point for loop in loops for point in loop}
    holes_at: dict[Point, list[list[Point]]] = {}
    polygons = []
    for loop in reversed(loops):  # a hole is joined to what starts further left, so it comes first
        whole = []
        for point in loop:
            whole.append(point)
            for hole in holes_at.get(point, ()):
                whole += [*hole, hole[0], point]
        if _area(loop) > 0:
            polygons.append(np.array(_corners(whole)))
        else:
            holes_at.setdefault(_left_of(loop[0], corners), []).append(whole)
    return polygons[::-1]


def _loops(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Trace boundaries as closed walks over pixel corners, the mask on the right; each starts at its least corner.

    Outlines go from (1, 0) to (0, 1), holes the other way. Where pixels touch at a corner only, the walk turns right,
    so that they stay apart. The least corner that is left over never is such a one, so a walk ends where it began.
    """
    ways = _edges(mask)
    loops = []
    for first in sorted(ways):
        if first not in ways:
            continue
        loop, at, heading = [], first, ways[first][0]
        while at in ways:
            onward = ways[at]
            heading = onward[0] if len(onward) == 1 else RIGHT_OF[heading]
            onward.remove(heading)
            if not onward:
                del ways[at]
            loop.append(at)
            at = (at[0] + heading[0], at[1] + heading[1])
            if at == first:
                break
        loops.append(loop)
    return loops


def _edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Return every edge between mask and not mask: the corner where it starts to the directions that lead on."""
    padded = np.pad(mask, 1)
    ways: dict[Point, list[Point]] = {}
    for direction, (di, dj), start in EDGES:
        outside = ~np.roll(padded, (-di, -dj), axis=(0, 1))
        for i, j in (np.argwhere(padded & outside) - 1 + start).tolist():
            ways.setdefault((i, j), []).append(direction)
    return ways


def _left_of(point: Point, corners: set[Point]) -> Point:
    """Find the next boundary corner to the left of a hole's least corner; between them lies mask on both sides."""
    i, j = point[0] - 1, point[1]
    while (i, j) not in corners:
        i -= 1
    return i, j


def _area(loop: list[Point]) -> float:
    """Return the signed area (shoelace formula); positive for an outline."""
    points = np.array(loop)
    following = np.roll(points, -1, axis=0)
    return float((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2


def _corners(loop: list[Point]) -> list[Point]:
    """Drop the points of a walk that lie on a straight way.

    It ends at the least corner, so that what closes it runs along i: some readers forget a closing side, which there
    bounds nothing from left or right.
    """
    ways = [np.sign(np.subtract(b, a)).tolist() for a, b in itertools.pairwise([loop[-1], *loop, loop[0]])]
    turns = zip(loop, itertools.pairwise(ways), strict=True)
    corners = [point for point, (before, after) in turns if before != after]
    return corners[1:] + corners[:1]


RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired, which PS3.3 C.8.8.5 still wants named
DECIMALS = 4  # of mm: 0.1 micrometre, 10 characters of the 16 that a DS may have


def write_rtstruct(
    series: Series,
    labels: NDArray[np.integer],
    infos: Sequence[LabelInfo],
    path: str | Path,
    *,
    algorithm: AlgorithmInfo,
    deidentified: bool = False,
    regions: int = 0,
    judgement: Judgement | None = None,
) -> None:
    """Write a label map as DICOM RTSTRUCT, which nobody has approved.

    Contours run along pixel edges, so that area and volume are kept and a reader that asks for pixel centres gets the
    mask back. A hole is joined to its outline by a keyhole.

    Args:
        series: the source; one that `obstacles` has nothing against.
        labels: (C, R, S) uint8 or uint16 on the grid of the series, 0 is background; bits where ``regions`` overlap.
        infos: every label that may occur; each becomes a region of interest, numbered by its label value. One that
            does not occur has no contours.
        path: the file.
        algorithm: what made the labels.
        deidentified: without the free text and institution of the source.
        regions: how many regions may overlap: bit n of a voxel is label n + 1, and each becomes a region of interest
            with all its voxels. 0 where each voxel has one label.
        judgement: what is said of its quality, of which it holds decision and reasons; None where nothing was judged.

    Raises:
        DataError: the series cannot carry an RTSTRUCT.
        SegpipeError: the labels are not on the series' grid.
        UsageError: the file cannot be written.
    """
    check_labels(series, labels, infos, regions)
    infos = sorted(infos, key=lambda info: info.value)
    uid = content_uid(RTSTRUCT, series, labels, infos, algorithm, deidentified, judgement)

    def make() -> bytes:
        sources = read_sources(series, deidentified)
        described = NOT_FOR_DIAGNOSIS if judgement is None else judgement.in_words()
        dataset = _empty(sources, infos, uid, algorithm, described)
        images = [_image(sources, frame) for frame in series.frames]
        _add_structure_set(dataset, sources, images, algorithm)
        boxes = [] if regions else find_objects(labels)
        for info in infos:
            _add_region(dataset, info, algorithm)
            mask = labels >> (info.value - 1) & 1 if regions else labels
            found = find_objects(mask) if regions else boxes[info.value - 1 : info.value]
            for box in filter(None, found):
                part, first = mask[box] == (1 if regions else info.value), tuple(side.start for side in box)
                dataset.ROIContourSequence[-1].ContourSequence = list(_contours(series, images, part, first))
        return encoded(dataset)

    write_derived(path, series, make)


def _empty(sources: Sources, infos: Sequence[LabelInfo], uid: str, algorithm: AlgorithmInfo, described: str) -> Any:
    """Build patient, study, series, equipment, frame of reference, and what is said of the whole."""
    header = sources.first
    use_utf8(header, [algorithm.name, described, *(info.name for info in infos)])
    dataset = SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        sop_class_uid=RT_STRUCTURE_SET,
        modality="RTSTRUCT",
        **instance_attributes(RTSTRUCT, uid, sources.series, algorithm, "Structures"),
        transfer_syntax_uid=ImplicitVRLittleEndian,  # an explicit DS has no room for 64 kB of contour (PS3.5 7.1.2)
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        specific_character_set=header.get("SpecificCharacterSet"),
    )
    dataset.copy_patient_and_study_information(header)
    dataset.OperatorsName = None
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.PositionReferenceIndicator
    dataset.StructureSetDescription = described
    return dataset


def _add_structure_set(dataset: Any, sources: Sources, images: list[Any], algorithm: AlgorithmInfo) -> None:
    """Add label, date and what the contours refer to: frame of reference, study, series and every slice."""
    now = datetime.now()
    dataset.StructureSetLabel = "AUTOMATIC"
    dataset.StructureSetName = algorithm.named()
    dataset.ApprovalStatus = "UNAPPROVED"  # PS3.3 C.8.8.16
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    reference, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources.first.SeriesInstanceUID
    series.ContourImageSequence = images
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY, dataset.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    reference.FrameOfReferenceUID = dataset.FrameOfReferenceUID
    reference.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = ([], [], [])


def _add_region(dataset: Any, info: LabelInfo, algorithm: AlgorithmInfo) -> None:
    """Add one region of interest, as yet without contours."""
    region, contour, observation = Dataset(), Dataset(), Dataset()
    region.ROINumber = contour.ReferencedROINumber = info.value
    observation.ObservationNumber = observation.ReferencedROINumber = info.value
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIName = info.name[:LONG_STRING]
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = algorithm.named()
    contour.ROIDisplayColor = list(info.colour_rgb)
    kind = code_item(info.type)
    if info.modifiers:
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(term) for term in info.modifiers]
    observation.RTROIIdentificationCodeSequence = [kind]
    observation.RTROIInterpretedType = "ORGAN" if info.is_anatomy else ""
    observation.ROIInterpreter = ""
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(contour)
    dataset.RTROIObservationsSequence.append(observation)


def _contours(series: Series, images: list[Any], part: NDArray[np.bool_], first: tuple[int, ...]) -> Iterator[Any]:
    """Yield items of a ContourSequence, plane by plane, for the part of a mask that starts at the voxel ``first``."""
    number = 0
    for k in range(part.shape[2]):
        frame, image = series.frames[first[2] + k], images[first[2] + k]
        for polygon in contours(part[:, :, k]):
            points = _to_mm(polygon + first[:2], frame)
            number += 1
            item = Dataset()
            item.ContourNumber = number
            item.ContourImageSequence = [image]
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.add(_decimals("ContourData", points))
            yield item


def _to_mm(corners: NDArray[np.int64], frame: Frame) -> NDArray[np.float64]:
    """Map pixel corners to LPS mm by PS3.3 equation C.7.6.2.1-1; a corner lies half a pixel before the centre."""
    row_direction, column_direction = np.array(frame.orientation).reshape(2, 3)
    between_rows, between_columns = frame.pixel_spacing_mm
    i, j = (corners - 0.5).T[..., None]
    return np.array(frame.position_mm) + i * between_columns * row_direction + j * between_rows * column_direction


def _decimals(keyword: str, values: NDArray[np.float64]) -> Any:
    """Build a DS element. Its million values are valid as they are made, so the library need not look at each."""
    texts = [f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".") for value in values.ravel().tolist()]
    joined = "\\".join("0" if text == "-0" else text for text in texts)
    return DataElement(tag_for_keyword(keyword) or 0, "DS", joined, already_converted=True)


def _image(sources: Sources, frame: Frame) -> Any:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, number = sources.reference(frame)
    if number is not None:
        item.ReferencedFrameNumber = number
    return item
