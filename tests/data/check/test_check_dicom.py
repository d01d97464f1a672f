"""`segpipe check` of a folder of DICOM files: the scan's judgement and the voxels', by pseudonym."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from pydicom import Dataset

from dicom import make
from segpipe.cli.app import run
from segpipe.dicom.scanning import scan

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/schemas/check.schema.json").read_text())


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = run(["check", str(folder), "--json", *words])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMA)
    return code, document


def with_values(images: list[Dataset], values: np.ndarray) -> list[Dataset]:
    for image, plane in zip(images, values, strict=True):
        image.PixelData = plane.astype("<i2").tobytes()
    return images


def noise(lowest: int, highest: int) -> np.ndarray:
    return np.random.default_rng(3).integers(lowest, highest, (6, 12, 10))


def padded(declared: bool) -> list[Dataset]:
    values = noise(-1000, 1000)
    values[:, :2] = -2000
    more = {"PixelPaddingValue": -2000} if declared else {}
    return with_values(make.series(**more), values)


def sound() -> list[Dataset]:
    return make.series()


def constant() -> list[Dataset]:
    return with_values(make.series(), np.full((6, 12, 10), 7))


def gap() -> list[Dataset]:
    images = make.series()
    return [*images[:2], *images[3:]]


def slope_of_zero() -> list[Dataset]:
    images = make.series()
    images[2].RescaleSlope = "0"
    return images


@pytest.mark.parametrize(
    ("images", "kind", "code"),
    [
        (sound(), None, 0),
        (gap(), "refused_series", 3),
        (constant(), "constant_image", 3),
        (slope_of_zero(), "refused_series", 3),
        (make.series(make.Grid(slices=1)), "single_slice", 0),
        (with_values(make.series(), noise(0, 200)), "no_air", 0),
        (with_values(make.series(modality="MR"), noise(0, 200)), None, 0),
        (padded(declared=False), "undeclared_padding", 0),
        (padded(declared=True), None, 0),
    ],
)
def test_what_is_wrong_with_a_series(
    images: list[Dataset], kind: str | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.write(images, tmp_path)
    (series,) = scan(tmp_path).series
    found, document = checked(tmp_path, capsys)
    kinds = {key: number for key, number in document["kinds"].items() if key != "series_note"}
    assert (found, kinds) == (code, {kind: 1} if kind else {})
    assert document["cases"] == 1
    assert all(finding["case_id"] == series.case_id for finding in document["findings"])


def test_series_are_compared_and_files_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        make.write(make.series(seed=1), tmp_path / name)  # UIDs of their own, the same voxels
    report = make.series(make.Grid(slices=1))[0]
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    make.write([report], tmp_path / "sr")
    (tmp_path / "notes.txt").write_text("no")
    code, document = checked(tmp_path, capsys, "--report", str(tmp_path / "check.json"))
    assert code == 3 and document["kinds"] == {"identical_image": 1} and document["cases"] == 2
    assert Counter(document["passed_over"]) == {"non_image": 1, "not_dicom": 1}
    jsonschema.validate(json.loads((tmp_path / "check.json").read_text()), SCHEMA)


def test_nothing_of_the_patient_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = gap()
    for image in images:
        make.plant(image)
    make.write(images, tmp_path / f"in/{make.MARKER}", stem=make.MARKER)
    for words in ([], ["--json"], ["--report", str(tmp_path / "check.json")]):
        assert run(["check", str(tmp_path / "in"), *words]) == 3
    said = "".join(capfd.readouterr()) + (tmp_path / "check.json").read_text()
    assert make.MARKER not in said and "0815" not in said and "gap" in said


def test_a_manifest_in_the_folder_goes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.write(make.series(), tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert run(["check", str(tmp_path)]) == 3
    assert "manifest is not valid" in capsys.readouterr().err


def test_a_folder_without_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(tmp_path)]) == 2
    assert "neither a manifest nor a DICOM series" in capsys.readouterr().err
    make.write(make.series(), tmp_path / "in")
    assert run(["check", str(tmp_path / "in"), "--data", str(tmp_path)]) == 2
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"cut short")
    assert run(["check", str(tmp_path / "in")]) == 3
    shutil.rmtree(tmp_path / "in")
    assert run(["check", str(tmp_path / "in")]) == 2
