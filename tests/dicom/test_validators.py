"""Results before independent judges: dciodvfy, dcmqi, plastimatch, dsrdump and a real archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from labelled import ALGORITHM, GRIDS, INFOS, some_labels, write_enhanced, write_series
from numpy.typing import NDArray
from pydicom import dcmread

from oracles import call, network_namespace, own_errors, program, read_by_dcmqi, read_by_plastimatch
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.sources import obstacles
from segpipe.dicom.write.structured_report import write_sr

pytestmark = pytest.mark.slow
BINARY_NUMBERS = np.array([0, 1, 0, 2, 0, 0, 0, 3])
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def write_all(series: Series, labels: NDArray[Any], folder: Path) -> list[Path]:
    """SEG, label map SEG, RTSTRUCT and SR."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("seg.dcm", "labelmap.dcm", "rtstruct.dcm", "sr.dcm")]
    write_seg(series, labels, INFOS, paths[0], algorithm=ALGORITHM)
    write_seg(series, labels, INFOS, paths[1], algorithm=ALGORITHM, kind="labelmap")
    write_rtstruct(series, labels, INFOS, paths[2], algorithm=ALGORITHM)
    volumes = {info.name: float((labels == info.value).sum()) for info in INFOS}
    write_sr(series, paths[0], volumes, INFOS, paths[3], algorithm=ALGORITHM)
    return paths


def judge(series: Series, labels: NDArray[Any], folder: Path, contours: bool = True) -> None:
    """Every oracle on every kind of result of one series."""
    seg, labelmap, rtstruct, sr = write_all(series, labels, folder)
    for path in (seg, rtstruct, sr):
        assert own_errors(path, series.frames[0].path) == [], path.name
    assert np.array_equal(read_by_dcmqi(seg, series, folder / "q1"), BINARY_NUMBERS[labels])
    assert np.array_equal(read_by_dcmqi(labelmap, series, folder / "q2"), labels)
    if contours:
        masks = read_by_plastimatch(rtstruct, series.files[0].parent, series, folder / "p")
        for info in INFOS:
            truth = labels == info.value
            if truth.any():
                dice = 2 * (masks[info.name] & truth).sum() / (masks[info.name].sum() + truth.sum())
                assert dice >= 0.99, info.name
    assert "Imaging Measurement Report" in call("dsrdump", sr).stdout
    report = folder / "report.json"
    assert call("tid1500reader", "--inputDICOM", sr, "--outputMetadata", report).returncode == 0
    found = {
        group["TrackingIdentifier"]: float(group["measurementItems"][0]["value"])
        for group in json.loads(report.read_text())["Measurements"]
    }
    assert found == {info.name: float((labels == info.value).sum()) for info in INFOS}


@pytest.mark.parametrize("grid", GRIDS)
def test_generated_series(tmp_path: Path, grid: str) -> None:
    series = write_series(tmp_path / "in", grid)
    judge(series, some_labels(series), tmp_path / "out")


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", StudyID="far too long for a study id")
    seg, *_ = write_all(series, some_labels(series), tmp_path / "out")
    assert "StudyID" in call("dciodvfy", "-new", seg).stderr
    assert own_errors(seg, series.frames[0].path) == []  # as it stands in the source
    written = dcmread(seg)
    written.StudyID = "too long as well, but differently"
    del written.SegmentSequence[0].SegmentLabel
    written.save_as(seg)
    errors = " ".join(own_errors(seg, series.frames[0].path))
    assert "StudyID" in errors and "SegmentLabel" in errors


