"""The structured report: TID 1500 with volumes in mL that refer to the segments."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import pytest
from labelled import ALGORITHM, INFOS, some_labels, write_series
from pydicom import dcmread

from segpipe.dicom.codes import label_infos
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.structured_report import write_sr
from segpipe.errors import SegpipeError

VOLUMES = {"liver": 1234.5678, "liver_tumor": 0.25, "kidney_left": 0.0}


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_volumes_and_references(tmp_path: Path, kind: str, modality: str) -> None:
    series = write_series(tmp_path / "in", modality=modality)
    labels = some_labels(series)
    labels[labels == 7] = 0
    write_seg(series, labels, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM, kind=kind)  # type: ignore[arg-type]
    write_sr(series, tmp_path / "seg.dcm", VOLUMES, INFOS, tmp_path / "sr.dcm", algorithm=ALGORITHM)
    report = hd.sr.srread(tmp_path / "sr.dcm")
    segmentation = dcmread(tmp_path / "seg.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["liver", "liver_tumor", "kidney_left"]
    assert [group.finding_type.meaning for group in groups] == ["Liver", "Neoplasm", "Kidney"]
    assert [group.finding_sites[0].topographical_modifier for group in groups] == [None] * 3
    assert [group.finding_sites[0].value.meaning for group in groups] == ["Liver", "Liver", "Kidney"]
    for group, value, segment in zip(groups, (1234.568, 0.25, 0.0), segmentation.SegmentSequence[-3:], strict=True):
        (measurement,) = group.get_measurements()
        assert (measurement.name.meaning, measurement.unit.value, measurement.value) == ("Volume", "ml", value)
        (reference,) = [item for item in group[0].ContentSequence if item.ValueType == "IMAGE"]
        (image,) = reference.ReferencedSOPSequence
        assert image.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert image.ReferencedSegmentNumber == segment.SegmentNumber
        assert group.tracking_uid == segment.TrackingUID
    assert report.CompletionFlag == "COMPLETE" and report.VerificationFlag == "UNVERIFIED"
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert segmentation.SeriesInstanceUID in [item.SeriesInstanceUID for item in evidence]


def test_a_label_without_a_volume_or_a_segment(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    labels = some_labels(series)
    labels[labels == 7] = 0
    write_seg(series, labels, INFOS[:2], tmp_path / "seg.dcm", algorithm=ALGORITHM)
    with pytest.raises(SegpipeError, match="no segment"):
        write_sr(series, tmp_path / "seg.dcm", VOLUMES, INFOS, tmp_path / "sr.dcm", algorithm=ALGORITHM)
    with pytest.raises(SegpipeError, match="no volume"):
        write_sr(series, tmp_path / "seg.dcm", {"liver": 1}, INFOS, tmp_path / "sr.dcm", algorithm=ALGORITHM)
    assert not (tmp_path / "sr.dcm").exists()


def test_side_and_position_both_reach_the_archive(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    labels = some_labels(series)
    names = {1: "hippocampus_anterior_left", 3: "hippocampus_anterior_right", 7: "gizmo_left"}
    infos, _ = label_infos(names)
    write_seg(series, labels, infos, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    volumes = dict.fromkeys(names.values(), 1.0)
    write_sr(series, tmp_path / "seg.dcm", volumes, infos, tmp_path / "sr.dcm", algorithm=ALGORITHM)
    write_rtstruct(series, labels, infos, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    segments = dcmread(tmp_path / "seg.dcm").SegmentSequence
    observations = dcmread(tmp_path / "rt.dcm").RTROIObservationsSequence
    for kinds in (
        [segment.SegmentedPropertyTypeCodeSequence[0] for segment in segments],
        [observation.RTROIIdentificationCodeSequence[0] for observation in observations],
    ):
        said = [[item.CodeMeaning for item in kind.SegmentedPropertyTypeModifierCodeSequence] for kind in kinds]
        assert said == [["Anterior", "Left"], ["Anterior", "Right"], ["Left"]]
    groups = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    sites = [group.finding_sites[0] for group in groups if group.finding_sites]
    assert [site.laterality.meaning for site in sites] == ["Left", "Right"]
