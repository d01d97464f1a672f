"""DICOM RTSTRUCT: the contours, placed by the standard's formula, give the mask back on every plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
from labelled import ALGORITHM, GRIDS, INFOS, some_labels, write_enhanced, write_series
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from segpipe.dicom.codes import label_infos
from segpipe.dicom.labels import read_labels
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.errors import DataError, SegpipeError


def read_back(path: Path, series: Series, only: int | None = None) -> tuple[NDArray[Any], float]:
    """The label map by matplotlib's test of points, and how far contours lie from the planes they refer to (mm).

    Of ``only`` one region where they overlap.
    """
    written = dcmread(path)
    assert series.shape is not None
    labels, worst = np.zeros(series.shape, int), 0.0
    i, j = np.indices(series.shape[:2])
    for item in written.ROIContourSequence:
        for contour in item.get("ContourSequence", []) if only in (None, item.ReferencedROINumber) else ():
            reference = contour.ContourImageSequence[0]
            k, frame = next(
                (k, frame)
                for k, frame in enumerate(series.frames)
                if frame.sop_instance_uid == reference.ReferencedSOPInstanceUID
                and frame.number == reference.get("ReferencedFrameNumber", 1) - 1
            )
            points = np.array(contour.ContourData, float).reshape(-1, 3) - frame.position_mm
            assert len(points) == contour.NumberOfContourPoints
            row, column = np.array(frame.orientation).reshape(2, 3)
            worst = max(worst, np.abs(points @ np.cross(row, column)).max())
            rows_mm, columns_mm = frame.pixel_spacing_mm
            outline = Outline(np.c_[points @ row / columns_mm, points @ column / rows_mm])
            inside = outline.contains_points(np.c_[i.ravel(), j.ravel()]).reshape(i.shape)
            labels[..., k][inside] = item.ReferencedROINumber
    return labels, worst


@pytest.mark.parametrize("grid", GRIDS)
def test_points_within_the_contours_are_the_mask(tmp_path: Path, grid: str) -> None:
    series = write_series(tmp_path / "in", grid)
    labels = some_labels(series)
    write_rtstruct(series, labels, INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    found, worst_mm = read_back(tmp_path / "rt.dcm", series)
    assert np.array_equal(found, labels)
    assert worst_mm < 1e-3


@pytest.mark.parametrize("grid", GRIDS)
def test_regions_that_overlap_are_a_region_of_interest_each(tmp_path: Path, grid: str) -> None:
    series = write_series(tmp_path / "in", grid)
    labels = some_labels(series)
    masks = [labels > 0, (labels == 3) | (labels == 7), np.zeros(labels.shape, bool), labels == 1]
    bits = sum((mask.astype(np.uint8) << number for number, mask in enumerate(masks)), np.zeros(labels.shape, np.uint8))
    infos, _ = label_infos(
        {0: "background", 1: "whole", 2: "core", 3: "nowhere", 4: "rim"}, {"name": "x", "codes": None}
    )
    write_rtstruct(series, bits, infos, tmp_path / "rt.dcm", algorithm=ALGORITHM, regions=4)
    assert (masks[0] & masks[1]).any()
    for number, mask in enumerate(masks, 1):
        found, _ = read_back(tmp_path / "rt.dcm", series, number)
        np.testing.assert_array_equal(found == number, mask)
    written = dcmread(tmp_path / "rt.dcm")
    assert [item.ROIName for item in written.StructureSetROISequence] == ["whole", "core", "nowhere", "rim"]
    with pytest.raises(SegpipeError, match="nothing is said of"):
        write_rtstruct(series, bits | 16, infos, tmp_path / "rt.dcm", algorithm=ALGORITHM, regions=4)


def test_each_frame_of_an_enhanced_image_is_referred_to(tmp_path: Path) -> None:
    for series in write_enhanced(tmp_path / "in", times=2):
        labels = some_labels(series)
        write_rtstruct(series, labels, INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
        found, worst_mm = read_back(tmp_path / "rt.dcm", series)
        assert np.array_equal(found, labels)
        assert worst_mm < 1e-3


def raw_decimals(path: Path) -> list[str]:
    """Every DS of the contours as it is stored."""
    found: list[str] = []
    for item in dcmread(path).ROIContourSequence:
        for contour in item.get("ContourSequence", []):
            found += [str(part) for part in contour.ContourData]
    return found


def test_decimals_fit_and_lose_nothing(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", "oblique")
    write_rtstruct(series, some_labels(series), INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    texts = raw_decimals(tmp_path / "rt.dcm")
    assert max(map(len, texts)) <= 16
    assert "-0" not in texts


def test_volume_of_the_contours_is_that_of_the_voxels(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", "oblique")
    labels = some_labels(series)
    write_rtstruct(series, labels, INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    assert series.spacing_mm is not None
    for item in dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        area = 0.0
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            area += np.linalg.norm(np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)) / 2
        voxels = int((labels == item.ReferencedROINumber).sum())
        assert area * series.spacing_mm[2] == pytest.approx(voxels * np.prod(series.spacing_mm), rel=1e-4)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", PatientID="0815")
    labels = some_labels(series)
    labels[labels == 7] = 0
    write_rtstruct(series, labels, INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    written = dcmread(tmp_path / "rt.dcm")
    assert [region.ROIName for region in written.StructureSetROISequence] == ["liver", "liver_tumor", "kidney_left"]
    assert [region.ROINumber for region in written.StructureSetROISequence] == [1, 3, 7]
    assert {region.ROIGenerationAlgorithm for region in written.StructureSetROISequence} == {"AUTOMATIC"}
    assert [item.RTROIInterpretedType for item in written.RTROIObservationsSequence] == ["ORGAN", "", "ORGAN"]
    assert list(written.ROIContourSequence[0].ROIDisplayColor) == list(INFOS[0].colour_rgb)
    assert "ContourSequence" not in written.ROIContourSequence[2]  # not found
    reference = written.ReferencedFrameOfReferenceSequence[0]
    assert reference.FrameOfReferenceUID == written.FrameOfReferenceUID == series.frame_of_reference_uid
    study = reference.RTReferencedStudySequence[0]
    (source,) = study.RTReferencedSeriesSequence
    assert (study.ReferencedSOPInstanceUID, source.SeriesInstanceUID) == (series.study_uid, series.series_uid)
    uids = {image.ReferencedSOPInstanceUID for image in source.ContourImageSequence}
    assert uids == {frame.sop_instance_uid for frame in series.frames}
    assert (written.Modality, written.PatientID, written.ApprovalStatus) == ("RTSTRUCT", "0815", "UNAPPROVED")
    assert written.DeviceSerialNumber == ALGORITHM.bundle_sha256
    assert written.SoftwareVersions[0] == "abdomen_ct 1.2.0"


def test_the_same_content_has_the_same_uid(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    written: list[Dataset] = []
    for _ in range(2):
        write_rtstruct(series, some_labels(series), INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
        written.append(dcmread(tmp_path / "rt.dcm"))
    assert written[0].SOPInstanceUID == written[1].SOPInstanceUID


def test_without_a_frame_of_reference(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", remove=("FrameOfReferenceUID",))
    with pytest.raises(DataError, match="DICOM cannot be written"):
        write_rtstruct(series, some_labels(series), INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)


def test_a_contour_of_more_than_64_kilobytes(tmp_path: Path) -> None:
    """Noise whose outline is one long line; what others write with an explicit VR, where it is UN, is read as well."""
    make.write(make.series(make.Grid(rows=128, columns=128, slices=2)), tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    labels = np.zeros((128, 128, 2), np.uint8)
    labels[..., 0] = np.random.default_rng(0).random((128, 128)) > 0.35
    write_rtstruct(series, labels, INFOS[:1], tmp_path / "rt.dcm", algorithm=ALGORITHM)
    dataset = dcmread(tmp_path / "rt.dcm")
    data = [item["ContourData"] for item in contours(dataset)]
    assert {element.VR for element in data} == {"DS"} and max(len(element.value) for element in data) > 7000
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(tmp_path / "explicit.dcm", implicit_vr=False, little_endian=True)
    assert any(item["ContourData"].VR == "UN" for item in contours(dcmread(tmp_path / "explicit.dcm")))
    for name in ("rt.dcm", "explicit.dcm"):
        (mask,) = read_labels(tmp_path / name, series).values()
        np.testing.assert_array_equal(mask, labels == 1)


def contours(dataset: Dataset) -> list[Dataset]:
    return [item for roi in dataset.ROIContourSequence for item in roi.ContourSequence]
