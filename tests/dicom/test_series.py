"""Whole scans of generated trees: positions against the standard's formula, and volumes found wherever they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import AXIAL, CORONAL, FLIPPED, OBLIQUE, SAGITTAL, Grid, enhanced, position, series, write
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.errors import UsageError

PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE, "flipped": FLIPPED}


def only(folder: Path) -> Series:
    found = scan(folder)
    assert len(found.series) == 1, [(one.reason, one.detail) for one in found.series]
    return found.series[0]


def worst_error_mm(one: Series) -> float:
    """Of every pixel of every slice, between the affine and the standard's formula."""
    assert one.affine_ras is not None and one.shape is not None
    worst = 0.0
    for number, frame in enumerate(one.frames):
        image = pydicom.dcmread(frame.path)
        for column in range(one.shape[0]):
            for row in range(one.shape[1]):
                ras = (one.affine_ras @ [column, row, number, 1])[:3]
                lps = position(image, column, row)
                worst = max(worst, float(np.linalg.norm(ras * [-1, -1, 1] - lps)))
    return worst


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_positions_are_those_of_the_standard(tmp_path: Path, plane: str, modality: str) -> None:
    images = series(Grid(PLANES[plane]), modality)
    write(reversed(images), tmp_path)
    one = only(tmp_path)
    assert (one.state, one.modality, one.shape, one.notes) == ("loaded", modality, (10, 12, 6), ())
    np.testing.assert_allclose(one.spacing_mm, (1.25, 1.5, 3.0), atol=1e-6)
    assert [frame.sop_instance_uid for frame in one.frames] == [image.SOPInstanceUID for image in images]
    assert worst_error_mm(one) < 0.01


@settings(max_examples=40)
@given(
    st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    st.tuples(*[st.floats(0.2, 5)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.permutations(range(4)),
)
def test_positions_of_any_orientation(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    edges: tuple[float, float, float],
    origin: tuple[float, float, float],
    order: list[int],
) -> None:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        plane = np.eye(3)
        plane[a, a], plane[b, b] = np.cos(angle), np.cos(angle)
        plane[a, b], plane[b, a] = -np.sin(angle), np.sin(angle)
        turn = plane @ turn
    grid = Grid([*turn[:, 0], *turn[:, 1]], 5, 4, 4, edges[:2], edges[2], origin)
    folder = tmp_path_factory.mktemp("turned")
    images = series(grid)
    write([images[index] for index in order], folder)
    one = only(folder)
    assert one.state == "loaded", one.detail
    assert worst_error_mm(one) < 0.01
    assert [frame.sop_instance_uid for frame in one.frames] == [image.SOPInstanceUID for image in images]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_enhanced_multi_frame(tmp_path: Path, shared: bool, modality: str) -> None:
    grid = Grid(OBLIQUE)
    write([enhanced(grid, modality, shared=shared)], tmp_path)
    one = only(tmp_path)
    assert (one.state, one.shape, [frame.number for frame in one.frames]) == ("loaded", (10, 12, 6), list(range(6)))
    classic = series(grid)
    assert one.affine_ras is not None
    for number, image in enumerate(classic):
        ras = (one.affine_ras @ [9, 11, number, 1])[:3]
        np.testing.assert_allclose(ras * [-1, -1, 1], position(image, 9, 11), atol=1e-4)


def test_enhanced_of_several_times(tmp_path: Path) -> None:
    write([enhanced(times=3)], tmp_path)
    found = scan(tmp_path)
    assert [one.state for one in found.series] == ["loaded"] * 3
    assert len({one.case_id for one in found.series}) == 3
    frames = {tuple(frame.number for frame in one.frames) for one in found.series}
    assert frames == {tuple(range(time, 18, 3)) for time in range(3)}


def test_enhanced_of_two_stacks(tmp_path: Path) -> None:
    image = enhanced(Grid(slices=8))
    for frame in image.PerFrameFunctionalGroupsSequence[5:]:
        frame.FrameContentSequence[0].StackID = "2"
        frame.PlanePositionSequence[0].ImagePositionPatient[1] += 100
    write([image], tmp_path)
    assert [(one.state, one.shape) for one in scan(tmp_path).series] in (
        [("loaded", (10, 12, 5)), ("loaded", (10, 12, 3))],
        [("loaded", (10, 12, 3)), ("loaded", (10, 12, 5))],
    )


def test_two_series_in_one_folder_and_one_series_in_two(tmp_path: Path) -> None:
    first, second = series(), series(Grid(step=2.0, slices=4), "MR")
    write([*first[::2], *second], tmp_path / "a")
    write(first[1::2], tmp_path / "b" / "c", stem="other")
    found = scan(tmp_path)
    assert {one.series_uid: one.shape for one in found.series} == {
        first[0].SeriesInstanceUID: (10, 12, 6),
        second[0].SeriesInstanceUID: (10, 12, 4),
    }
    assert all(one.state == "loaded" for one in found.series)
    again = scan([tmp_path / "a", tmp_path / "b"])
    assert [one.case_id for one in again.series] == [one.case_id for one in found.series]
    assert again.root == tmp_path


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    images = series()
    for image in images:
        if syntax == RLELossless:
            image.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        image.file_meta.TransferSyntaxUID = syntax
        image["PixelData"].VR = "OW" if syntax != RLELossless else "OB"
    write(images, tmp_path)
    assert only(tmp_path).state == "loaded"


def test_a_slice_of_each_study_is_one_series(tmp_path: Path) -> None:
    images = series()
    for number, image in enumerate(images):
        image.StudyInstanceUID = f"1.2.3.{number}"
    write(images, tmp_path)
    one = only(tmp_path)
    assert one.state == "loaded"
    assert one.notes == ("its slices name 6 studies",)


def test_equal_series_of_two_studies_stay_apart(tmp_path: Path) -> None:
    images = series()
    write(images, tmp_path / "a")
    for number, image in enumerate(images):
        image.StudyInstanceUID, image.SOPInstanceUID = "1.2.3", f"1.2.3.{number}"
    write(images, tmp_path / "b")
    found = scan(tmp_path)
    assert [one.state for one in found.series] == ["loaded"] * 2
    assert len({one.case_id for one in found.series}) == 2


def test_every_process_count_gives_the_same(tmp_path: Path) -> None:
    write(series(Grid(slices=70)), tmp_path)
    seen: list[tuple[int, int]] = []
    found = scan(tmp_path, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 70), (70, 70)]
    assert [one.case_id for one in scan(tmp_path).series] == [one.case_id for one in found.series]


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    write(series(Grid(slices=130)), tmp_path)
    one, other = scan(tmp_path, workers=1), scan(tmp_path, workers=2)
    assert [part.frames for part in one.series] == [part.frames for part in other.series]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        scan(tmp_path / "nothing")
