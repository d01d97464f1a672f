"""DICOM SEG: other readers get the very label map, whatever the source, and nothing else is ever written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import make
import numpy as np
import pytest
from labelled import ALGORITHM, GRIDS, INFOS, in_no_order, some_labels, write_enhanced, write_series
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.sr.codedict import codes

from segpipe.dicom.codes import label_infos
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.write import seg
from segpipe.dicom.write.seg import write_seg
from segpipe.errors import DataError, SegpipeError, chain

NUMBERS = {"binary": [0, 1, 3, 7], "labelmap": list(range(8))}  # segment number to label value


def read_back(path: Path, series: Series, kind: str) -> NDArray[Any]:
    """The label map as highdicom places it in space, brought onto the series' grid by the affine."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    indices = np.argwhere(volume.array)
    to_grid = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ series.affine_ras) @ volume.affine
    places = np.c_[indices, np.ones(len(indices))] @ to_grid[:3].T
    assert np.allclose(places, np.rint(places), atol=1e-3)
    labels = np.zeros(series.shape, int)
    labels[tuple(np.rint(places).astype(int).T)] = np.array(NUMBERS[kind])[volume.array[tuple(indices.T)]]
    return labels


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("grid", GRIDS)
def test_highdicom_reads_the_same_labels(tmp_path: Path, grid: str, kind: Any) -> None:
    series = write_series(tmp_path / "in", grid)
    labels = some_labels(series)
    write_seg(series, labels, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM, kind=kind)
    assert np.array_equal(read_back(tmp_path / "seg.dcm", series, kind), labels)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("omit", [True, False])
def test_planes_by_source_instance(tmp_path: Path, kind: Any, omit: bool) -> None:
    series = write_series(tmp_path / "in", "sagittal")
    labels = some_labels(series, np.uint16)
    path = tmp_path / "seg.dcm"
    write_seg(series, labels, INFOS, path, algorithm=ALGORITHM, kind=kind, omit_empty_frames=omit)
    planes = hd.seg.segread(path).get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in series.frames], combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(np.array(NUMBERS[kind])[planes], labels.transpose(2, 1, 0))


def test_meaning_of_the_segments(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    for kind in ("binary", "labelmap"):
        write_seg(series, some_labels(series), INFOS[::-1], tmp_path / kind, algorithm=ALGORITHM, kind=kind)  # type: ignore[arg-type]
    written = dcmread(tmp_path / "binary")
    segments = written.SegmentSequence
    assert [(s.SegmentNumber, s.SegmentLabel, s.TrackingID, s.SegmentDescription) for s in segments] == [
        (1, "liver", "liver", "Label value 1"),
        (2, "liver_tumor", "liver_tumor", "Label value 3"),
        (3, "kidney_left", "kidney_left", "Label value 7"),
    ]
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in segments] == ["10200004", "108369006", "64033007"]
    assert segments[1].AnatomicRegionSequence[0].CodeMeaning == "Liver"
    side = segments[2].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeValue == codes.SCT.Left.value
    algorithm = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdomen_ct", "1.2.0")
    assert ALGORITHM.bundle_sha256 in algorithm.AlgorithmParameters
    assert written.DeviceSerialNumber == ALGORITHM.bundle_sha256
    red, green, blue = hd.color.CIELabColor.from_dicom_value(list(segments[0].RecommendedDisplayCIELabValue)).to_rgb()
    assert np.abs(np.subtract((red, green, blue), INFOS[0].colour_rgb)).max() <= 2
    labelmap = dcmread(tmp_path / "labelmap")
    assert [s.SegmentNumber for s in labelmap.SegmentSequence] == [0, 1, 3, 7]
    assert labelmap.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert labelmap.file_meta.TransferSyntaxUID.name == "RLE Lossless"


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_nothing_found(tmp_path: Path, kind: Any) -> None:
    series = write_series(tmp_path / "in")
    write_seg(series, np.zeros(series.shape, np.uint8), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM, kind=kind)  # type: ignore[arg-type]
    read = hd.seg.segread(tmp_path / "seg.dcm")
    assert len(read.segment_numbers) == 3
    assert not read.get_volume(combine_segments=True).array.any()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_frames_of_an_enhanced_image_in_any_order(tmp_path: Path, times: int, shared: bool, kind: Any) -> None:
    found = write_enhanced(tmp_path / "in", times=times, shared=shared)
    assert len(found) == times
    stored = dcmread(found[0].frames[0].path)
    for series in found:
        labels = some_labels(series)
        write_seg(series, labels, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM, kind=kind)
        assert np.array_equal(read_back(tmp_path / "seg.dcm", series, kind), labels)
        written = dcmread(tmp_path / "seg.dcm")
        for item in written.PerFrameFunctionalGroupsSequence:
            (image,) = item.DerivationImageSequence[0].SourceImageSequence
            place = item.PlanePositionSequence[0].ImagePositionPatient
            source = stored.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
            assert image.ReferencedSOPInstanceUID == stored.SOPInstanceUID
            assert np.allclose(place, source.PlanePositionSequence[0].ImagePositionPatient, atol=1e-6)
            assert image.ReferencedFrameNumber - 1 in [frame.number for frame in series.frames]


