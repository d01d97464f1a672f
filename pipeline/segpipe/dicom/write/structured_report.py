"""DICOM structured report of volumes: Measurement Report (PS3.16 TID 1500) that refers to a segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
from pydicom import dcmread
from pydicom.sr.codedict import codes

from segpipe.dicom.codes import LabelInfo, Term
from segpipe.dicom.model import Series
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.quality_content import (
    interval_in_words,
    measured_volume,
    name_scheme,
    predicted_dice,
    quality_group,
)
from segpipe.dicom.write.sources import Sources, read_sources
from segpipe.dicom.write.stored_object import (
    MANUFACTURER,
    SR,
    WORDING,
    AlgorithmInfo,
    as_code,
    encoded,
    instance_attributes,
    uid_of,
    write_derived,
)
from segpipe.errors import SegpipeError

PROCEDURES = {  # CID 100
    "CT": Term("25045-6", "LN", "CT unspecified body region"),
    "MR": Term("25056-3", "LN", "MRI unspecified body region"),
    "PT": Term("44136-0", "LN", "PET unspecified body region"),
}
ANY_PROCEDURE = Term("363679005", "SCT", "Imaging procedure")
MILLILITRE = Term("ml", "UCUM", "Milliliter")


def write_sr(
    series: Series,
    seg: str | Path,
    volumes_ml: Mapping[str, float],
    infos: Sequence[LabelInfo],
    path: str | Path,
    *,
    algorithm: AlgorithmInfo,
    deidentified: bool = False,
    judgement: Judgement | None = None,
) -> None:
    """Write the volumes of a segmentation as a structured report, which is preliminary and not verified.

    Args:
        series: the source.
        seg: DICOM SEG that `write_seg` wrote for it: what was measured.
        volumes_ml: label name to volume in mL; a label that was not found has 0.
        infos: the labels.
        path: the file.
        algorithm: what made the labels.
        deidentified: without the free text and institution of the source.
        judgement: what is said of its quality: decision and reasons, what is predicted of each label, and the interval
            of its volume; None where nothing was judged.

    Raises:
        DataError: the series cannot carry a report.
        SegpipeError: a label has no volume or no segment.
        UsageError: the file cannot be written.
    """
    infos = sorted(infos, key=lambda info: info.value)
    volumes = [round(float(volumes_ml[info.name]), 3) for info in infos if info.name in volumes_ml]
    if len(volumes) != len(infos):
        raise SegpipeError("a label has no volume for the structured report", case_id=series.case_id)

    def make() -> bytes:
        sources = read_sources(series, deidentified)
        segmentation = dcmread(seg, stop_before_pixels=True)
        groups = [
            _measured(info, volume, segmentation, series, algorithm, judgement)
            for info, volume in zip(infos, volumes, strict=True)
        ]
        uid = uid_of(SR, segmentation.SOPInstanceUID, volumes, algorithm, deidentified, judgement, WORDING)
        if judgement is not None:
            pairs = zip(infos, volumes, strict=True)
            apart = [words for info, ml in pairs if (words := interval_in_words(info.name, ml, judgement))]
            groups.append(quality_group(judgement, segmentation.SOPInstanceUID, apart))
        report = _report(sources, segmentation, groups, uid, algorithm)
        if judgement is not None:
            name_scheme(report)
        return encoded(report)

    write_derived(path, series, make)


def _report(sources: Sources, segmentation: Any, groups: list[Any], uid: str, algorithm: AlgorithmInfo) -> Any:
    report = hd.sr.MeasurementReport(
        observation_context=_context(algorithm),
        procedure_reported=as_code(PROCEDURES.get(sources.series.modality, ANY_PROCEDURE)),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[segmentation, *sources.headers],
        content=report[0],
        **instance_attributes(SR, uid, sources.series, algorithm, "Volumes"),
        is_complete=True,
        is_final=False,
        is_verified=False,
    )


def _context(algorithm: AlgorithmInfo) -> Any:
    """Say who observed: a device, named by the bundle."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=uid_of("device", *algorithm.identity),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=f"{algorithm.name} {algorithm.version}",
        serial_number=algorithm.bundle_sha256 or None,
    )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _segment_of(info: LabelInfo, segmentation: Any, series: Series) -> Any:
    for segment in segmentation.SegmentSequence:
        if segment.get("TrackingID") == info.name:
            return segment
    raise SegpipeError("the segmentation has no segment for a label", found=info.name, case_id=series.case_id)


def _measured(
    info: LabelInfo,
    volume_ml: float,
    segmentation: Any,
    series: Series,
    algorithm: AlgorithmInfo,
    judgement: Judgement | None,
) -> Any:
    """Build TID 1411: one segment, its volume, and the Dice that is predicted of it."""
    segment = _segment_of(info, segmentation, series)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=info.name),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=int(segment.SegmentNumber),
            source_series=hd.sr.SourceSeriesForSegmentation(series.series_uid),
        ),
        finding_category=as_code(info.category),
        finding_type=as_code(info.type),
        finding_sites=_sites(info),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[f"{name}={value}" for name, value in algorithm.parameters.items()],
        ),
        measurements=[
            measured_volume(info.name, volume_ml, MILLILITRE, judgement),
            *predicted_dice(info.name, judgement),
        ],
    )


def _sites(info: LabelInfo) -> Any:
    """Say where it lies: the organ of a lesion, or the organ itself with its side."""
    place = info.region or (info.type if info.is_anatomy else None)
    if place is None:
        return None
    side = as_code(info.side) if info.side else None
    return [hd.sr.FindingSite(anatomic_location=as_code(place), laterality=side)]
