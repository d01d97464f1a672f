"""`segpipe import` of DICOM: right labels with the right series, doubt refused by case, nothing said of a person."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom import make
from segpipe.cli.app import run
from segpipe.data.importers.label_rules import parse_label_rules
from segpipe.data.importers.to_manifest import detect_layout
from segpipe.data.manifest import Manifest, load_manifest
from segpipe.dicom.codes import label_infos
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.stored_object import AlgorithmInfo
from segpipe.errors import UsageError

ALGORITHM = AlgorithmInfo("reader", "1", "0" * 64)
WRITERS = {"SEG": write_seg, "RTSTRUCT": write_rtstruct}
SCHEMA = json.loads((Path(__file__).parents[3] / "docs/schemas/import.schema.json").read_text())


def labels_of(shape: tuple[int, int, int] | None, *values: int) -> np.ndarray:
    """Blocks without symmetry, one a value."""
    labels = np.zeros(shape or (), np.uint8)
    for value in values:
        labels[3 * value - 2 : 3 * value, 2 * value : 2 * value + 4, 1 : 3 + value] = value
    return labels


def add(folder: Path, names: dict[int, str], kind: str = "SEG", file: str = "", **attributes: Any) -> Series:
    """A series and, where there are names, a file with their labels."""
    make.write(make.series(seed=len(str(folder)), **attributes), folder)
    (series,) = scan(folder).series
    if names:
        write_labels(series, names, folder / (file or f"{kind}.dcm"), kind)
    return series


def write_labels(series: Series, names: dict[int, str], path: Path, kind: str = "SEG") -> np.ndarray:
    labels = labels_of(series.shape, *names)
    infos = label_infos({0: "background", **names})[0]
    WRITERS[kind](series, labels, infos, path, algorithm=ALGORITHM)
    return labels


def imported(tmp_path: Path, *words: str) -> tuple[int, Manifest]:
    code = run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json"), *words])
    return code, load_manifest(tmp_path / "m.json")


def voxels(root: Path, path: str | list[str] | None) -> np.ndarray:
    return np.asarray(nib.load(root / str(path)).dataobj)


def test_series_and_labels_become_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tumour, both = {1: "GTV 1"}, {1: "gtv-primary", 2: "left node"}
    one = add(tmp_path / "in/a", both, "RTSTRUCT", PatientID="17")
    two = add(tmp_path / "in/b", both, "SEG", PatientID="18")
    three = add(tmp_path / "in/c", {}, PatientID="17")
    for path, series, names in (("in/x.dcm", three, tumour), ("in/y.dcm", three, {2: "NODE"})):
        write_labels(series, names, tmp_path / path)  # elsewhere in the tree, two files for one series
    add(tmp_path / "in/d", {}, PatientID="19")
    code, manifest = imported(tmp_path, "--label", "GTV*=1:tumour", "--label", "*node=2:lymph node", "--json")
    said = capsys.readouterr()
    assert code == 0
    document = json.loads(said.out)
    jsonschema.validate(document, SCHEMA)
    assert document["patients"] == 2 and "1 series without labels" in said.err
    assert manifest.labels == {"0": "background", "1": "tumour", "2": "lymph node"}
    assert manifest.modality == {"0": "CT"} and not manifest.test
    cases = {case.id: case for case in manifest.training}
    assert set(cases) == {one.case_id, two.case_id, three.case_id}
    for series in (one, two, three):
        case = cases[series.case_id]
        np.testing.assert_array_equal(voxels(tmp_path, case.label), labels_of(series.shape, 1, 2))
        np.testing.assert_array_equal(voxels(tmp_path, case.image), load_series(series).array)
        for path in case.paths:
            np.testing.assert_allclose(nib.load(tmp_path / path).affine, series.affine_ras, atol=1e-4)
    assert cases[one.case_id].patient_id == cases[three.case_id].patient_id != cases[two.case_id].patient_id


def patient_of(source: Path, out: Path, *words: str) -> str:
    """The pseudonym of the one patient in an import."""
    assert run(["import", str(source), "--converted", str(out), "--overwrite", *words]) == 0
    (patient,) = {case.patient_id for case in load_manifest(out / "manifest.json").training}
    return str(patient)


def test_a_patient_is_known_to_the_holder_of_the_key_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    source = tmp_path / "in"
    add(source, {1: "liver"}, PatientID="17")
    one, two, again = (patient_of(source, tmp_path / name) for name in ("one", "two", "one"))
    assert one == two == again
    key = tmp_path / "config/segpipe/pseudonyms.key"
    assert str(key) in capsys.readouterr().err.replace("\n", "")
    for file in (key, tmp_path / "one/mapping.jsonl"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    own, same = (patient_of(source, tmp_path / name, "--key", str(tmp_path / "k.key")) for name in ("three", "four"))
    assert own == same != one and stat.S_IMODE((tmp_path / "k.key").stat().st_mode) == 0o600
    for plain in ("17", "\x0017"):
        assert hashlib.sha256(plain.encode()).hexdigest()[:12] not in (one, own)


def test_other_labels_in_the_same_folder_leave_those_of_an_earlier_manifest(tmp_path: Path) -> None:
    add(tmp_path / "in", {1: "liver", 2: "spleen"})
    maps = {}
    for name in ("liver", "spleen", "liver"):
        out = tmp_path / f"{name}.json"
        words = ["-o", str(out), "--converted", str(tmp_path / "made"), "--label", f"{name}=1:{name}", "--overwrite"]
        assert run(["import", str(tmp_path / "in"), *words]) == 0
        (case,) = load_manifest(out).training
        maps.setdefault(name, (case.paths, voxels(tmp_path, case.label)))
        assert case.paths == maps[name][0]
    assert maps["liver"][0][0] == maps["spleen"][0][0]  # the image is the same
    for paths, values in maps.values():
        assert values.any() and np.array_equal(voxels(tmp_path, paths[1]), values)
    assert not (maps["liver"][1] & maps["spleen"][1]).any()


def test_two_imports_of_one_tree_give_a_patient_one_pseudonym(tmp_path: Path) -> None:
    """CT first, then PET, into folders of their own."""
    source = tmp_path / "in"
    add(source / "ct", {1: "liver"}, PatientID="17")
    add(source / "pet", {1: "liver"}, PatientID="17", Modality="PT", Units="BQML")
    assert patient_of(source, tmp_path / "ct", "--modality", "CT") == patient_of(
        source, tmp_path / "pet", "--modality", "PET"
    )


def test_a_patient_has_one_pseudonym_whether_case_ids_are_replaced_or_not(tmp_path: Path) -> None:
    add(tmp_path / "in", {1: "liver"}, PatientID="17")
    plain = patient_of(tmp_path / "in", tmp_path / "one")
    assert plain == patient_of(tmp_path / "in", tmp_path / "two", "--pseudonymise")
    assert load_manifest(tmp_path / "two/manifest.json").training[0].id.startswith("case-")


def test_one_number_with_and_without_its_issuer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three, four, five = (
        add(tmp_path / f"in/{name}", {1: "liver"}, PatientID=number, IssuerOfPatientID=issuer)
        for name, number, issuer in (
            ("a", "4711", ""),
            ("bb", "4711", "HOSPITAL"),
            ("ccc", "4712", "HOSPITAL"),
            ("dddd", "4712", "OTHER"),
            ("eeeee", "", ""),
        )
    )
    assert imported(tmp_path)[0] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "without PatientID, so each study counts as a patient: " + five.case_id in said
    words = said.partition("with and without IssuerOfPatientID counts as several patients: ")[2].partition(";")[0]
    assert sorted(words.split(", ")) == sorted([one.case_id, two.case_id])
    assert not any(word in said for word in ("4711", "4712", "HOSPITAL", "OTHER"))
    assert three.case_id not in words and four.case_id not in words


def test_the_key_that_an_earlier_version_left_in_a_folder_goes_on_naming_its_patients(tmp_path: Path) -> None:
    add(tmp_path / "in", {1: "liver"}, PatientID="17")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pseudonyms.key").write_text("ab" * 32)
    (tmp_path / "copy.key").write_text("ab" * 32)
    earlier = patient_of(tmp_path / "in", tmp_path / "out")
    assert earlier == patient_of(tmp_path / "in", tmp_path / "new", "--key", str(tmp_path / "copy.key"))
    assert earlier != patient_of(tmp_path / "in", tmp_path / "other")


def test_what_is_no_key_is_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "in", {1: "liver"})
    (tmp_path / "short.key").write_text("17\n")
    (tmp_path / "binary.key").write_bytes(b"\xff" * 64)
    for key, code in (("short.key", 3), ("binary.key", 3), ("short.key/below", 2)):
        words = ["import", str(tmp_path / "in"), "--converted", str(tmp_path / "out"), "--key", str(tmp_path / key)]
        assert run(words) == code
        assert "--key" in capsys.readouterr().err and not (tmp_path / "out").exists()
    nifti = ["import", "--images", str(tmp_path), "--labels", str(tmp_path), "--key", str(tmp_path / "k")]
    assert run(nifti) == 2 and "--key goes with" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_no_text_of_a_header_leaves(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = make.series()
    for image in images:
        make.plant(image)
    make.write(images, tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    path = tmp_path / "in/labels.dcm"
    write_labels(series, {1: "liver", 2: "spleen"}, path, kind)
    dataset = dcmread(path)
    parts = dataset.SegmentSequence if kind == "SEG" else dataset.StructureSetROISequence
    for number, part in enumerate(parts):
        setattr(part, "SegmentLabel" if kind == "SEG" else "ROIName", f"{make.MARKER}{number}")
    dataset.save_as(path)
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "out/m.json")]) == 2
    rules = ["--label", "*0=1:one", "--label", "*1=2:two"]
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "out/m.json"), *rules]) == 0
    assert run(["check", str(tmp_path / "out/m.json")]) == 0
    said = "".join(capfd.readouterr())
    assert make.MARKER not in said and "0815" not in said
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        content = re.sub(rb"[0-9a-f]{64}", b"", content)  # a hash may hold any four digits
        assert make.MARKER.encode() not in content and b"0815" not in content and b"Doe" not in content
    assert run(["import", str(tmp_path / "in"), "--show-names"]) == 0  # asked for, on the terminal
    assert make.MARKER + "0" in capfd.readouterr().out


def test_names_are_asked_for_where_there_are_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "in/a", {1: "liver"})
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json"), "--label-name", "organ"]) == 0
    assert load_manifest(tmp_path / "m.json").labels["1"] == "organ"
    add(tmp_path / "in/b", {1: "spleen"})
    capsys.readouterr()
    words = ["import", str(tmp_path / "in"), "-o", str(tmp_path / "n.json")]
    for wrong in ([], ["--label", "liver=1", "--label", "kidney=2"]):
        assert run([*words, *wrong]) == 2
        said = "".join(capsys.readouterr())
        assert "spleen" not in said and "--show-names" in said
    assert not (tmp_path / "n.json").exists()
    assert run([*words, "--label", "liver=1:abdomen", "--label", "SPLEEN=1"]) == 0
    assert load_manifest(tmp_path / "n.json").labels["1"] == "abdomen"


def bad_overlap(folder: Path) -> Series:
    series = add(folder, {})
    for value, name in ((1, "one"), (2, "two")):
        labels = labels_of(series.shape, 1) * value
        infos = label_infos({0: "background", value: name})[0]
        write_seg(series, labels, infos, folder / f"{name}.dcm", algorithm=ALGORITHM)
    return series


def bad_missing(folder: Path) -> Series:
    return add(folder, {1: "one"})


def bad_twice(folder: Path) -> Series:
    series = add(folder, {1: "one", 2: "two"}, "SEG")
    write_labels(series, {1: "one", 2: "two"}, folder / "RT.dcm", "RTSTRUCT")
    return series


def bad_gap(folder: Path) -> Series:
    series = add(folder, {1: "one"})  # and "two" is missing, which matters less
    series.frames[3].path.unlink()
    return series


def bad_frame(folder: Path) -> Series:
    series = add(folder, {1: "one", 2: "two"})
    image = dcmread(folder / "SEG.dcm")
    image.FrameOfReferenceUID = generate_uid()
    image.save_as(folder / "SEG.dcm")
    return series


@pytest.mark.parametrize(
    ("spoil", "words", "way_out"),
    [
        (bad_overlap, "overlap", ["--overlap", "last"]),
        (bad_missing, "no 'two'", ["--allow-missing"]),
        (bad_twice, "2 label files", None),
        (bad_gap, "gap", None),
        (bad_frame, "frame of reference", None),
    ],
)
def test_doubt_is_refused_by_case(
    spoil: Any, words: str, way_out: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = add(tmp_path / "in/good", {1: "one", 2: "two"})
    bad = spoil(tmp_path / "in/bad")
    command = ["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json")]
    command += ["--label", "one=1", "--label", "two=2"]
    assert run(command) == 3
    said = capsys.readouterr().err
    assert bad.case_id in said and words in said and good.case_id not in said
    assert not (tmp_path / "m.json").exists()
    assert run([*command, "--skip-bad"]) == 0
    assert bad.case_id in capsys.readouterr().err
    assert [case.id for case in load_manifest(tmp_path / "m.json").training] == [good.case_id]
    if way_out:
        assert run([*command, *way_out, "--overwrite"]) == 0
        cases = {case.id: case for case in load_manifest(tmp_path / "m.json").training}
        expected = labels_of(bad.shape, 1) * (2 if spoil is bad_overlap else 1)
        np.testing.assert_array_equal(voxels(tmp_path, cases[bad.case_id].label), expected)


def test_labels_without_their_series_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "in/a", {1: "liver"})
    add(tmp_path / "other", {1: "liver"}, "RTSTRUCT")
    shutil.copy(tmp_path / "other/RTSTRUCT.dcm", tmp_path / "in/lonely.dcm")
    command = ["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json")]
    assert run(command) == 3
    assert "lonely.dcm" in capsys.readouterr().err
    assert run([*command, "--skip-bad"]) == 0


def test_copies_of_a_label_file_are_one(tmp_path: Path) -> None:
    series = add(tmp_path / "in", {1: "liver"})
    shutil.copytree(tmp_path / "in", tmp_path / "in/again")
    code, manifest = imported(tmp_path)
    assert code == 0 and [case.id for case in manifest.training] == [series.case_id]


def test_a_series_split_in_two_is_told_by_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [*make.series(seed=1), *make.series(seed=2)]
    for number, image in enumerate(images):
        image.SeriesInstanceUID, image.StudyInstanceUID = (images[0].SeriesInstanceUID, images[0].StudyInstanceUID)
        image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
        image.AcquisitionNumber = 1 + (number >= 6)
    make.write(images, tmp_path / "in")
    first, second = scan(tmp_path / "in").series
    assert first.series_uid == second.series_uid and first.state == second.state == "loaded"
    write_labels(second, {1: "liver"}, tmp_path / "in/seg.dcm")
    scout = add(tmp_path / "in/scout", {}, grid=make.Grid(slices=1))
    code, manifest = imported(tmp_path, "--unlabelled", "include")
    assert code == 0 and f"left out: {scout.case_id}: single_slice" in capsys.readouterr().err
    assert [case.id for case in manifest.training] == [second.case_id]
    assert [(case.id, case.label) for case in manifest.test] == [(first.case_id, None)]


def test_one_of_several_modalities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct = add(tmp_path / "in/a", {1: "liver"})
    mr = add(tmp_path / "in/b", {1: "liver"}, modality="MR")
    _, manifest = imported(tmp_path)
    assert manifest.modality == {"0": "mixed"} and "--modality" in capsys.readouterr().err
    for word, expected, series in (("MRI", "MRI", mr), ("ct", "CT", ct)):
        _, manifest = imported(tmp_path, "--modality", word, "--overwrite")
        assert manifest.modality == {"0": expected}
        assert [case.id for case in manifest.training] == [series.case_id]


def test_an_import_goes_on(tmp_path: Path) -> None:
    add(tmp_path / "in", {1: "liver", 2: "spleen"})
    rules = ["--label", "liver=1", "--label", "spleen=2"]
    _, manifest = imported(tmp_path, *rules)
    case = manifest.training[0]
    image, label = (tmp_path / path for path in case.paths)
    image.write_bytes(b"kept")
    imported(tmp_path, *rules, "--overwrite")
    assert image.read_bytes() == b"kept"
    _, manifest = imported(tmp_path, "--label", "liver=1", "--overwrite")
    case = manifest.training[0]
    assert image.read_bytes() == b"kept" and voxels(tmp_path, case.image).any()
    assert label.is_file() and set(np.unique(voxels(tmp_path, case.label))) == {0, 1}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--layout", "nnunet"], 2, "dataset.json"),
        (["--label", "liver"], 2, "not a rule"),
        (["--overlap", "best"], 2, "overlaps"),
        (["--unlabelled", "no"], 2, "without labels"),
        (["--spacing", "1", "1", "1"], 2, "--spacing"),
        (["--modality", "PET"], 3, "SEG or RTSTRUCT"),
    ],
)
def test_what_cannot_be_done(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path / "in", {1: "liver"})
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json"), *words]) == code
    assert message in capsys.readouterr().err


def test_options_for_dicom_are_refused_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    assert run(["import", str(tmp_path), "--label", "a=1"]) == 2
    assert "go with DICOM" in capsys.readouterr().err


def test_a_layout_is_told(tmp_path: Path) -> None:
    make.write(make.series(), tmp_path / "in/deep")
    assert detect_layout(tmp_path / "in") == "dicom"
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.txt").write_text("no")
    with pytest.raises(UsageError, match="no data set"):
        detect_layout(tmp_path / "none")


def test_rules_are_read() -> None:
    rules = parse_label_rules(["old*=0", "GTV*=1:tumour", "gross[1]=1", "node?=2:lymph node: any"])
    assert rules.names == {1: "tumour", 2: "lymph node: any"}
    names = ["old GTV", "gtv-1", "Gross[1]", "gross1", "NODE2", "node12"]
    assert [rules.value_of(name) for name in names] == [0, 1, 1, None, 2, None]
    assert rules.unused(["GTV", "node1"]) == ["old*", "gross[1]"]
    assert parse_label_rules(["a=b=1"]).names == {1: "a=b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["GTV"], "not a rule"),
        (["=1:a"], "not a rule"),
        (["GTV=1:a", "b=3"], "1, 2, 3"),
        (["GTV=0"], "1, 2, 3"),
        (["GTV*=1"], "no name"),
        (["a=1:x", "b=1:y"], "two names"),
    ],
)
def test_rules_that_are_none(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_label_rules(words)


@pytest.mark.slow
def test_from_dicom_to_a_training_that_could_start(tmp_path: Path) -> None:
    grid = make.Grid(rows=24, columns=22, slices=16)
    for number in range(6):
        folder = tmp_path / f"in/{number}"
        make.write(make.series(grid, "MR", seed=number, PatientID=str(number)), folder)
        (series,) = scan(folder).series
        write_labels(series, {1: "liver"}, folder / "seg.dcm")
    manifest, task = str(tmp_path / "m.json"), str(tmp_path / "task.yaml")
    assert run(["import", str(tmp_path / "in"), "-o", manifest]) == 0
    assert run(["check", manifest]) == 0
    assert run(["split", manifest, "--folds", "2"]) == 0
    assert run(["plan", manifest, "-o", task]) == 0
    assert run(["train", manifest, "--task", task, "--out", str(tmp_path / "run"), "--dry-run"]) == 0


@pytest.mark.realdata
def test_contours_of_a_real_patient_are_its_masks(tmp_path: Path) -> None:
    """CT, PET and MR with an RTSTRUCT each, against the masks that the publisher made of them."""
    data = Path(os.environ["SEGPIPE_DATA"]) / "ibsi_STS_003"
    (tmp_path / "in").symlink_to(data / "dicom")
    code, manifest = imported(tmp_path, "--label", "GTV_Mass*=1:tumour")
    assert code == 0 and len(manifest.training) == 3
    assert len({case.patient_id for case in manifest.training}) == 1
    shapes = {nib.load(path).shape: path for path in (data / "nifti").glob("*_mask.nii.gz")}
    for case in manifest.training:
        found = nib.load(tmp_path / str(case.label))
        (reference,) = [nib.load(path) for shape, path in shapes.items() if shape == found.shape]
        places = np.argwhere(np.asarray(found.dataobj) > 0)
        to_index = np.linalg.inv(reference.affine) @ found.affine
        index = np.rint(places @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        truth = np.asarray(reference.dataobj) > 0
        dice = 2 * truth[tuple(index.T)].sum() / (len(places) + truth.sum())
        assert dice >= 0.99


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_labels_go_with_the_slices_of_a_repaired_series(kind: str, tmp_path: Path) -> None:
    """One whole pixel of 1.5 mm from slice to slice, so that what is resampled can be told exactly."""
    images = make.series(make.Grid(slices=8))
    make.write(images, tmp_path / "upright")
    (upright,) = scan(tmp_path / "upright").series
    labels = write_labels(upright, {1: "liver"}, tmp_path / "labels.dcm", kind)
    for number, image in enumerate(images):
        image.ImagePositionPatient[1] = float(image.ImagePositionPatient[1]) + 1.5 * number
    make.write(images, tmp_path / "in")
    file = dcmread(tmp_path / "labels.dcm")
    for frame in file.get("PerFrameFunctionalGroupsSequence", []):
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        place[1] = float(place[1]) + 1.5 * round((float(place[2]) - 5) / 3)
    for region in file.get("ROIContourSequence", []):
        for contour in region.ContourSequence:
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            points[:, 1] += 1.5 * np.rint((points[:, 2] - 5) / 3)
            contour.ContourData = [f"{number:.6g}" for number in points.ravel()]
    file.save_as(tmp_path / "in/labels.dcm")
    (tilted,) = scan(tmp_path / "in").series
    assert tilted.reason == "gantry_tilt"
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json")]) == 3
    code, manifest = imported(tmp_path, "--repair", "tilt")
    (case,) = manifest.training
    assert code == 0 and case.notes == ["repaired: tilt; resampled linearly to slices 3 mm apart"]
    found = voxels(tmp_path, case.label)
    assert found.shape == (10, 12 + 7, 8) == voxels(tmp_path, case.image).shape
    for number in range(8):
        np.testing.assert_array_equal(found[:, number : number + 12, number], labels[:, :, number])
    assert found.sum() == labels.sum() > 0


def test_a_gap_is_not_bridged_in_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "in", {1: "liver"})
    (tmp_path / "in/image_002.dcm").unlink()
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json"), "--repair", "spacing"]) == 3
    assert "gap" in capsys.readouterr().err


def test_a_secondary_capture_is_imported_where_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make.series(modality="MR")
    make.write(images, tmp_path / "native")
    (native,) = scan(tmp_path / "native").series
    (tmp_path / "in").mkdir()
    write_labels(native, {1: "liver"}, tmp_path / "in/labels.dcm")
    for image in images:
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    make.write(images, tmp_path / "in")
    assert run(["import", str(tmp_path / "in"), "-o", str(tmp_path / "m.json")]) == 3
    (name,) = re.findall(r"--secondary-capture (\S+)\.", capsys.readouterr().err)
    code, manifest = imported(tmp_path, "--secondary-capture", name)
    assert code == 0 and manifest.training[0].notes == ["Secondary Capture: values may have been windowed"]
    assert "values may have been windowed" in capsys.readouterr().err
