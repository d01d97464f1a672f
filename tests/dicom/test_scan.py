"""The verb: what it prints, what it leaves with, and the folders of real data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from make import Grid, series, write

from segpipe.cli.app import run
from segpipe.dicom.model import Reason

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "scan.schema.json").read_text())


def scanned(folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert run(["scan", str(folder), "--json"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    Draft202012Validator(SCHEMA).validate(document)
    files = {name for one in document["series"] for name in one["files"]} | {
        one["file"] for one in document["passed_over"]
    }
    assert document["counts"]["files"] == len(files)
    return document


def test_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(series(), tmp_path / "good")
    write(series(Grid(slices=1)), tmp_path / "one")
    (tmp_path / "readme.txt").write_text("x")
    document = scanned(tmp_path, capsys)
    loaded, refused = sorted(document["series"], key=lambda one: one["state"])
    assert loaded["files"] == [f"good/image_00{number}.dcm" for number in range(6)]
    assert (loaded["shape"], loaded["reason"], loaded["detail"]) == ([10, 12, 6], None, "")
    np.testing.assert_allclose(loaded["spacing_mm"], [1.25, 1.5, 3])
    np.testing.assert_allclose(
        loaded["affine_ras"], [[-1.25, 0, 0, 20], [0, -1.5, 0, -31], [0, 0, 3, 5], [0, 0, 0, 1]], atol=1e-9
    )
    assert (refused["reason"], refused["affine_ras"], refused["spacing_mm"]) == ("single_slice", None, None)
    assert document["passed_over"] == [{"file": "readme.txt", "class": "not_dicom", "detail": ""}]


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = series(Grid(slices=10))
    del images[4]
    write(images, tmp_path)
    (tmp_path / "a.dcm").touch()
    assert run(["scan", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    for words in (
        f"series {images[0].SeriesInstanceUID}: dcm-",
        "refused gap",
        "image_003.dcm and image_004.dcm are",
        "unreadable",
        "10 files: 9 images, 0 other DICOM, 1 unreadable",
    ):
        assert words in out
    assert err == ""


def test_nothing_to_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "readme.txt").write_text("x")
    assert scanned(tmp_path, capsys, code=3)["counts"]["not_dicom"] == 1
    assert run(["scan", str(tmp_path / "no")]) == 2
    assert "check the path" in capsys.readouterr().err


def test_reasons_are_those_of_the_schema() -> None:
    assert tuple(SCHEMA["$defs"]["reason"]["enum"]) == get_args(Reason)


REAL = {
    "01_ct_axial": [(None, [512, 512, 12])],
    "04_mr_coronal": [(None, [256, 256, 16])],
    "05_double_oblique_nonsquare": [(None, [100, 50, 3])],
    "06_flipped_iop": [(None, [88, 128, 17])],
    "11_gap_missing_slice": [("gap", [512, 512, 11])],
    "23_d2n_tilt4": [("gantry_tilt", [512, 512, 4])],
    "26_single_slice": [("single_slice", [100, 50, 1])],
    "32_fmri_philips_3t": [(None, [64, 64, 9])] * 3,
    "40_enh_siemens_3d": [(None, [256, 256, 8])],
    "50_comp_jpegls": [(None, [256, 256, 4])],
    "52_pet_rescale_per_slice": [(None, [29, 30, 51])],
    "62_nonimage_sr_rt_dicomdir": [(None, [512, 512, 12])],
}


@pytest.mark.realdata
@pytest.mark.parametrize("folder", REAL)
def test_real_folders(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = scanned(Path(os.environ["SEGPIPE_DATA"], "dicom", folder), capsys)
    assert [(one["reason"], one["shape"]) for one in document["series"]] == REAL[folder]
    detail = document["series"][0]["detail"]
    if folder.startswith("11"):
        assert all(words in detail for words in ("1-26.dcm", "1-24.dcm", "10.000 mm", "5.000 mm"))
    if folder.startswith("23"):
        assert "14.00 degrees" in detail
    kinds = sorted(one["detail"] for one in document["passed_over"])
    assert kinds == (
        [
            "Comprehensive 3D SR Storage",
            "Enhanced SR Storage",
            "Media Storage Directory Storage",
            "RT Structure Set Storage",
            "Segmentation Storage",
        ]
        if folder.startswith("62")
        else []
    )


@pytest.mark.realdata
def test_ibsi_is_where_its_nifti_is(capsys: pytest.CaptureFixture[str]) -> None:
    import nibabel

    root = Path(os.environ["SEGPIPE_DATA"], "ibsi_STS_003")
    document = scanned(root, capsys)
    assert [one["class"] for one in document["passed_over"]].count("non_image") == 3
    for one in document["series"]:
        folder = one["files"][0].split("/")[1]
        image = nibabel.load(root / "nifti" / f"{folder}_image.nii.gz")
        assert one["state"] == "loaded" and tuple(one["shape"]) == image.shape
        ours, theirs = (_corners(affine, one["shape"]) for affine in (np.array(one["affine_ras"]), image.affine))
        assert _farthest(ours, theirs) < 0.01


def _corners(affine: np.ndarray, shape: list[int]) -> np.ndarray:
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    return (affine[:3, :3] @ index).T + affine[:3, 3]


def _farthest(one: np.ndarray, other: np.ndarray) -> float:
    """Of the corners of two boxes, whichever way their axes run."""
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    return float(distances.min(axis=1).max())
