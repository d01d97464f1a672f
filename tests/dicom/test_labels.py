"""Masks from SEG and RTSTRUCT: written by highdicom, by hand and by our writers, read back on the series' grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import ALGORITHM, INFOS, some_labels, write_series
from make import AXIAL, CORONAL, OBLIQUE, SAGITTAL, Grid, series, write
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from segpipe.dicom.labels import fill, open_labels, read_labels
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.errors import DataError

NAMES = {1: "SECRET one", 2: "SECRET two"}
GRID = Grid(OBLIQUE, spacing=(1.5, 0.8))


def scanned(folder: Path, grid: Grid = GRID) -> Series:
    write(series(grid, SliceThickness="3"), folder)
    (found,) = scan(folder).series
    return found


def some_masks(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    first = random.random(shape) > 0.7
    return {"SECRET one": first, "SECRET two": ~first & (random.random(shape) > 0.5)}


def seg_of(judged: Series, kind: str, masks: dict[str, np.ndarray], path: Path, **options: Any) -> Path:
    """A SEG by highdicom; frames in the order of the series."""
    stacked = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    pixels: np.ndarray = stacked.astype(float) * 0.8 if kind == "FRACTIONAL" else stacked.astype(np.uint8)
    if kind == "LABELMAP":
        pixels = (stacked * [1, 2]).sum(axis=-1).astype(np.uint8)
    algorithm = hd.AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1")
    described = [
        hd.seg.SegmentDescription(number, label, codes.SCT.Organ, codes.SCT.Organ, "AUTOMATIC", algorithm)
        for number, label in NAMES.items()
    ]
    segmentation = hd.seg.Segmentation(
        [dcmread(frame.path) for frame in judged.frames],
        pixels,
        kind,
        described,
        generate_uid(),
        9,
        generate_uid(),
        1,
        "m",
        "m",
        "1",
        "1",
        **options,
    )
    segmentation.save_as(path)
    return path


@pytest.mark.parametrize(
    ("kind", "orientation"), [("BINARY", AXIAL), ("BINARY", CORONAL), ("FRACTIONAL", SAGITTAL), ("LABELMAP", OBLIQUE)]
)
def test_a_seg_comes_back(kind: str, orientation: Sequence[float], tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in", Grid(orientation, spacing=(1.5, 0.8)))
    assert judged.shape
    masks = some_masks(judged.shape)
    path = seg_of(judged, kind, masks, tmp_path / "seg.dcm")
    found = read_labels(path, judged)
    assert list(found) == list(NAMES.values())
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)
    about = open_labels(path)
    assert (about.kind, about.names, about.series_uid) == ("SEG", tuple(NAMES.values()), judged.series_uid)


@pytest.mark.parametrize(("rows", "columns"), [(11, 13), (7, 9), (5, 3), (9, 11), (12, 10)])
def test_frames_of_bits_that_begin_and_end_within_bytes(rows: int, columns: int, tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in", Grid(rows=rows, columns=columns, slices=9))
    assert judged.shape
    masks = some_masks(judged.shape)
    found = read_labels(seg_of(judged, "BINARY", masks, tmp_path / "seg.dcm", omit_empty_frames=False), judged)
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)


def test_a_compressed_labelmap_and_a_choice_of_names(tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    assert judged.shape
    masks = some_masks(judged.shape)
    path = seg_of(judged, "LABELMAP", masks, tmp_path / "seg.dcm", transfer_syntax_uid="1.2.840.10008.1.2.5")
    found = read_labels(path, judged, names=["SECRET two"])
    assert list(found) == ["SECRET two"]
    np.testing.assert_array_equal(found["SECRET two"], masks["SECRET two"])


@pytest.mark.parametrize("flip", [False, True])
def test_frames_stored_along_other_axes_of_the_same_grid(flip: bool, tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    assert judged.shape
    masks = some_masks(judged.shape)
    path = seg_of(judged, "BINARY", masks, tmp_path / "seg.dcm", omit_empty_frames=False)
    image = dcmread(path)
    pixels = image.pixel_array
    shared = image.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(np.array(GRID.orientation), (2, 3))
    turned = pixels[:, ::-1, :] if flip else pixels.transpose(0, 2, 1)
    orientation = [*row, *-column] if flip else [*column, *row]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{part:.10f}" for part in orientation]
    if flip:
        for frame in image.PerFrameFunctionalGroupsSequence:
            start = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            start = start + column * 1.5 * (GRID.rows - 1)
            frame.PlanePositionSequence[0].ImagePositionPatient = [f"{part:.8f}" for part in start]
    else:
        shared.PixelMeasuresSequence[0].PixelSpacing = [0.8, 1.5]
        image.Rows, image.Columns = image.Columns, image.Rows
    image.PixelData = np.packbits(turned.ravel(), bitorder="little").tobytes()
    image.PixelData += b"\0" * (len(image.PixelData) % 2)
    image.save_as(path)
    for name, mask in read_labels(path, judged).items():
        np.testing.assert_array_equal(mask, masks[name])


def shifted(path: Path, by: Sequence[float]) -> None:
    image = dcmread(path)
    for frame in image.PerFrameFunctionalGroupsSequence:
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) + by
        frame.PlanePositionSequence[0].ImagePositionPatient = [f"{part:.8f}" for part in place]
    image.save_as(path)


@pytest.mark.parametrize(
    ("voxels", "message"), [((0.5, 0), "not on the grid"), ((0, 0.5), "not on the grid"), ((3, 0), "outside")]
)
def test_a_seg_elsewhere_is_refused(voxels: tuple[float, float], message: str, tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    assert judged.shape
    path = seg_of(judged, "BINARY", some_masks(judged.shape), tmp_path / "seg.dcm")
    row, column = np.reshape(np.array(GRID.orientation), (2, 3))
    shifted(path, voxels[0] * 0.8 * row + voxels[1] * 1.5 * column)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path, judged)
    assert "SECRET" not in str(caught.value) and caught.value.case_id == judged.case_id


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    assert judged.shape
    path = seg_of(judged, "BINARY", some_masks(judged.shape), tmp_path / "seg.dcm")
    image = dcmread(path)
    image.FrameOfReferenceUID = generate_uid()
    image.save_as(path)
    with pytest.raises(DataError, match="frame of reference"):
        read_labels(path, judged)
    del image.FrameOfReferenceUID  # then the series that it refers to says enough
    image.save_as(path)
    assert read_labels(path, judged)["SECRET one"].any()
    image.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    image.save_as(path)
    with pytest.raises(DataError, match="frame of reference"):
        read_labels(path, judged)


def contour(points: np.ndarray, kind: str = "CLOSED_PLANAR") -> Dataset:
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
    item.ContourData = [f"{number:.6f}"[:16] for number in points.ravel()]
    return item


def rtstruct_of(judged: Series, regions: dict[str, list[Dataset]], path: Path) -> Path:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    image.Modality = "RTSTRUCT"
    image.StructureSetROISequence, image.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name
        region.ReferencedFrameOfReferenceUID = judged.frame_of_reference_uid
        drawn.ReferencedROINumber, drawn.ContourSequence = number, contours
        image.StructureSetROISequence.append(region)
        image.ROIContourSequence.append(drawn)
    image.file_meta = dcmread(judged.files[0]).file_meta
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)
    return path


def in_mm(judged: Series, corners: Sequence[tuple[float, float]], number: float) -> np.ndarray:
    index = np.array([[column, row, number, 1] for column, row in corners])
    assert judged.affine_ras is not None
    return (index @ judged.affine_ras.T)[:, :3] * [-1, -1, 1]


BOX = [(1.5, 2.5), (6.5, 2.5), (6.5, 9.5), (1.5, 9.5)]
HOLE = [(3.5, 4.5), (4.5, 4.5), (4.5, 6.5), (3.5, 6.5)]


@pytest.mark.parametrize("orientation", [SAGITTAL, OBLIQUE])
def test_contours_become_the_voxels_inside(orientation: Sequence[float], tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in", Grid(orientation, spacing=(1.5, 0.8)))
    path = rtstruct_of(
        judged,
        {
            "SECRET ring": [contour(in_mm(judged, BOX, 2)), contour(in_mm(judged, HOLE, 2))],
            "SECRET point": [contour(in_mm(judged, [(3, 3)], 2), "POINT")],
            "SECRET two": [contour(in_mm(judged, BOX, 0)), contour(in_mm(judged, HOLE, 5))],
        },
        tmp_path / "rt.dcm",
    )
    found = read_labels(path, judged)
    assert open_labels(path).names == tuple(found) == ("SECRET ring", "SECRET two")
    expected = np.zeros((10, 12, 6), bool)
    expected[2:7, 3:10, 2] = True
    expected[4, 5:7, 2] = False
    np.testing.assert_array_equal(found["SECRET ring"], expected)
    assert found["SECRET two"].sum(axis=(0, 1)).tolist() == [35, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(*corner, 2.5) for corner in BOX], "does not lie in a slice"),
        ([(2, 2, 0), (2, 8, 0), (2, 8, 4), (2, 2, 4)], "does not lie in a slice"),
        ([(*corner, 6) for corner in BOX], "before the first or behind the last"),
    ],
)
def test_contours_elsewhere_are_refused(points: Any, message: str, tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    assert judged.affine_ras is not None
    places = (np.c_[np.array(points, float), np.ones(len(points))] @ judged.affine_ras.T)[:, :3] * [-1, -1, 1]
    path = rtstruct_of(judged, {"SECRET": [contour(places)]}, tmp_path / "rt.dcm")
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path, judged)
    assert "SECRET" not in str(caught.value)


def test_names_that_are_there_twice_stay_apart(tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    path = rtstruct_of(judged, {"a": [contour(in_mm(judged, BOX, 1))]}, tmp_path / "rt.dcm")
    image = dcmread(path)
    region, drawn = Dataset(), Dataset()
    region.ROINumber, region.ROIName, drawn.ReferencedROINumber = 7, "a", 7
    drawn.ContourSequence = [contour(in_mm(judged, HOLE, 1))]
    image.StructureSetROISequence.append(region)
    image.ROIContourSequence.append(drawn)
    image.save_as(path)
    found = read_labels(path, judged)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"a (1)": 35, "a (7)": 2}


@settings(max_examples=50)
@given(
    corners=st.lists(st.tuples(st.floats(-3, 14), st.floats(-3, 12)), min_size=3, max_size=9),
    more=st.lists(st.tuples(st.floats(-3, 14), st.floats(-3, 12)), min_size=3, max_size=5),
)
def test_even_odd_by_the_winding_of_rays(corners: list[Any], more: list[Any]) -> None:
    """Against a ray downwards for each pixel centre, edge by edge; neither corners nor edges meet a centre."""
    polygons = [np.round(np.array(each), 1) + np.array([0.0371, 0.0613]) for each in (corners, more)]
    expected = np.zeros((11, 9), bool)
    for column, row in np.ndindex(11, 9):
        crossings = 0
        for polygon in polygons:
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (x0 < column) != (x1 < column):
                    crossings += y0 + (column - x0) / (x1 - x0) * (y1 - y0) > row
        expected[column, row] = crossings % 2
    np.testing.assert_array_equal(fill(polygons, (11, 9)), expected)


@pytest.mark.parametrize("grid", ["sagittal", "oblique"])
def test_what_we_write_we_read(grid: str, tmp_path: Path) -> None:
    judged = write_series(tmp_path / "in", grid)
    labels = some_labels(judged)
    write_seg(judged, labels, INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    write_rtstruct(judged, labels, INFOS, tmp_path / "rt.dcm", algorithm=ALGORITHM)
    for name in ("seg.dcm", "rt.dcm"):
        masks = read_labels(tmp_path / name, judged)
        for info in INFOS:
            if (labels == info.value).any():
                np.testing.assert_array_equal(masks[info.name], labels == info.value)


@pytest.mark.parametrize("content", [b"", b"no dicom", None])
def test_what_is_no_label(content: bytes | None, tmp_path: Path) -> None:
    judged = scanned(tmp_path / "in")
    path = tmp_path / "a"
    if content is None:
        path = judged.files[0]
    else:
        path.write_bytes(content)
    for call in (open_labels, lambda path: read_labels(path, judged)):
        with pytest.raises(DataError):
            call(path)


@pytest.mark.realdata
@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_a_real_rtstruct_is_the_nifti_mask(modality: str) -> None:
    import nibabel as nib

    root = Path(os.environ["SEGPIPE_DATA"]) / "ibsi_STS_003"
    (judged,) = scan(root / "dicom" / modality / "image").series
    (path,) = (root / "dicom" / modality / "mask").iterdir()
    (mask,) = read_labels(path, judged).values()
    expected = np.asarray(nib.load(root / "nifti" / f"{modality}_mask.nii.gz").dataobj) > 0
    np.testing.assert_array_equal(mask, expected)  # Dice 1
    assert load_series(judged).array.shape == mask.shape
