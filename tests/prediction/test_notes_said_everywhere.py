"""What is noted of a case, and why one has no result, is said on terminal, page, in tables and when sending."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

import segpipe
from dicom import make
from segpipe.cli.app import run
from segpipe.dicom.scanning import scan

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A series that lacks its end, one of two studies, one of another modality, one with a gap; a broken file."""
    root = tmp_path / "in"
    short = make.series(make.Grid(slices=10), "MR")[:8]
    for image in short:
        image.ImagesInAcquisition = 10
    two_studies = make.series(make.Grid(slices=8), "MR")
    two_studies[-1].StudyInstanceUID = "1.2.3.4"
    gap = make.series(make.Grid(slices=8), "MR")
    del gap[3]
    for name, images in {"short": short, "two_studies": two_studies, "gap": gap}.items():
        make.write(images, root / name)
    make.write(make.series(make.Grid(slices=8), "CT"), root / "ct")
    (root / "broken.nii.gz").write_bytes(b"no image")
    return root


def test_notes_reasons_and_what_was_left_out(
    tiny_bundle: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_folder = {series.files[0].parent.name: series for series in scan(tree).series}
    out = tmp_path / "out"
    words = ["--modality", "MR", "--format", "nifti,seg"]
    assert run(["predict", str(tiny_bundle), str(tree), str(out), *words]) == 4
    terminal = " ".join(re.sub("[│\u2502]", " ", capsys.readouterr().out).split())
    page = (out / "report.html").read_text()
    rows = {row["id"]: row for row in csv.DictReader((out / "summary.csv").open())}
    mapping = {line["id"]: line for line in map(json.loads, (out / "mapping.jsonl").read_text().splitlines())}
    notes = {"short": "10 images, 8 were found", "two_studies": "name another study (2): slices may be missing"}
    for name, note in notes.items():
        case_id = by_folder[name].case_id
        assert note in rows[case_id]["notes"] and note in page and rows[case_id]["state"] == "done"
        assert note.split()[-1] in terminal
    assert "2 with a result to look at" in terminal and "to look at: decision, flags or notes" in page
    for name in (*notes, "gap"):
        found = mapping[by_folder[name].case_id]
        assert found["series_uid"] == by_folder[name].series_uid and found["study_uid"] == by_folder[name].study_uid
    refused, failed, left_out = (rows[key] for key in (by_folder["gap"].case_id, "broken", by_folder["ct"].case_id))
    assert refused["state"] == "refused" and refused["reason"] == "gap" and "missing" in refused["detail"]
    assert failed["state"] == "failed" and failed["reason"] and "expected" in failed["detail"]
    assert left_out["state"] == "not_selected" and left_out["reason"] == "modality"
    assert all(row["reason"] in page for row in (refused, failed, left_out))
    texts = [page, terminal, (out / "summary.csv").read_text(), (out / "summary.json").read_text()]
    assert not any(series.series_uid in text for series in by_folder.values() for text in texts)

    assert run(["send", str(out), "--to", "ARCHIVE@127.0.0.1:1", "--retries", "0", "--json"]) == 4
    files = json.loads(capsys.readouterr().out)["files"]
    said = {file["case_id"]: " ".join(file["remarks"]) for file in files}
    assert all(note in said[by_folder[name].case_id] for name, note in notes.items()) and len(said) == 2
    assert run(["send", str(out), "--to", "ARCHIVE@127.0.0.1:1", "--retries", "0"]) == 4
    assert f"look at {by_folder['short'].case_id}: " in capsys.readouterr().out


def test_what_was_noticed_of_the_voxels_is_said_as_well(tiny_bundle: Path, tmp_path: Path) -> None:
    images = make.series(modality="MR", PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-1000)
    for image in images:
        image.RealWorldValueMappingSequence = [Dataset()]
    make.write(images, tmp_path / "in")
    out = tmp_path / "out"
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(out)]) == 0
    (case,) = json.loads((out / "summary.json").read_text())["cases"]
    notes = json.loads((out / case["id"] / "result.json").read_text())["notes"]
    assert notes == [
        "MONOCHROME1: values are mirrored, so that bright stays bright",
        "a real world value mapping is there and was not applied",
    ]
    assert all(note in (out / "report.html").read_text() for note in notes) and case["notes"] == notes
    segmented = segpipe.open_bundle(tiny_bundle).segment(tmp_path / "in")
    assert set(notes) <= set(segmented.notes) and len(set(segmented.notes)) == len(segmented.notes)
