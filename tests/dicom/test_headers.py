"""Every file gets a class: images, other DICOM, damaged DICOM, and the rest."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import Grid, blank, enhanced, series, write
from pydicom.uid import generate_uid

from segpipe.dicom.headers import Header, read_header
from segpipe.dicom.model import PassedOver
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.scanning import scan


def whole_file(tmp_path: Path) -> bytes:
    return write(series(Grid(slices=1)), tmp_path / "made")[0].read_bytes()


def classed(path: Path, content: bytes) -> tuple[str, str]:
    path.write_bytes(content)
    with no_header_text():
        found = read_header(path)
    return (found.file_class, found.detail) if isinstance(found, PassedOver) else ("image", found.modality)


def test_without_preamble_or_magic_or_name(tmp_path: Path) -> None:
    content = whole_file(tmp_path)
    assert classed(tmp_path / "no_suffix", content) == ("image", "CT")
    assert classed(tmp_path / "no_preamble", content[132:]) == ("image", "CT")
    dataset = pydicom.dcmread(io.BytesIO(content))
    for name, implicit, little in (("implicit", True, True), ("explicit", False, True), ("big", False, False)):
        stream = pydicom.filebase.DicomBytesIO()
        stream.is_implicit_VR, stream.is_little_endian = implicit, little
        pydicom.filewriter.write_dataset(stream, dataset)
        assert classed(tmp_path / name, stream.getvalue()) == ("image", "CT"), name


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("notes.txt", b"hello", "not_dicom"),
        ("empty", b"", "not_dicom"),
        ("empty.dcm", b"", "unreadable"),
        ("junk.DCM", b"junk" * 100, "unreadable"),
        ("junk.ima", b"\0" * 500, "unreadable"),
        ("magic", b"\0" * 128 + b"DICM", "unreadable"),
        ("magic_and_junk", b"\0" * 128 + b"DICM" + b"\xff" * 400, "unreadable"),
        ("scan.nii", b"\x5c\x01\0\0" + b"\0" * 400, "not_dicom"),
        ("page.html", b"<html>" + b"x" * 400, "not_dicom"),
        ("begins_like", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"x" * 50, "not_dicom"),
        ("._1.dcm", b"\0\x05\x16\x07" + b"\0" * 400, "not_dicom"),
        (".DS_Store", b"\0\0\0\1Bud1", "not_dicom"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert classed(tmp_path / name, content)[0] == expected


@pytest.mark.parametrize(
    ("sop_class", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.33", "Comprehensive SR Storage"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set Storage"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RT Dose Storage"),
        ("1.2.840.10008.5.1.4.1.1.481.1", "RT Image Storage"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation Storage"),
        ("1.2.840.10008.5.1.4.1.1.66.1", "Spatial Registration Storage"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "Key Object Selection Document Storage"),
        ("1.2.840.10008.5.1.4.1.1.7", "Secondary Capture Image Storage"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
        ("1.2.840.10008.5.1.4.1.1.66", "Raw Data Storage"),
        ("1.2.840.10008.5.1.4.1.1.67", "Real World Value Mapping Storage"),
        ("1.2.840.10008.5.1.4.1.1.4.2", "MR Spectroscopy Storage"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "12-lead ECG Waveform Storage"),
        ("1.3.12.2.1107.5.9.1", "a private SOP class"),
    ],
)
def test_other_dicom_by_its_class(tmp_path: Path, sop_class: str, words: str) -> None:
    image = blank("OT", sop_class, "1.2", "1.3", "1.4")
    write([image], tmp_path)
    found = scan(tmp_path)
    assert found.series == ()
    assert [(one.file_class, one.detail) for one in found.passed_over] == [("non_image", words)]


@pytest.mark.parametrize(
    "sop_class",
    ["2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130", "20", "1", "1.2", "6.1", "13.1.3", "12.1"],
)
def test_images_by_their_class(tmp_path: Path, sop_class: str) -> None:
    images = series(Grid(slices=3))
    for image in images:
        image.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    write(images, tmp_path)
    assert [one.state for one in scan(tmp_path).series] == ["loaded"]


def test_a_header_without_class_is_an_image_by_its_matrix(tmp_path: Path) -> None:
    images = series()
    for image in images:
        del image.SOPClassUID
    write(images, tmp_path)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.MediaStorageSOPClassUID = ""
        dataset.save_as(path)
    found = scan(tmp_path).series
    assert [one.state for one in found] == ["loaded"]
    assert "SOPClassUID is missing" in found[0].notes[0]


def test_a_file_cut_in_its_header_belongs_to_its_series(tmp_path: Path) -> None:
    paths = write(series(), tmp_path)
    content = paths[3].read_bytes()
    paths[3].write_bytes(content[: content.rindex(b"\x28\x00\x30\x00DS")])
    found = scan(tmp_path)
    assert [(one.reason, len(one.files)) for one in found.series] == [("truncated", 6)]
    assert "image_003.dcm" in found.series[0].detail


@pytest.mark.parametrize("mark", [b"\x08\x00\x16\x00UI", b"\x20\x00\x0d\x00UI", b"\x20\x00\x0e\x00UI"])
def test_a_file_cut_early_is_noted_in_its_folder(tmp_path: Path, mark: bytes) -> None:
    paths = write(series(), tmp_path)
    content = paths[-1].read_bytes()
    paths[-1].write_bytes(content[: content.index(mark) + 20])
    found = scan(tmp_path)
    assert [one.file_class for one in found.passed_over] == ["unreadable"]
    assert found.series[0].notes == ("1 unreadable file(s) in the same folder: a slice at an end may be missing",)


@settings(max_examples=60)
@given(
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 1)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
)
def test_no_cut_and_no_damage_stops_a_scan(
    tmp_path_factory: pytest.TempPathFactory, classic: bool, cut: float | None, damage: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = write([series(Grid(slices=1))[0] if classic else enhanced()], folder)[0]
    content = bytearray(path.read_bytes())
    if cut is not None:
        del content[int(cut * len(content)) :]
    for where, byte in damage if content else []:
        content[int(where * len(content))] = byte
    path.write_bytes(content)
    found = scan(folder)
    assert len(found.passed_over) == 1 or {file for one in found.series for file in one.files} == {path}
    assert all(one.reason is not None or one.affine_ras is not None for one in found.series)


def test_a_damaged_value_is_no_value(tmp_path: Path) -> None:
    path = write(series(Grid(slices=1)), tmp_path)[0]
    content = path.read_bytes()
    assert content.count(b"-20\\31\\5 ") == 1
    path.write_bytes(content.replace(b"-20\\31\\5 ", b"-20\\nan\\5"))
    with no_header_text():
        header = read_header(path)
    assert isinstance(header, Header) and header.problem is not None
    assert header.problem.reason == "missing_tag"


def test_fragments_without_end_mark_and_with_a_cut_stream(tmp_path: Path) -> None:
    image = series(Grid(slices=1))[0]
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"
    stream = b"\xff\xd8 a stream \xff\xd9\0\0"

    def reason(data: bytes, cut: int = 0) -> str | None:
        image.PixelData = pydicom.encaps.encapsulate([data])
        image["PixelData"].VR = "OB"
        path = write([image], tmp_path)[0]
        path.write_bytes(path.read_bytes()[: -cut or None])
        with no_header_text():
            header = read_header(path)
        assert isinstance(header, Header)
        return header.problem.reason if header.problem else None

    assert reason(stream) is None
    assert reason(stream, cut=8) is None  # the end mark of the sequence is often left out
    assert reason(stream, cut=9) == "truncated"
    assert reason(stream[:-2] + b"\xff") is None  # padded with ones
    assert reason(b"\xff\xd8 a stream cut") == "truncated"


def test_a_new_series_for_every_uid(tmp_path: Path) -> None:
    for number in range(3):
        write(series(SeriesInstanceUID=generate_uid()), tmp_path / str(number))
    assert len(scan(tmp_path).series) == 3


@pytest.mark.parametrize(("name", "value"), [("NumberOfFrames", 2_000_000_000), ("Rows", 0), ("NumberOfFrames", -3)])
def test_impossible_counts_cost_no_memory(tmp_path: Path, name: str, value: int) -> None:
    images = series(Grid(slices=2))
    setattr(images[0], name, value)
    write(images, tmp_path)
    assert [one.reason for one in scan(tmp_path).series] in (["truncated"], ["missing_tag"])


def test_the_test_files_of_pydicom_are_all_accounted_for() -> None:
    folder = Path(pydicom.__file__).parent / "data"
    found = scan(folder)
    files = [path for one in found.series for path in one.files] + [one.path for one in found.passed_over]
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.name: one.reason for one in found.series for path in one.files}
    assert named["examples_palette.dcm"] == named["examples_ybr_color.dcm"] == "color"
    assert named["MR_truncated.dcm"] == "truncated"