def test_enhanced_images_of_one_frame_each(tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    whole = make.enhanced(grid, "CT")
    images = []
    for k in range(grid.slices):
        image = make.enhanced(make.Grid(grid.orientation, 11, 14, 1, grid.spacing, grid.step), "CT")
        image.StudyInstanceUID, image.SeriesInstanceUID = whole.StudyInstanceUID, whole.SeriesInstanceUID
        image.FrameOfReferenceUID = whole.FrameOfReferenceUID
        image.PerFrameFunctionalGroupsSequence = [whole.PerFrameFunctionalGroupsSequence[k]]
        images.append(image)
    series = in_no_order(images, tmp_path / "in")
    labels = some_labels(series)
    write_seg(series, labels, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    assert np.array_equal(read_back(tmp_path / "seg.dcm", series, "binary"), labels)
    written = dcmread(tmp_path / "seg.dcm")
    uids = {frame.position_mm: frame.sop_instance_uid for frame in series.frames}
    for item in written.PerFrameFunctionalGroupsSequence:
        (image,) = item.DerivationImageSequence[0].SourceImageSequence
        position = min(
            uids, key=lambda at: np.abs(np.subtract(at, item.PlanePositionSequence[0].ImagePositionPatient)).max()
        )
        assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (uids[position], 1)
    assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == grid.slices


def test_names_beyond_ascii(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen")
    infos, _ = label_infos({1: "肝臓", 3: "lésion", 7: "niere"})
    write_seg(series, some_labels(series), infos, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    written = dcmread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["肝臓", "lésion", "niere"]
    assert str(written.PatientName) == "Müller^Jürgen"


def test_the_same_content_has_the_same_uid(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    labels, uids = some_labels(series), []
    other = labels.copy()
    other[3, 3, 3] ^= 1
    for array, kind in ((labels, "binary"), (labels, "binary"), (other, "binary"), (labels, "labelmap")):
        write_seg(series, array, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM, kind=kind)  # type: ignore[arg-type]
        written = dcmread(tmp_path / "seg.dcm")
        uids.append((written.SOPInstanceUID, written.SegmentSequence[1].TrackingUID, written.SeriesInstanceUID))
    assert uids[0] == uids[1]
    assert len(set(uids)) == 3
    assert [len({uid for _, _, uid in group}) for group in (uids[:3], uids)] == [1, 2]  # a series for each kind
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for group in uids for uid in group)


def test_a_wrong_file_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = write_series(tmp_path / "in")
    real = seg._source_images
    monkeypatch.setattr(seg, "_source_images", lambda sources: reversed(list(real(sources))))
    with pytest.raises(SegpipeError, match="read back, it is not the label map"):
        write_seg(series, some_labels(series), INFOS, tmp_path / "out" / "seg.dcm", algorithm=ALGORITHM)
    assert not (tmp_path / "out").exists()


def test_a_lost_plane_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = write_series(tmp_path / "in")
    real = seg.encoded

    def without_last_frame(dataset: Any) -> bytes:
        dataset.PerFrameFunctionalGroupsSequence.pop()
        dataset.NumberOfFrames -= 1
        return real(dataset)

    monkeypatch.setattr(seg, "encoded", without_last_frame)
    with pytest.raises(SegpipeError, match="read back"):
        write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)


def test_an_error_of_a_library_does_not_quote_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = write_series(tmp_path / "in")

    def fail(*_: object) -> None:
        raise ValueError("SECRETNAME is no name")

    monkeypatch.setattr(seg, "_segmentation", fail)
    with pytest.raises(DataError) as caught:
        write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    assert [type(link) for link in chain(caught.value)] == [DataError]
    assert "SECRETNAME" not in str(caught.value) and caught.value.found == "ValueError"


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    labels = some_labels(series)
    with pytest.raises(SegpipeError, match="grid"):
        write_seg(series, labels[1:], INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    with pytest.raises(SegpipeError, match="nothing is said of"):
        write_seg(series, labels, INFOS[:2], tmp_path / "seg.dcm", algorithm=ALGORITHM)
    with pytest.raises(SegpipeError, match="uint8 or uint16"):
        write_seg(series, labels.astype(int), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_scan_takes_neither_kind_for_an_image(kind: Any, tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    write_seg(series, some_labels(series), INFOS, tmp_path / "in/seg.dcm", algorithm=ALGORITHM, kind=kind)
    found = scan(tmp_path / "in")
    assert [one.series_uid for one in found.series] == [series.series_uid]
    assert [one.file_class for one in found.passed_over] == ["non_image"]
    assert "Segmentation Storage" in found.passed_over[0].detail


@pytest.mark.parametrize("grid", GRIDS)
def test_regions_that_overlap_are_a_segment_each(tmp_path: Path, grid: str) -> None:
    series = write_series(tmp_path / "in", grid)
    random = np.random.default_rng(3)
    bits = (random.integers(0, 4, series.shape) * (random.random(series.shape) < 0.3)).astype(np.uint8)
    infos, _ = label_infos({0: "background", 1: "whole tumour", 2: "core"}, {"name": "x", "codes": None})
    path = tmp_path / "seg.dcm"
    write_seg(series, bits, infos, path, algorithm=ALGORITHM, regions=2)
    planes = hd.seg.segread(path).get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in series.frames], assert_missing_frames_are_empty=True
    )
    assert planes.shape[-1] == 2 and (planes.sum(-1) == 2).any()
    for region in range(2):
        assert np.array_equal(planes[..., region], (bits >> region & 1).transpose(2, 1, 0))
    with pytest.raises(SegpipeError, match="nothing is said of"):
        write_seg(series, bits | 4, infos, path, algorithm=ALGORITHM, regions=2)
    with pytest.raises(SegpipeError, match="no label map"):
        write_seg(series, bits, infos, path, algorithm=ALGORITHM, regions=2, kind="labelmap")