def test_nothing_found(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    judge(series, np.zeros(series.shape, np.uint8), tmp_path / "out", contours=False)  # type: ignore[arg-type]


def test_an_enhanced_series(tmp_path: Path) -> None:
    (series,) = write_enhanced(tmp_path / "in")
    judge(series, some_labels(series), tmp_path / "out", contours=False)  # plastimatch reads no enhanced images


def test_what_the_source_lacks(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", remove=("PatientBirthDate", "StudyID", "AccessionNumber", "StudyTime"))
    judge(series, some_labels(series), tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_real_series(tmp_path: Path) -> None:
    carried: set[str] = set()
    for folder in sorted((Path(os.environ["SEGPIPE_DATA"]) / "dicom").iterdir()):
        for series in scan(folder).series[:1]:
            reasons = obstacles(series)
            if folder.name.startswith("05"):
                assert any("no frame of reference" in reason for reason in reasons)
            if reasons or series.case_id in carried:
                continue
            carried.add(series.case_id)
            judge(series, some_labels(series), tmp_path / folder.name / series.case_id, contours=False)
    assert len(carried) >= 5


@pytest.mark.realdata
def test_a_real_mask_comes_back(tmp_path: Path) -> None:
    data = Path(os.environ["SEGPIPE_DATA"]) / "ibsi_STS_003"
    (series,) = scan(data / "dicom" / "CT" / "image").series
    mask = nibabel.load(data / "nifti" / "CT_mask.nii.gz")
    assert np.allclose(np.linalg.inv(series.affine_ras) @ mask.affine, np.eye(4), atol=1e-3)  # type: ignore[attr-defined]
    labels = np.asarray(mask.dataobj).astype(np.uint8)  # type: ignore[attr-defined]
    judge(series, labels, tmp_path / "out")
    planes = highdicom.seg.segread(tmp_path / "out" / "seg.dcm").get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in series.frames], combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(planes, labels.transpose(2, 1, 0))
    masks = read_by_plastimatch(
        tmp_path / "out" / "rtstruct.dcm", data / "dicom" / "CT" / "image", series, tmp_path / "again"
    )
    assert np.array_equal(masks["liver"], labels == 1)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[list[str]]:
    """Orthanc in a network of its own, where only loopback is; words that run a command there."""
    program("Orthanc")
    if not PLUGIN.is_file():
        pytest.skip("Orthanc's DICOMweb plugin is not installed: make validators")
    settings = {
        "Name": "test",
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ARCHIVE",
        "DicomPort": 14242,
        "HttpPort": 18042,
        "DicomCheckCalledAet": True,
        "UnknownSopClassAccepted": True,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with network_namespace() as within:
        with (tmp_path / "orthanc.log").open("w") as log:
            server = subprocess.Popen(
                [*within, program("Orthanc"), str(tmp_path / "orthanc.json")], stdout=log, stderr=log
            )
        try:
            probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:18042/system', timeout=2)"
            for _ in range(60):
                if (
                    subprocess.run([*within, sys.executable, "-c", probe], capture_output=True, check=False).returncode
                    == 0
                ):
                    break
                assert server.poll() is None, (tmp_path / "orthanc.log").read_text()
                time.sleep(0.5)
            else:
                pytest.fail("Orthanc did not start")
            yield within
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(20)


FETCH = """
    import sys
    from pathlib import Path
    from dicomweb_client import DICOMwebClient
    client = DICOMwebClient("http://127.0.0.1:18042/dicom-web")
    for found in client.search_for_instances():
        study, series, uid = (found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
        dataset = client.retrieve_instance(study, series, uid, media_types=(("application/dicom", "*"),))
        dataset.save_as(Path(sys.argv[1]) / f"{uid}.dcm", enforce_file_format=True)
"""


@pytest.mark.parametrize("to", ["http://127.0.0.1:18042/dicom-web", "ARCHIVE@127.0.0.1:14242"])
def test_a_real_archive_takes_all_and_gives_it_back(tmp_path: Path, archive: list[str], to: str) -> None:
    series = write_series(tmp_path / "in")
    results, back = tmp_path / "results", tmp_path / "back"
    paths = write_all(series, some_labels(series), results / "dcm-0")
    words = [*archive, sys.executable, "-m", "segpipe", "send", str(results), "--to", to, "--json"]
    for counts in (
        {"sent": 4, "skipped": 0, "failed": 0, "held": 0},
        {"sent": 0, "skipped": 4, "failed": 0, "held": 0},
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["counts"] == counts
    back.mkdir()
    subprocess.run([*archive, sys.executable, "-c", textwrap.dedent(FETCH), str(back)], timeout=120, check=True)
    for path in paths:
        sent = dcmread(path)
        returned = dcmread(back / f"{sent.SOPInstanceUID}.dcm")
        assert returned == sent
        assert returned.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert len(list(back.iterdir())) == len(paths)
