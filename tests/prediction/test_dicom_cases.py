"""`segpipe predict` on DICOM series, in-process: right labels in every format, and nothing said of a person."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom import make
from segpipe.cli.app import run
from segpipe.dicom.labels import read_labels
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load
from tiny_bundle import THRESHOLD, write_scan

pytestmark = pytest.mark.usefixtures("one_worker")
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
KEPT = {  # header text that files a result in its study; dates, sex and UIDs beside it are no text
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
}
SOURCE_EQUIPMENT = {
    "ContributingEquipmentSequence/Manufacturer",
    "ContributingEquipmentSequence/ManufacturerModelName",
    "ContributingEquipmentSequence/SoftwareVersions",
}


def texts(dataset: Dataset, above: str = "") -> Iterator[tuple[str, str]]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from texts(item, f"{above}{element.keyword}/")
        else:
            yield above + element.keyword, str(element.value)


def predict(bundle: Path, folder: Path, out: Path, *words: str) -> int:
    return run(["predict", str(bundle), str(folder), str(out), *words])


def test_labels_of_a_series_in_every_format(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.write(make.series(make.Grid(make.OBLIQUE, slices=7), "MR"), tmp_path / "in")
    out = tmp_path / "out"
    assert predict(tiny_bundle, tmp_path / "in", out, "--format", "nifti,seg", "--format", "rtstruct,sr", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    (case,) = document["cases"]
    (volume,) = load(tmp_path / "in")
    expected = (volume.array > THRESHOLD).astype(np.uint8)
    folder = out / volume.series.case_id
    image = nib.load(folder / "segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    np.testing.assert_allclose(image.affine, volume.affine_ras, atol=1e-4)
    for name in ("seg.dcm", "rtstruct.dcm"):
        (mask,) = read_labels(folder / name, volume.series).values()
        np.testing.assert_array_equal(mask, expected, name)
    assert set(case["files"]) == {"nifti", "seg", "rtstruct", "sr"} and case["not_written"] == {}
    assert sorted(path.name for path in folder.iterdir()) == [
        "overlay.png",
        "result.json",
        "rtstruct.dcm",
        "seg.dcm",
        "segmentation.nii.gz",
        "sr.dcm",
    ]
    result = json.loads((folder / "result.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    for name, instance in {"result": result, "predict": document, "summary": summary}.items():
        jsonschema.validate(instance, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    assert result["source"] == "dicom" and result["voxels"] == {"bright": int(expected.sum())}


def test_formats_asked_for_later_are_made_and_the_same_ones_are_not(tiny_bundle: Path, tmp_path: Path) -> None:
    make.write(make.series(modality="MR"), tmp_path / "in")
    out = tmp_path / "out"

    def ended(*words: str) -> list[str]:
        assert predict(tiny_bundle, tmp_path / "in", out, *words) == 0
        events = [json.loads(line) for line in (out / "predictions.jsonl").open()]
        start = max(index for index, event in enumerate(events) if event["event"] == "start")
        return [event["event"] for event in events[start + 1 :]]

    (series,) = scan(tmp_path / "in").series
    folder = out / series.case_id
    assert ended() == ["done"] and (folder / "seg.dcm").is_file()  # the default
    assert ended() == ended("--format", "seg") == ["skipped"]
    assert ended("--format", "sr") == ["done"]
    assert not (folder / "segmentation.nii.gz").exists() and (folder / "sr.dcm").is_file()
    (tmp_path / "in").rename(tmp_path / "moved")
    (tmp_path / "in").symlink_to(tmp_path / "moved")
    assert ended("--format", "seg") == ["skipped"]


def test_a_series_that_got_more_slices_is_computed_again(tiny_bundle: Path, tmp_path: Path) -> None:
    images = make.series(make.Grid(slices=8), "MR")
    make.write(images[:6], tmp_path / "in")
    out = tmp_path / "out"
    assert predict(tiny_bundle, tmp_path / "in", out) == 0
    make.write(images, tmp_path / "in")
    assert predict(tiny_bundle, tmp_path / "in", out) == 0
    (series,) = scan(tmp_path / "in").series
    assert nib.load(out / series.case_id / "segmentation.nii.gz").shape[2] == 8


def test_slices_of_the_same_uids_that_show_something_else_fail_that_case(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make.series(make.Grid(slices=6), "MR")
    make.write(images, tmp_path / "in")
    out = tmp_path / "out"
    assert predict(tiny_bundle, tmp_path / "in", out) == 0
    make.write(images, tmp_path / "copy")
    assert predict(tiny_bundle, tmp_path / "copy", out) == 0
    images[3].PixelData = bytes(len(images[3].PixelData))  # a face was removed
    make.write(images, tmp_path / "copy")
    capsys.readouterr()
    assert predict(tiny_bundle, tmp_path / "copy", out, "--json") == 4
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert "has changed since it was finished" in case["reason"] and "--overwrite" in case["detail"]
    assert predict(tiny_bundle, tmp_path / "copy", out, "--overwrite") == 0
    assert predict(tiny_bundle, tmp_path / "copy", out) == 0


def test_what_cannot_carry_dicom_still_has_its_nifti_and_the_reason(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make.series(modality="MR")
    for image in images:
        del image.FrameOfReferenceUID
    make.write(images, tmp_path / "in" / "bare")
    write_scan(tmp_path / "in" / "n.nii.gz")
    assert predict(tiny_bundle, tmp_path / "in", tmp_path / "out", "--format", "seg,sr", "--json") == 0
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert "from a DICOM series" in cases["n"]["not_written"]["seg"]
    (id,) = set(cases) - {"n"}
    assert "FrameOfReferenceUID" in cases[id]["not_written"]["seg"] and set(cases[id]["not_written"]) == {"seg", "sr"}
    for case in cases.values():
        assert case["files"] == {"nifti": "segmentation.nii.gz"}
        assert (tmp_path / "out" / case["id"] / "segmentation.nii.gz").is_file()


def test_a_series_whose_pixels_are_cut_short_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make.write(make.series(modality="MR"), tmp_path / "in" / "JaneDoe")
    image = dcmread(paths[2])
    image.PixelData = image.PixelData[:-40]
    image.save_as(paths[2])
    assert predict(tiny_bundle, tmp_path / "in", tmp_path / "out", "--json") == 4
    captured = capsys.readouterr()
    (case,) = json.loads(captured.out)["cases"]
    assert case["status"] == "refused" and case["reason"] == "truncated"
    assert "JaneDoe" not in captured.out + captured.err
    assert "JaneDoe" not in (tmp_path / "out/predictions.jsonl").read_text()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["counts"] == {"done": 0, "failed": 0, "refused": 1, "not_selected": 0}


def planted(folder: Path) -> Path:
    """A good series, one with a gap and one cut short, with markers in headers and names, and a NIfTI file."""
    for name, keep in (("good", range(6)), ("gap", (0, 1, 3, 4, 5))):
        images = make.series(make.Grid(slices=6), "MR")
        for image in images:
            make.plant(image)
            image.ReferencedStudySequence = [Dataset()]
            image.ReferencedStudySequence[0].TextValue = make.MARKER
            image.RequestAttributesSequence = [Dataset()]
            image.RequestAttributesSequence[0].RequestedProcedureDescription = make.MARKER
        make.write([images[k] for k in keep], folder / f"{make.MARKER} {name}", f"{make.MARKER}_{name}")
    paths = make.write(make.series(modality="MR"), folder / make.MARKER / "cut", make.MARKER)
    paths[1].write_bytes(paths[1].read_bytes()[:-99])
    scan_path = write_scan(folder / make.MARKER / "scan.nii.gz")
    image = nib.load(scan_path)
    image.header["descrip"] = make.MARKER.encode()
    nib.save(image, scan_path)
    return folder


@pytest.mark.parametrize("json_words", [[], ["--json"]])
def test_no_marker_leaves_the_headers(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], json_words: list[str]
) -> None:
    folder, out = planted(tmp_path / "in"), tmp_path / "out"
    words = ["--format", "nifti,seg,rtstruct,sr", *json_words]
    assert predict(tiny_bundle, folder, out, *words) == 4
    captured = capfd.readouterr()
    assert make.MARKER not in captured.out + captured.err
    marker = make.MARKER.encode()
    dicom = sorted(out.rglob("*.dcm"))
    assert len(dicom) == 3
    for path in out.rglob("*"):
        assert make.MARKER not in path.name
        if path.is_file() and path not in dicom and path.name != "mapping.jsonl":
            content = path.read_bytes()
            assert marker not in content, path.name
            if path.name.endswith(".gz"):
                assert marker not in gzip.decompress(content), path.name
    assert (out / "mapping.jsonl").stat().st_mode & 0o777 == 0o600
    for path in dicom:
        found = {where for where, text in texts(dcmread(path)) if make.MARKER in text}
        assert found <= KEPT | SOURCE_EQUIPMENT, f"{path.name}: {found - KEPT - SOURCE_EQUIPMENT}"
        assert found >= {"PatientName", "PatientID", "AccessionNumber", "StudyID"}


def test_summary_after_a_mixed_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = planted(tmp_path / "in")
    (folder / "bad.nii.gz").write_bytes(b"no image")
    for _ in range(2):  # skipped cases stay in it
        assert predict(tiny_bundle, folder, out) == 4
        rows = list(csv.DictReader((out / "summary.csv").open()))
        assert sorted(row["state"] for row in rows) == ["done", "done", "failed", "refused", "refused"]
        done = {row["id"]: row for row in rows if row["state"] == "done"}
        assert float(done["scan"]["bright_ml"]) > 0 and done["scan"]["touches_border"] == "bright"
        assert {row["far_spacing"] for row in done.values()} == {"unknown"}
        assert all(row["reason"] for row in rows if row["state"] != "done")
        page = (out / "report.html").read_text()
        assert page.count("data:image/png;base64,") == 3  # the legend and two cases
        assert "ot a medical device" in page and "http" not in page.replace("http-equiv", "")
        assert not any((out / "scan").glob(".*"))
    schema = json.loads((SCHEMAS / "prediction_event.schema.json").read_text())
    events = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    assert {event["event"] for event in events} == {"start", "done", "skipped", "failed", "refused"}
    for event in events:
        jsonschema.Draft202012Validator(schema).validate(event)


def test_wrong_options(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scan(tmp_path / "a.nii.gz")
    for words in (["--format", "png"], ["--series-description", "("], ["--max-case-memory", "much"]):
        assert predict(tiny_bundle, tmp_path / "a.nii.gz", tmp_path / "out", *words) == 2
    assert "no such format" in capsys.readouterr().err
