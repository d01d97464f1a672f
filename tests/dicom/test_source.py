"""What is taken over from a source's headers, and which sources carry nothing."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import make
import pytest
from labelled import ALGORITHM, GRIDS, INFOS, in_no_order, some_labels, write_series
from pydicom import dcmread

from segpipe.dicom.scanning import scan
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.sources import obstacles
from segpipe.errors import DataError


def test_what_the_source_lacks_is_empty_and_the_source_untouched(tmp_path: Path) -> None:
    remove = (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyID",
        "SeriesNumber",
        "Manufacturer",
    )
    series = write_series(tmp_path / "in", remove=remove)
    before = [hashlib.sha256(path.read_bytes()).digest() for path in series.files]
    assert obstacles(series) == []
    write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    written = dcmread(tmp_path / "seg.dcm")
    for keyword in remove[:-2]:
        assert keyword in written and not written.get(keyword)
    assert [hashlib.sha256(path.read_bytes()).digest() for path in series.files] == before


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientSex", "female"),
        ("PatientBirthDate", "born"),
        ("StudyTime", "10:11:12"),
        ("StudyDate", "1.2.2020"),
        ("PatientAge", "forty"),
        ("PatientName", "JUSTONE"),
        ("PatientID", "x" * 70),
        ("StudyID", "y" * 40),
        ("PatientName", "Müller^Jürgen"),
        ("SeriesNumber", ""),
        ("SliceThickness", ""),
        ("PatientComments", "é\n"),
    ],
)
def test_odd_values_of_the_source_do_not_stop_it(
    tmp_path: Path, keyword: str, value: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    from pydicom import config

    config.settings.writing_validation_mode, mode = config.IGNORE, config.settings.writing_validation_mode
    try:
        series = write_series(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", **{keyword: value})
    finally:
        config.settings.writing_validation_mode = mode
    recwarn.clear()
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    said = caplog.text + " ".join(str(each.message) for each in recwarn)
    assert not value or value not in said


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("FrameOfReferenceUID", "no frame of reference"),
        ("SOPClassUID", "no SOP class"),
        ("StudyInstanceUID", "no study"),
    ],
)
def test_a_source_that_cannot_carry_it(tmp_path: Path, keyword: str, words: str) -> None:
    series = write_series(tmp_path / "in", remove=(keyword,))
    (reason,) = obstacles(series)
    assert words in reason and keyword in reason
    with pytest.raises(DataError, match="DICOM cannot be written") as caught:
        write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)
    assert words in str(caught.value) and caught.value.case_id == series.case_id
    assert not (tmp_path / "seg.dcm").exists()


def test_one_slice_of_another_study(tmp_path: Path) -> None:
    images = make.series(GRIDS["axial"])
    images[2].StudyInstanceUID = "1.2.3"
    make.write(images, tmp_path / "in")
    series = replace(scan(tmp_path / "in").series[0], state="loaded")
    paths = sorted((tmp_path / "in").iterdir())
    frames = tuple(replace(series.frames[0], path=path) for path in paths)
    assert obstacles(replace(series, frames=frames)) == ["its slices differ in StudyInstanceUID"]


def test_a_refused_series_carries_nothing(tmp_path: Path) -> None:
    images = make.series(GRIDS["axial"])
    del images[3]
    make.write(images, tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    assert series.state == "refused"
    assert "refused (gap)" in obstacles(series)[0]


def test_a_slice_that_has_gone(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    series.files[3].unlink()
    assert obstacles(series) == ["a slice cannot be read again: file 4 of 6: No such file or directory"]
    with pytest.raises(DataError, match="cannot be read again"):
        write_seg(series, some_labels(series), INFOS, tmp_path / "seg.dcm", algorithm=ALGORITHM)


def test_deidentified_leaves_out_free_text(tmp_path: Path) -> None:
    images = make.series(GRIDS["axial"])
    for image in images:
        make.plant(image)
        image.PatientName, image.PatientID, image.AccessionNumber, image.StudyID = "A^B", "C", "D", "E"
        image.Manufacturer = image.ManufacturerModelName = image.SoftwareVersions = image.IssuerOfPatientID = "H"
    series = in_no_order(images, tmp_path / "in")
    for deidentified in (False, True):
        write_seg(
            series,
            some_labels(series),
            INFOS,
            tmp_path / f"{deidentified}.dcm",
            algorithm=ALGORITHM,
            deidentified=deidentified,
        )
    text = dcmread(tmp_path / "True.dcm").to_json()
    found = [line for line in str(dcmread(tmp_path / "True.dcm")).splitlines() if make.MARKER in line]
    assert found == [] and make.MARKER not in text
    assert make.MARKER in dcmread(tmp_path / "False.dcm").StudyDescription
