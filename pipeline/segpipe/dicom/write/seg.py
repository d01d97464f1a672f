"""DICOM Segmentation (PS3.3 section A.51, label maps A.94) of a label map on a series' own slices.

The library pairs planes with source images in the order in which they are given, so both are given sorted, and what was
encoded is read again by other code and compared voxel by voxel before a file appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from segpipe.dicom.codes import LabelInfo
from segpipe.dicom.model import Series
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.sources import Sources, read_sources
from segpipe.dicom.write.stored_object import (
    LABELMAP,
    LONG_STRING,
    NOT_FOR_DIAGNOSIS,
    SEG,
    AlgorithmInfo,
    as_code,
    check_labels,
    code_item,
    content_uid,
    encoded,
    instance_attributes,
    uid_of,
    use_utf8,
    write_derived,
)
from segpipe.errors import SegpipeError

Kind = Literal["binary", "labelmap"]
FILES: dict[Kind, str] = {"binary": SEG, "labelmap": LABELMAP}
SAME_PLANE_MM = 1e-3


def write_seg(
    series: Series,
    labels: NDArray[np.integer],
    infos: Sequence[LabelInfo],
    path: str | Path,
    *,
    algorithm: AlgorithmInfo,
    kind: Kind = "binary",
    omit_empty_frames: bool = True,
    deidentified: bool = False,
    regions: int = 0,
    judgement: Judgement | None = None,
) -> None:
    """Write a label map as DICOM SEG.

    Args:
        series: the source; one that `obstacles` has nothing against.
        labels: (C, R, S) uint8 or uint16 on the grid of the series, 0 is background; bits where ``regions`` overlap.
        infos: every label that may occur, present or not; each becomes a segment.
        path: the file.
        algorithm: what made the labels.
        kind: ``binary`` for every viewer: one bit a voxel and segment, segments numbered 1 to N by rising label value.
            ``labelmap`` (Supplement 243) is small and quick for many segments, RLE compressed; a segment's number is
            the label's value.
        omit_empty_frames: leave out planes without the segment. Where nothing is labelled all planes are written.
        deidentified: without the free text and institution of the source.
        regions: how many regions may overlap: bit n of a voxel is label n + 1, and each becomes a segment with all its
            voxels; ``binary`` alone. 0 where each voxel has one label.
        judgement: what is said of its quality, of which the SEG holds the decision; None where nothing was judged.

    Raises:
        DataError: the series cannot carry a SEG.
        SegpipeError: the labels are not on the series' grid, or reading back gave other voxels.
        UsageError: the file cannot be written.
    """
    check_labels(series, labels, infos, regions)
    infos = sorted(infos, key=lambda info: info.value)
    if regions and kind != "binary":
        raise SegpipeError("regions that overlap are no label map", case_id=series.case_id)
    numbers = {info.value: info.value if kind == "labelmap" else k for k, info in enumerate(infos, 1)}
    if regions:
        masks = np.stack([labels >> (info.value - 1) & 1 for info in infos], -1).astype(np.uint8)
        planes: NDArray[np.integer] = np.ascontiguousarray(masks.transpose(2, 1, 0, 3))
    else:
        planes = np.ascontiguousarray(_renumber(labels, numbers).transpose(2, 1, 0))
    uid = content_uid(FILES[kind], series, labels, infos, algorithm, omit_empty_frames, deidentified, judgement)

    def make() -> bytes:
        sources = read_sources(series, deidentified)
        segmentation = _segmentation(sources, planes, infos, numbers, uid, algorithm, kind, omit_empty_frames)
        if judgement is not None:
            segmentation.ContentDescription = judgement.in_a_line()
        if sources.multi_frame:
            _refer_to_frames(segmentation, sources)
        content = encoded(segmentation)
        _verify(content, sources, planes)
        return content

    write_derived(path, series, make)


def _renumber(labels: NDArray[np.integer], numbers: dict[int, int]) -> NDArray[np.integer]:
    if all(value == number for value, number in numbers.items()):
        return labels
    table = np.zeros(int(labels.max(initial=0)) + 1, np.uint16 if len(numbers) > 255 else np.uint8)
    for value, number in numbers.items():
        if value < len(table):
            table[value] = number
    return table[labels]


def _segmentation(
    sources: Sources,
    planes: NDArray[np.integer],
    infos: Sequence[LabelInfo],
    numbers: dict[int, int],
    uid: str,
    algorithm: AlgorithmInfo,
    kind: Kind,
    omit_empty_frames: bool,
) -> Any:
    images = list(_source_images(sources))
    for image in images:
        use_utf8(image, [algorithm.name, *(info.name for info in infos)])
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=planes,
        segmentation_type=kind.upper(),
        segment_descriptions=[_description(info, numbers[info.value], uid, algorithm) for info in infos],
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        omit_empty_frames=omit_empty_frames,
        content_label="SEGMENTATION",
        content_description=NOT_FOR_DIAGNOSIS,
        **instance_attributes(FILES[kind], uid, sources.series, algorithm, "Segmentation"),
    )
    segmentation.ContentCreatorName = None  # type 2, which the library leaves out
    organization = uid_of("dimensions", uid)
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    return segmentation


def _source_images(sources: Sources) -> Iterator[Any]:
    """Yield the headers as the library wants them: one orientation and spacing for all, planes in the sorted order."""
    series = sources.series
    first, spacing = series.frames[0], series.spacing_mm or (1.0, 1.0, 1.0)
    if not sources.multi_frame:
        for header in sources.headers:
            header.ImageOrientationPatient = sources.first.ImageOrientationPatient
            header.PixelSpacing = sources.first.PixelSpacing
            header.SliceThickness = sources.first.get("SliceThickness") or f"{spacing[2]:.6g}"
            header.SpacingBetweenSlices = f"{spacing[2]:.10g}"
            yield header
        return
    header, shared = sources.first, Dataset()
    shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(first.pixel_spacing_mm, spacing[2], spacing[2])
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", first.orientation)
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for frame in series.frames:
        item = Dataset()
        item.PlanePositionSequence = hd.PlanePositionSequence("PATIENT", frame.position_mm)
        header.PerFrameFunctionalGroupsSequence.append(item)
    header.NumberOfFrames = len(series.frames)
    yield header


def _description(info: LabelInfo, number: int, uid: str, algorithm: AlgorithmInfo) -> Any:
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=info.name[:LONG_STRING],
        segmented_property_category=as_code(info.category),
        segmented_property_type=as_code(info.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name[:LONG_STRING],
            version=algorithm.version[:LONG_STRING],
            family=codes.DCM.ArtificialIntelligence,
            parameters=algorithm.parameters,
        ),
        tracking_uid=uid_of("segment", uid, info.value),
        tracking_id=info.name,
        anatomic_regions=[as_code(info.region)] if info.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*info.colour_rgb),
    )
    segment.SegmentDescription = f"Label value {info.value}"
    if info.modifiers:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(term) for term in info.modifiers]
    return segment


def _refer_to_frames(segmentation: Any, sources: Sources) -> None:
    """Name the true file and frame: the library was shown the sorted frames, as if they were all of one file."""
    frames = sources.series.frames
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in item.DerivationImageSequence:
            derivation.SourceImageSequence = [deepcopy(image) for image in derivation.SourceImageSequence]
            for image in derivation.SourceImageSequence:
                frame = frames[int(image.ReferencedFrameNumber) - 1]
                image.ReferencedSOPInstanceUID = frame.sop_instance_uid
                image.ReferencedFrameNumber = frame.number + 1
    instances = []
    for header in sources.headers:
        instance = Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = (header.SOPClassUID, header.SOPInstanceUID)
        instances.append(instance)
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances
    segmentation.SourceImageSequence = deepcopy(instances)


def _verify(content: bytes, sources: Sources, planes: NDArray[np.integer]) -> None:
    """Read the file as any other reader would, by position and segment number, and compare every voxel.

    Args:
        content: of the file.
        sources: of the series.
        planes: (S, R, C) segment numbers, or of regions a mask for each segment (S, R, C, segments).
    """
    written = dcmread(BytesIO(content))
    positions = np.array([frame.position_mm for frame in sources.series.frames])
    missing = planes != 0
    for item, pixels in zip(written.PerFrameFunctionalGroupsSequence, _stored_frames(written), strict=True):
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        distances = np.linalg.norm(positions - position, axis=1)
        k = int(distances.argmin())
        if "SegmentIdentificationSequence" in item:
            number = int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            pixels = pixels.astype(bool)
            wanted = planes[k][..., number - 1] == 1 if planes.ndim == 4 else planes[k] == number
            same = np.array_equal(pixels, wanted)
        else:
            number, same = 0, np.array_equal(pixels, planes[k])
        if not same or distances[k] > SAME_PLANE_MM:
            raise _differs(sources.series)
        left = missing[k][..., number - 1] if planes.ndim == 4 else missing[k]
        left &= pixels == 0
    if missing.any():
        raise _differs(sources.series)


def _stored_frames(written: Any) -> Iterator[NDArray[np.integer]]:
    """Yield (R, C) of every frame; bits are packed from the lowest on and across frames (PS3.5 8.1.1)."""
    if written.BitsAllocated > 1:
        yield from iter_pixels(written)
        return
    packed = np.frombuffer(written.PixelData, np.uint8)
    shape = int(written.Rows), int(written.Columns)
    size = shape[0] * shape[1]
    for start in range(0, size * int(written.NumberOfFrames), size):
        bits = np.unpackbits(packed[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(shape)


def _differs(series: Series) -> SegpipeError:
    return SegpipeError(
        "the DICOM SEG was not written: read back, it is not the label map",
        case_id=series.case_id,
        hint="report it; the NIfTI label map is not affected",
    )
