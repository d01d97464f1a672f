"""Without SeriesInstanceUID a series is taken where everything else agrees, and has no DICOM result."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from labelled import ALGORITHM, INFOS
from make import Grid, enhanced, series, write
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from segpipe.cli.app import run
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load, load_series
from segpipe.dicom.write.all_formats import write_dicom

Images = list[Dataset]


def nameless(modality: str = "CT", empty: bool = False) -> Images:
    images = series(Grid(slices=10), modality, AcquisitionNumber=1)
    for image in images:
        if empty:
            image.SeriesInstanceUID = ""
        else:
            del image.SeriesInstanceUID
    return images


def setting(name: str, value: object, start: int = 5) -> Callable[[Images], None]:
    def edit(images: Images) -> None:
        for image in images[start:]:
            setattr(image, name, value)

    return edit


def counted(images: Images) -> None:
    """By a scanner that calls each slice an acquisition."""
    for number, image in enumerate(images):
        image.AcquisitionNumber = number


def stripped(images: Images) -> None:
    for image in images:
        for name in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID", "AcquisitionNumber"):
            delattr(image, name)


def repeated(images: Images) -> None:
    images.append(deepcopy(images[-1]))
    images[-1].SOPInstanceUID = generate_uid()
    images[-1].PixelData = bytes(len(images[-1].PixelData))


def twice(images: Images) -> None:
    """Two echoes that would be split where a UID says that they belong together."""
    for image in list(images):
        images.append(deepcopy(image))
        images[-1].SOPInstanceUID, images[-1].ContentTime = generate_uid(), "111111"
        image.ContentTime = "101010"


TAKEN = {"as it is": lambda images: None, "a number each": counted, "nothing of study and patient": stripped}
REFUSED = {
    "two patients": ("missing_tag", setting("PatientID", "4711")),
    "two issuers": ("missing_tag", setting("IssuerOfPatientID", "ELSEWHERE")),
    "two acquisitions": ("missing_tag", setting("AcquisitionNumber", 2)),
    "two numbers": ("missing_tag", setting("SeriesNumber", 5)),
    "two kernels": ("missing_tag", setting("ConvolutionKernel", "B70f")),
    "two times": ("missing_tag", setting("SeriesTime", "111213")),
    "two frames of reference": ("missing_tag", setting("FrameOfReferenceUID", generate_uid())),
    "another matrix": ("mixed_matrix", setting("PixelSpacing", ["1.5", "1.5"])),
    "another orientation": ("mixed_orientation", setting("ImageOrientationPatient", [1, 0, 0, 0, 0, -1])),
    "one position twice": ("repeated_positions", repeated),
    "each position twice": ("missing_tag", twice),
    "a gap": ("gap", lambda images: images.__delitem__(4)),
    "no position": ("missing_tag", lambda images: delattr(images[4], "ImagePositionPatient")),
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("empty", [True, False])
def test_taken_where_all_agrees(case: str, empty: bool, tmp_path: Path) -> None:
    images = nameless(empty=empty)
    TAKEN[case](images)
    write(images, tmp_path)
    (found,) = scan(tmp_path).series
    assert found.state == "loaded" and found.shape == (10, 12, 10) and found.series_uid == ""
    assert any(note.startswith("no SeriesInstanceUID: taken for one series") for note in found.notes)
    stored = np.stack([np.frombuffer(image.PixelData, "<i2").reshape(12, 10).T for image in images], axis=2)
    np.testing.assert_array_equal(load_series(found).array, stored)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_where_not(case: str, tmp_path: Path) -> None:
    reason, edit = REFUSED[case]
    images = nameless(modality="MR")
    edit(images)
    write(images, tmp_path)
    (found,) = scan(tmp_path).series
    assert (found.state, found.reason, len(found.files)) == ("refused", reason, len(images))
    assert not any(word in found.detail for word in ("4711", "B70f", "ELSEWHERE"))


def test_the_advice_is_followed(tmp_path: Path) -> None:
    images = nameless()
    setting("SeriesNumber", 5)(images)
    write(images, tmp_path / "in")
    assert "Put the files of each series into a folder of its own" in scan(tmp_path / "in").series[0].detail
    write(images[:5], tmp_path / "a")
    write(images[5:], tmp_path / "b")
    assert [len(load(tmp_path / name)) for name in "ab"] == [1, 1]


def test_studies_and_folders_stay_apart_with_ids_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = nameless(), nameless(), nameless()
    for images in (second, third):
        stripped(images)
    write([*first[:3], *first[5:]], tmp_path / "in/a")
    write(first[3:5], tmp_path / "in/elsewhere")
    write(second, tmp_path / "in/b")
    write(third, tmp_path / "in/c")
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] == 3 == len({one["case_id"] for one in document["series"]})
    ids = {one.case_id for one in scan(tmp_path / "in").series}
    (tmp_path / "in").rename(tmp_path / "moved")
    assert ids == {one.case_id for one in scan(tmp_path / "moved").series}


def test_an_enhanced_image_without_it(tmp_path: Path) -> None:
    image = enhanced()
    del image.SeriesInstanceUID
    write([image], tmp_path)
    assert scan(tmp_path).series[0].state == "loaded"


def test_no_dicom_result_and_the_reason(tmp_path: Path) -> None:
    write(nameless(), tmp_path / "in")
    (found,) = scan(tmp_path / "in").series
    labels = np.zeros(found.shape or (), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    formats = ("seg", "labelmap", "rtstruct", "sr")
    written, refused = write_dicom(tmp_path, formats, found, labels, {"liver": 1.0}, INFOS, ALGORITHM)
    assert not written and set(refused) == set(formats)
    assert all("no series (SeriesInstanceUID), so it cannot be referred to" in why for why in refused.values())
