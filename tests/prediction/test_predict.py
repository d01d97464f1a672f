"""The command on good and bad input, in-process, with one real worker for all tests."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from segpipe.cli.app import run
from tiny_bundle import THRESHOLD, TILTED, write_scan

pytestmark = pytest.mark.usefixtures("one_worker")
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"


def save(path: Path, voxels: Any, affine: Any = TILTED) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(voxels), affine), path)
    return path


def test_labels_lie_on_the_grid_of_the_scan(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "in/a.nii.gz")
    image = nib.load(scan)
    image.header["descrip"] = b"Jane Doe"
    image.header.set_sform(TILTED, code=4)
    nib.save(image, scan)
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert document["schema_version"] == 1 and document["counts"] == {
        "done": 1,
        "skipped": 0,
        "failed": 0,
        "refused": 0,
    }
    labels = nib.load(tmp_path / "out/a/segmentation.nii.gz")
    voxels = np.asarray(nib.load(scan).dataobj)
    expected = (voxels > THRESHOLD).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
    np.testing.assert_array_equal(labels.affine, nib.load(scan).affine)
    np.testing.assert_allclose(labels.get_qform(), labels.affine, atol=1e-3)
    assert labels.get_data_dtype() == np.uint8 and int(labels.header["sform_code"]) == 4
    assert b"Jane" not in gzip.decompress((tmp_path / "out/a/segmentation.nii.gz").read_bytes())
    result = json.loads((tmp_path / "out/a/result.json").read_text())
    for name, instance in {"result": result, "predict": document}.items():
        jsonschema.validate(instance, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    assert result["voxels"] == {"bright": int(expected.sum())}
    voxel_ml = abs(np.linalg.det(TILTED[:3, :3])) / 1000
    assert result["volumes_ml"]["bright"] == pytest.approx(expected.sum() * voxel_ml, rel=1e-5)
    assert result["route"] == "typed"
    assert result["flags"] == {
        "empty": False,
        "touches_border": ["bright"],
        "orientation_unknown": False,
        "far_spacing": "unknown",
        "far_intensity": "unknown",
    }
    assert set(result["seconds"]) == {"check", "preprocess", "network", "postprocess", "write"}


def truncated(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-2000])


def with_nan(path: Path) -> None:
    voxels = np.random.default_rng(0).random((8, 8, 8), np.float32)
    voxels[1, 2, 3] = np.nan
    save(path, voxels)


def singular(path: Path) -> None:
    save(path, np.arange(512.0).reshape(8, 8, 8))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:254], content[280:328] = bytes(2), bytes(48)  # no qform; the three rows of the sform
    path.write_bytes(gzip.compress(content))


def good_bytes(path: Path) -> bytes:
    write_scan(path)
    return path.read_bytes()


def offset_in_header(path: Path) -> None:
    content = bytearray(gzip.decompress(good_bytes(path)))
    content[108:112] = bytes(4)
    path.write_bytes(gzip.compress(content))


def outlier(path: Path) -> None:
    voxels = np.random.default_rng(0).random((20, 20, 20), np.float32)
    voxels[1, 2, 3] = 1e30
    save(path, voxels)


BAD: dict[str, tuple[Any, str]] = {
    "noise": (lambda path: path.write_bytes(b"no image"), "cannot read the NIfTI file"),
    "empty": (lambda path: path.touch(), "cannot read the NIfTI file"),
    "truncated": (truncated, "cannot read the NIfTI file"),
    "flat": (lambda path: save(path, np.arange(64.0).reshape(8, 8, 1)), "not a volume"),
    "series": (lambda path: save(path, np.arange(2048.0).reshape(8, 8, 8, 4)), "more than three dimensions"),
    "nan": (with_nan, "not finite"),
    "constant": (lambda path: save(path, np.full((8, 8, 8), 7, np.int16)), "constant"),
    "singular": (singular, "the affine cannot be used"),
    "offset": (offset_in_header, "where the voxels begin; found vox_offset = 0"),
    "outlier": (outlier, "cannot be measurements; found 1 voxel(s) up to 1e+30"),
    "longer": (lambda path: path.write_bytes(good_bytes(path) * 2), "longer than its header says"),
    "plain": (lambda path: path.write_bytes(gzip.decompress(good_bytes(path))), "does not say how the file is packed"),
    "link": (lambda path: path.symlink_to("gone.nii.gz"), "a link to a file that is not there"),
    "pipe": (lambda path: os.mkfifo(path), "a pipe"),
    "complex": (lambda path: save(path, np.ones((8, 8, 8), np.complex64)), "not plain numbers"),
}


def test_bad_cases_fail_with_their_reason_and_the_good_one_is_done(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    write_scan(scans / "good.nii.gz")
    for name, (make, _) in BAD.items():
        make(scans / f"{name}.nii.gz")
    assert run(["predict", str(tiny_bundle), str(scans), str(out), "--json"]) == 4
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert cases.pop("good")["status"] == "done"
    for name, (_, reason) in BAD.items():
        said = f"{cases[name]['reason']}; {cases[name]['detail']}"
        assert cases[name]["status"] == "failed" and reason in said, cases[name]
        assert not (out / name).exists()
    assert str(tmp_path) not in (out / "predictions.jsonl").read_text()
    assert (out / "good/result.json").is_file() and not (out / ".partial").exists()


def test_odd_and_equal_names_run_with_the_rest_and_are_found_again(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    for name in ("Jane Doe.nii.gz", "report.html.nii.gz", "a/scan.nii.gz", "b/scan.nii.gz", "plain.nii.gz"):
        write_scan(scans / name)
    seen = []
    for status in ("done", "skipped"):
        assert run(["predict", str(tiny_bundle), str(scans), str(out), "--json"]) == 0
        cases = json.loads(capsys.readouterr().out)["cases"]
        assert {case["status"] for case in cases} == {status}
        seen.append([case["id"] for case in cases])
    assert len(set(seen[0])) == 5
    assert seen[0] == seen[1]
    assert sum(id.startswith("case-") for id in seen[0]) == 2
    assert sum(id.startswith("scan-") for id in seen[0]) == 2
    assert "Jane" not in (out / "summary.json").read_text() + (out / "predictions.jsonl").read_text()
    for id in seen[0]:
        assert (out / id / "segmentation.nii.gz").is_file()


def test_other_formats_have_the_label_map_of_the_same_image_in_nifti(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    write_scan(scans / "plain.nii.gz")
    image = SimpleITK.ReadImage(str(scans / "plain.nii.gz"))
    for name in ("n.nrrd", "m.mha", "d.mhd", "p.hdr"):
        SimpleITK.WriteImage(image, str(scans / name))
    nib.save(nib.MGHImage.from_image(nib.load(scans / "plain.nii.gz")), scans / "f.mgz")
    (scans / "broken.nrrd").write_bytes((scans / "n.nrrd").read_bytes()[:-5])
    assert run(["predict", str(tiny_bundle), str(scans), str(out), "--json"]) == 4
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert "the nrrd file cannot be used" in cases.pop("broken")["reason"]
    assert set(cases) == {"plain", "n", "m", "d", "p", "f"}
    expected = nib.load(out / "plain/segmentation.nii.gz")
    assert expected.get_fdata().any()
    for id, case in cases.items():
        assert case["status"] == "done", case
        found = nib.load(out / id / "segmentation.nii.gz")
        np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_the_table_says_what_failed_and_why(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "grey.nii.gz", np.full((8, 8, 8), 7, np.int16))
    assert run(["predict", str(tiny_bundle), str(tmp_path / "grey.nii.gz"), str(tmp_path / "out")]) == 4
    out = capsys.readouterr().out
    assert "grey" in out and "the image is constant" in out and "0 done, 0 skipped, 1 failed" in out


def test_a_manifest_with_a_missing_file_and_one_with_too_many_channels(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write_scan(tmp_path / f"data/{name}.nii.gz")
    manifest = {
        "schema_version": 1,
        "name": "m",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "x"},
        "test": [
            {"id": "good", "image": "a.nii.gz"},
            {"id": "gone", "image": "gone.nii.gz"},
            {"id": "two", "image": ["a.nii.gz", "b.nii.gz"]},
        ],
    }
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    arguments = ["predict", str(tiny_bundle), str(tmp_path / "m.json"), str(tmp_path / "out")]
    assert run([*arguments, "--data", str(tmp_path / "data"), "--split", "test", "--json"]) == 4
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert cases["good"]["status"] == "done" and "no such file" in cases["gone"]["reason"]
    assert (cases["two"]["reason"], cases["two"]["detail"][:19]) == ("wrong number of channels", "found 2; expected 1")


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda root: (root / "in").mkdir(), 3, "nothing to segment"),
        (lambda root: None, 2, "no such file or folder"),
        (lambda root: write_scan(root / "in/a.nii") and (root / "out").touch(), 2, "cannot write"),
    ],
)
def test_what_is_refused_at_the_start(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, code: int, words: str
) -> None:
    make(tmp_path)
    assert run(["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out").is_dir()


def test_a_folder_that_is_no_bundle(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = str(write_scan(tmp_path / "a.nii.gz"))
    assert run(["predict", str(tmp_path), scan, str(tmp_path / "out")]) == 2
    assert "not a MONAI bundle folder" in capsys.readouterr().err
