"""A Secondary Capture with full geometry is refused, says how it is taken, and is marked wherever it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from labelled import ALGORITHM, INFOS
from make import Grid, enhanced, series, tilted, write
from pydicom.dataset import Dataset
from test_traps import every, to_color

from segpipe.cli.app import run
from segpipe.dicom.captures import admitted
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series, read_dicom
from segpipe.dicom.write.all_formats import write_dicom
from segpipe.errors import DataError, UsageError

Images = list[Dataset]
CAPTURE, MANY = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.3"
WINDOWED = "Secondary Capture: values may have been windowed"


def captures(modality: str = "MR", **attributes: object) -> Images:
    return series(Grid(slices=8), modality, SOPClassUID=CAPTURE, **attributes)


def without(images: Images, *names: str) -> Images:
    for image in images:
        for name in names:
            delattr(image, name)
    return images


def many_frames() -> Images:
    image = enhanced(modality="MR")
    image.SOPClassUID, image.BurnedInAnnotation = MANY, "NO"
    return [image]


def one_burned_in() -> Images:
    images = captures()
    images[-1].BurnedInAnnotation = "YES"
    return images


def coloured() -> Images:
    images = captures()
    for image in images:
        to_color(image)
    return images


def unplaced() -> Images:
    images = captures()
    del images[-1].ImagePositionPatient
    return images


def holed() -> Images:
    images = captures()
    del images[3]
    return images


def leaning() -> Images:
    images = tilted()
    every(images, "SOPClassUID", CAPTURE)
    return images


def named(images: Images, folder: Path) -> tuple[Series, str]:
    """The series, and the name that its refusal gives."""
    write(images, folder)
    (found,) = scan(folder).series
    assert found.state == "refused"
    match = re.search(r"--secondary-capture (\S+)\.", found.detail)
    return found, match[1] if match else ""


TAKEN: dict[str, Callable[[], Images]] = {
    "MR": captures,
    "CT with rescale": lambda: captures("CT"),
    "MR without a frame of reference": lambda: without(captures(), "FrameOfReferenceUID"),
    "MR without rescale": lambda: without(captures(), "RescaleSlope", "RescaleIntercept"),
    "12 bits": lambda: captures(BitsStored=12, HighBit=11, PixelRepresentation=0, PixelData=bytes(240)),
    "multi-frame": many_frames,
}


@pytest.mark.parametrize("case", TAKEN)
def test_the_refusal_s_name_takes_it(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, name = named(TAKEN[case](), tmp_path / "in")
    assert found.reason == "secondary_capture" and name == found.series_uid and WINDOWED in found.notes
    with pytest.raises(DataError, match="--secondary-capture"):
        read_dicom(tmp_path / "in")
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    assert run(words) == 3
    capsys.readouterr()
    assert run([*words, "--secondary-capture", name]) == 0
    (row,) = json.loads(capsys.readouterr().out)["series"]
    assert WINDOWED in row["notes"]
    (taken,) = admitted([found], captures=[name])
    written = np.asarray(nib.load(tmp_path / "out" / row["file"]).dataobj)
    np.testing.assert_array_equal(written, load_series(taken).array)


REFUSED: dict[str, tuple[str, Callable[[], Images]]] = {
    "8 bits": ("secondary_capture", lambda: captures(BitsStored=8, HighBit=7)),
    "burned-in": ("secondary_capture", lambda: captures(BurnedInAnnotation="YES")),
    "one slice burned-in": ("secondary_capture", one_burned_in),
    "CT without slope": ("secondary_capture", lambda: without(captures("CT"), "RescaleSlope")),
    "CT without intercept": ("secondary_capture", lambda: without(captures("CT"), "RescaleIntercept")),
    "colour": ("color", coloured),
    "a slice without its place": ("missing_tag", unplaced),
    "a gap": ("gap", holed),
    "leaning": ("gantry_tilt", leaning),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_switch_takes_these(case: str, tmp_path: Path) -> None:
    reason, make = REFUSED[case]
    found, name = named(make(), tmp_path / "in")
    assert (found.reason, name) == (reason, "")
    for words in ([], ["--secondary-capture", found.series_uid], ["--repair", "tilt"]):
        assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 3
    assert not (tmp_path / "out").exists()


def test_what_is_named_and_leans_takes_both(tmp_path: Path) -> None:
    write(leaning(), tmp_path / "in")
    (found,) = scan(tmp_path / "in").series
    words = ["--secondary-capture", found.case_id, "--repair", "tilt"]
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0


def test_pictures_of_a_screen_are_passed_over_as_before(tmp_path: Path) -> None:
    """Beside a CT: a dose page without a place, in the CT's own series, and a coloured overlay with places."""
    images, page = series(), captures()[:1]
    page[0].SeriesInstanceUID, page[0].StudyInstanceUID = images[0].SeriesInstanceUID, images[0].StudyInstanceUID
    write(images, tmp_path / "in/ct")
    write(without(page, "ImagePositionPatient"), tmp_path / "in/ct", "page")
    write(coloured(), tmp_path / "in/overlay")
    found = scan(tmp_path / "in")
    assert sorted((one.state, one.reason) for one in found.series) == [("loaded", None), ("refused", "color")]
    assert [one.detail for one in found.passed_over] == ["Secondary Capture Image Storage"]
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0


def test_a_capture_in_the_series_of_a_scan_is_a_group_of_its_own(tmp_path: Path) -> None:
    images, copies = series(Grid(slices=8), "MR"), captures()
    every(copies, "SeriesInstanceUID", images[0].SeriesInstanceUID)
    every(copies, "StudyInstanceUID", images[0].StudyInstanceUID)
    write([*images, *copies], tmp_path)
    found = scan(tmp_path).series
    assert sorted((one.state, len(one.files)) for one in found) == [("loaded", 8), ("refused", 8)]
    assert len({one.case_id for one in found}) == 2


def test_only_a_capture_can_be_named(tmp_path: Path) -> None:
    write(series(), tmp_path)
    (found,) = scan(tmp_path).series
    with pytest.raises(UsageError, match="no such Secondary Capture"):
        admitted([found], captures=[found.series_uid])


def test_no_dicom_result_and_the_reason(tmp_path: Path) -> None:
    found, name = named(captures(), tmp_path / "in")
    (taken,) = admitted([found], captures=[name])
    labels = np.zeros(taken.shape or (), np.uint8)
    written, refused = write_dicom(tmp_path, ("seg", "rtstruct", "sr"), taken, labels, {}, INFOS, ALGORITHM)
    assert not written and all("Secondary Capture" in why for why in refused.values())
