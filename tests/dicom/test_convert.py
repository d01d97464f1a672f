"""`segpipe convert`: what is written can be read by others, says nothing of the patient, and nothing is silent."""

from __future__ import annotations

import gzip
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import make
import nibabel as nib
import numpy as np
import pytest
from make import MARKER, OBLIQUE, SAGITTAL, Grid, plant, position, series, tilted, write
from pydicom.dataset import Dataset
from test_pet_units import pet

from segpipe.cli.app import run
from segpipe.dicom import conversion
from segpipe.dicom.conversion import convert_folder
from segpipe.dicom.model import Series, Volume
from segpipe.dicom.volume import load, load_series

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"


def convert(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code = run(["convert", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("orientation", [SAGITTAL, OBLIQUE])
def test_nibabel_and_simpleitk_find_every_voxel_in_its_place(
    orientation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import SimpleITK

    images = series(Grid(orientation, spacing=(1.5, 0.7)))
    write(images, tmp_path / "in")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 0 and document["written"] == 1
    (row,) = document["series"]
    path = tmp_path / "out" / row["file"]
    image, by_itk = nib.load(path), SimpleITK.ReadImage(path)
    assert image.get_data_dtype() == np.int16 and row["dtype"] == "int16"
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-3)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    for number in (0, 5):
        place = position(images[number], 3, 7)
        by_nibabel = (image.affine @ [3, 7, number, 1])[:3] * [-1, -1, 1]
        assert np.linalg.norm(by_nibabel - place) < 0.01
        assert np.linalg.norm(np.array(by_itk.TransformIndexToPhysicalPoint((3, 7, number))) - place) < 0.01
        stored = np.frombuffer(images[number].PixelData, "<i2").reshape(12, 10)
        assert image.dataobj[3, 7, number] == stored[7, 3] == by_itk[3, 7, number]


def test_nothing_of_the_patient_is_written_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tilted()
    for image in images:
        plant(image)
    write(images, tmp_path / "in")
    code = run(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--repair", "tilt"])
    said = capsys.readouterr()
    assert code == 0
    assert MARKER not in said.out + said.err
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert MARKER.encode() not in content and b"0815" not in content and MARKER not in path.name


def test_the_header_has_no_text_but_of_a_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tilted(), tmp_path / "in" / "tilted")
    write(series(), tmp_path / "in" / "good")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out", "--repair", "tilt")
    assert code == 0
    for row in document["series"]:
        header = nib.load(tmp_path / "out" / row["file"]).header
        texts = {name: bytes(header[name]).rstrip(b"\0") for name in ("descrip", "aux_file", "db_name", "intent_name")}
        expected = b"repaired: tilt" if row["repaired"] else b""
        assert texts == {"descrip": expected, "aux_file": b"", "db_name": b"", "intent_name": b""}
        assert bool(row["repaired"]) == any(note.startswith("repaired: tilt") for note in row["notes"])
    assert sorted(len(row["repaired"]) for row in document["series"]) == [0, 1]


def test_what_is_refused_is_told_and_the_rest_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tilted(), tmp_path / "in" / "tilted")
    write(series(), tmp_path / "in" / "good")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 4 and (document["written"], document["refused"]) == (1, 1)
    refused = next(row for row in document["series"] if row["state"] == "refused")
    assert refused["reason"] == "gantry_tilt" and "degrees" in refused["detail"] and refused["file"] is None
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1
    only = refused["series_uid"]
    code, document = convert(capsys, tmp_path / "in", tmp_path / "none", "--series", only)
    assert code == 3 and len(document["series"]) == 1
    assert not (tmp_path / "none").exists()


def test_a_frame_that_cannot_be_decoded_costs_one_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write(series(RescaleSlope="0"), tmp_path / "in" / "bad")
    write(series(), tmp_path / "in" / "good")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 4
    refused = next(row for row in document["series"] if row["state"] == "refused")
    assert refused["reason"] == "missing_tag"
    assert bad[0].name.split("_")[0] in refused["detail"] and str(tmp_path) not in refused["detail"]


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(series(), tmp_path / "in")
    _, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    path = tmp_path / "out" / document["series"][0]["file"]
    first = path.read_bytes()
    path.write_bytes(b"mine")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 0 and document["kept"] == 1 and path.read_bytes() == b"mine"
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out", "--overwrite")
    assert code == 0 and document["written"] == 1 and path.read_bytes() == first


def test_the_mapping_is_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(series(), tmp_path / "a")
    write(series(seed=1), tmp_path / "b")
    for name in ("a", "b", "a"):
        convert(capsys, tmp_path / name, tmp_path / "out")
    mapping = tmp_path / "out" / "mapping.jsonl"
    assert stat.S_IMODE(mapping.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in mapping.read_text().splitlines()]
    assert len(lines) == 2 and all(len(line["paths"]) == 6 and line["series_uid"] for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere", "out"), 2, "no such"),
        (("empty", "out"), 3, "no DICOM series"),
        (("in", "out", "--series", "1.2.3"), 2, "no such series"),
        (("in", "out", "--repair", "all"), 2, "no such repair"),
        (("in", "file"), 2, "cannot write"),
    ],
)
def test_what_cannot_be_done(
    words: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(series(), tmp_path / "in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found, document = convert(capsys, *words)
    assert found == code and message in document["error"]["message"]


def test_a_person_sees_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(series(), tmp_path / "in")
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert load(tmp_path / "in")[0].series.case_id in out and "10x12x6" in out and "1 written" in out


def test_a_small_shear_is_in_the_sform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = series(Grid(slices=6, rows=64, columns=64))
    for number, image in enumerate(images):
        image.ImagePositionPatient[1] = f"{31 + 0.08 * number:.4f}"
    write(images, tmp_path / "in")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 0
    header = nib.load(tmp_path / "out" / document["series"][0]["file"]).header
    assert header["sform_code"] == 1
    sform = header.get_sform()
    assert np.linalg.norm((sform @ [0, 0, 5, 1])[:3] * [-1, -1, 1] - position(images[5], 0, 0)) < 0.01


@pytest.mark.parametrize("unit", ["SUVbw", "suvbw"])
def test_pet_is_converted_by_its_headers_and_the_file_says_so(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = pet(tmp_path / "in/pet")
    write(make.series(modality="CT"), tmp_path / "in/ct")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out", "--pet-unit", unit)
    by_modality = {row["modality"]: row for row in document["series"]}
    assert code == 0 and by_modality["PT"]["unit"] == "SUVbw" and by_modality["CT"]["unit"] is None
    image = nib.load(tmp_path / "out" / by_modality["PT"]["file"])
    stored = load_series(replace(series, converted_to="")).array
    factor = 74_000 / (370e6 * 2 ** (-3600 / 6586.2))  # g, over Bq an hour after the injection
    np.testing.assert_allclose(np.asarray(image.dataobj), stored * factor, rtol=1e-5)
    assert image.get_data_dtype() == np.float32 and bytes(image.header["descrip"]).rstrip(b"\0") == b"unit: SUVbw"
    assert not bytes(nib.load(tmp_path / "out" / by_modality["CT"]["file"]).header["descrip"]).strip(b"\0")


def test_a_file_in_another_unit_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pet(tmp_path / "in")
    words = (tmp_path / "in", tmp_path / "out")
    code, document = convert(capsys, *words)
    assert (code, document["series"][0]["unit"]) == (0, "BQML")
    code, document = convert(capsys, *words, "--pet-unit", "SUVbw")
    (row,) = document["series"]
    assert (code, row["state"], row["reason"], row["file"]) == (3, "refused", "pet_unit", None)
    assert "in values as stored; expected SUVbw" in row["detail"] and "--overwrite" in row["detail"]
    assert convert(capsys, *words, "--pet-unit", "SUVbw", "--overwrite")[1]["written"] == 1
    assert convert(capsys, *words, "--pet-unit", "SUVbw")[1]["kept"] == 1
    code, document = convert(capsys, *words)
    assert (code, document["refused"]) == (3, 1) and "in SUVbw; expected" in document["series"][0]["detail"]


def test_pet_that_cannot_be_converted_is_refused_by_its_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pet(tmp_path / "in", PatientWeight=None)
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out", "--pet-unit", "SUVbw")
    (row,) = document["series"]
    assert (code, row["reason"]) == (3, "pet_unit") and "PatientWeight (0010,1030)" in row["detail"]
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out", "--pet-unit", "GML")
    assert (code, document["series"][0]["reason"]) == (3, "pet_unit")
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--pet-unit", "kBq"]) == 2


def test_a_repaired_file_is_not_kept_when_its_missing_files_were_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = series(Grid(slices=9))
    lost = images.pop(4)
    write(images, tmp_path / "in")
    assert convert(capsys, tmp_path / "in", tmp_path / "out", "--repair", "spacing")[1]["written"] == 1
    document = convert(capsys, tmp_path / "in", tmp_path / "out", "--repair", "spacing")[1]
    assert document["kept"] == 1 and document["series"][0]["repaired"] == ["spacing"]
    write([lost], tmp_path / "in", "lost")
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    (found,) = document["series"]
    assert (code, found["state"], found["reason"]) == (3, "refused", "already_there")
    assert "repaired: spacing" in found["detail"] and "Give --overwrite" in found["detail"]
    assert convert(capsys, tmp_path / "in", tmp_path / "out", "--overwrite")[1]["written"] == 1
    assert convert(capsys, tmp_path / "in", tmp_path / "out")[1]["kept"] == 1
    jsonschema.validate(document, json.loads((SCHEMAS / "convert.schema.json").read_text()))


def _moved(images: list[Dataset]) -> None:
    for image in images:
        image.ImagePositionPatient[2] = float(image.ImagePositionPatient[2]) + 1


def _blackened(images: list[Dataset]) -> None:
    images[2].PixelData = bytes(len(images[2].PixelData))


def _rescaled(images: list[Dataset]) -> None:
    images[2].RescaleIntercept = "-1024"


def _longer(images: list[Dataset]) -> None:
    images += series(Grid(slices=7), SeriesInstanceUID=images[0].SeriesInstanceUID)[6:]
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(images[-1], name, images[0][name].value)


@pytest.mark.parametrize("change", [_moved, _blackened, _rescaled, _longer])
def test_a_file_of_other_slices_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list[Dataset]], None]
) -> None:
    images = series()
    write(images, tmp_path / "in")
    convert(capsys, tmp_path / "in", tmp_path / "out")
    for image in images:  # what a header says of people may change, and where files lie
        image.PatientName = "Roe^Richard"
    write(images, tmp_path / "copy")
    assert convert(capsys, tmp_path / "copy", tmp_path / "out")[1]["kept"] == 1
    change(images)
    write(images, tmp_path / "copy")
    code, document = convert(capsys, tmp_path / "copy", tmp_path / "out")
    assert (code, document["series"][0]["reason"]) == (3, "already_there")
    assert convert(capsys, tmp_path / "copy", tmp_path / "out", "--overwrite")[1]["written"] == 1
    assert convert(capsys, tmp_path / "copy", tmp_path / "out")[1]["kept"] == 1


def test_series_that_headers_do_not_tell_apart_are_not_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two patients whose UIDs a crude anonymiser made the same, read together and one after the other."""
    for patient, value in (("A", 100), ("B", 900)):
        images = series(PatientID=patient)
        for number, image in enumerate(images):
            image.SOPInstanceUID = f"1.2.3.{number + 1}"
            image.PixelData = np.full((image.Rows, image.Columns), value, "<i2").tobytes()
            del image.SeriesInstanceUID, image.StudyInstanceUID
        write(images, tmp_path / "in" / patient)
    code, document = convert(capsys, tmp_path / "in", tmp_path / "out")
    assert (code, document["written"]) == (0, 2)
    values = {float(nib.load(path).get_fdata().mean()) for path in (tmp_path / "out").glob("*.nii.gz")}
    assert values == {100.0, 900.0}
    lines = map(json.loads, (tmp_path / "out/mapping.jsonl").read_text().splitlines())
    assert {Path(line["paths"][0]).parent.name for line in lines} == {"A", "B"}
    convert(capsys, tmp_path / "in/A", tmp_path / "apart")
    code, document = convert(capsys, tmp_path / "in/B", tmp_path / "apart")
    assert (code, document["series"][0]["reason"]) == (3, "already_there")


def test_conversions_into_one_folder_keep_each_other_s_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("a", "b")):
        write(series(seed=seed), tmp_path / name)
    inner: list[object] = []

    def other_first(read: Series) -> Volume:
        if not inner:
            inner.append(None)
            convert_folder(tmp_path / "b", tmp_path / "out")  # another one, while this one is at work
        return load_series(read)

    monkeypatch.setattr(conversion, "load_series", other_first)
    assert convert(capsys, tmp_path / "a", tmp_path / "out")[1]["written"] == 1
    lines = [json.loads(line) for line in (tmp_path / "out/mapping.jsonl").read_text().splitlines()]
    assert {f"{line['id']}.nii.gz" for line in lines} == {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert len(lines) == 2
